"""Which tile multiplies few rows by a matrix, for those of models, and into how many parts
attention cuts contexts; no GPU is needed."""

from __future__ import annotations

from itertools import product

import pytest

from workers.engines.native.kernels.tiles import (
    Tile,
    fp8_tile_of,
    height_of,
    pages_ahead,
    pages_behind,
    parts_of,
    tile_of,
)

LARGE = Tile(128, 128, 8, 4)
HALF = Tile(64, 128, 4, 6)
SMALL = Tile(16, 512, 4, 3, matrix_first=False)
STREAMED = Tile(64, 256, 4, 4, streamed=True)
# (outputs, inputs) of a rank's matrices, with the tile of one row
CASES = [
    ("32B tp2, gate and up", (27648, 5120), LARGE._replace(streamed=True)),
    ("32B tp1, gate and up", (55296, 5120), LARGE),
    ("two tiles a program", (33792, 5120), LARGE._replace(streamed=True)),
    ("and one more", (33793, 5120), LARGE),
    ("70B tp2, gate and up", (28672, 8192), LARGE._replace(streamed=True)),
    ("70B, output", (8192, 4096), STREAMED),
    ("70B tp1, qkv", (10240, 8192), HALF),
    ("32B tp2, down", (5120, 13824), STREAMED),
    ("32B tp2, qkv", (3584, 5120), STREAMED),
    ("8B tp2, qkv", (3072, 4096), STREAMED),
    ("32B tp8, down", (5120, 3456), HALF._replace(streamed=True)),
    ("32B tp4, qkv", (1792, 5120), SMALL),
    ("70B tp4, qkv", (2560, 8192), None),
    ("inputs of no tile", (5120, 1000), None),
]


@pytest.mark.parametrize(("shape", "tile"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_a_matrix_has_a_tile_by_its_outputs(shape: tuple[int, int], tile: Tile | None) -> None:
    assert tile_of(1, *shape, True) == tile


def test_what_cannot_be_streamed_has_a_tile_in_triton_or_is_cublass() -> None:
    found = {shape: tile_of(1, *shape, False) for _, shape, tile in CASES if tile and tile.streamed}
    assert found == {(27648, 5120): LARGE, (33792, 5120): LARGE, (5120, 13824): HALF,
                     (5120, 3456): HALF, (3584, 5120): None, (3072, 4096): None,
                     (28672, 8192): LARGE, (8192, 4096): HALF}  # fmt: skip


def test_beyond_32_rows_a_tile_has_twice_the_outputs_where_each_program_has_one() -> None:
    wide = LARGE._replace(outputs=256, stages=2, streamed=True)
    assert [tile_of(rows, 27648, 5120, True) for rows in (33, 64)] == [wide, wide]
    assert tile_of(64, 14336, 4096, True) == LARGE._replace(streamed=True)
    assert tile_of(64, 33793, 5120, True) == LARGE


def test_a_small_matrix_is_cublass_beyond_16_rows() -> None:
    assert tile_of(16, 1792, 5120, True) == SMALL
    assert tile_of(17, 1792, 5120, True) is None


def test_a_ring_has_as_many_stages_as_there_is_room_for() -> None:
    stages = {rows: tile_of(rows, 5120, 5120, True) for rows in (1, 16, 17, 32, 33, 64)}
    assert [tile.stages for tile in stages.values() if tile] == [4, 4, 4, 4, 3, 3]


def test_every_tile_that_is_streamed_fits_in_shared_memory_and_divides_the_inputs() -> None:
    streamed = 0
    for rows, outputs, inputs in product(
        range(1, 65), (3072, 5120, 6144, 27648), range(128, 16385, 128)
    ):
        tile = tile_of(rows, outputs, inputs, True)
        assert tile is not None
        assert inputs % tile.inputs == 0
        stage = (tile.outputs + height_of(rows)) * tile.inputs * 2
        assert not tile.streamed or tile.stages * (stage + 8) <= 226 * 1024
        streamed += tile.streamed
    assert streamed > 0


WIDE, NARROW = Tile(128, 256, 4, 6, streamed=True), Tile(64, 512, 4, 6, streamed=True)
SHORT = Tile(64, 256, 4, 11, streamed=True)


@pytest.mark.parametrize(
    ("rows", "shape", "tile"),
    [
        (1, (27648, 5120), WIDE),
        (32, (27648, 5120), WIDE._replace(stages=5)),
        (1, (55296, 5120), NARROW._replace(stages=5)),
        (64, (3584, 5120), NARROW._replace(stages=3)),
        (1, (5120, 27648), NARROW._replace(stages=5)),
        (1, (5120, 3328), SHORT),  # inputs that 512 do not divide
        (65, (5120, 13824), SHORT._replace(stages=4)),
        (128, (3584, 5120), SHORT._replace(stages=4)),
        (65, (7168, 5120), None),
        (129, (5120, 13824), None),
        (1, (3008, 5120), None),
        (1, (5120, 1000), None),
    ],
)
def test_a_matrix_in_fp8_has_a_tile_by_its_outputs(
    rows: int, shape: tuple[int, int], tile: Tile | None
) -> None:
    assert fp8_tile_of(rows, *shape, True) == tile
    assert fp8_tile_of(rows, *shape, False) is None
    if tile is not None:
        stage = (tile.outputs + height_of(rows)) * tile.inputs + 8
        assert tile.stages * stage <= 226 * 1024


@pytest.mark.parametrize(("rows", "height"), [(1, 16), (16, 16), (17, 32), (33, 64), (64, 64)])
def test_tokens_are_filled_up_to_a_power_of_two(rows: int, height: int) -> None:
    assert height_of(rows) == height


@pytest.mark.parametrize(
    ("contexts", "pages", "parts"),
    [
        (1, 6, 3),  # of two pages or more
        (4, 64, 16),
        (4, 512, 64),  # of four or more where there are more than 16
        (128, 64, 3),  # two programs a multiprocessor
        (191, 15, 2),
        (192, 15, 1),  # short ones stay whole
        (192, 16, 2),
        (660, 64, 1),
        (800, 64, 2),  # else the last round would leave most of the GPU without a program
        (1280, 64, 1),
        (800, 15, 1),
    ],
)
def test_contexts_are_cut_into_as_many_parts_as_a_gpu_has_room_for(
    contexts: int, pages: int, parts: int
) -> None:
    assert parts_of(contexts, pages) == parts


def test_pages_are_read_ahead_where_all_programs_run_by_then() -> None:
    cache = (640, 64, 4, 128)  # a rank's pages, slots of one, KV heads, and elements of a head
    assert [pages_ahead(requests, cache, 2) for requests in (1, 47, 48, 200)] == [2, 2, 0, 0]
    assert [pages_ahead(requests, cache, 1) for requests in (1, 23, 24, 200)] == [2, 2, 0, 0]
    assert pages_ahead(1, (640, 64, 4, 256), 4) == 0  # two of a head of 256 have no room


@pytest.mark.parametrize(
    ("programs", "ahead", "kib", "pages"),
    [
        (264, 0, 32, 2),  # 16 bits
        (265, 0, 32, 1),
        (132, 2, 32, 1),
        (4096, 0, 16, 2),  # FP8
        (132, 0, 64, 2),  # heads of 256
        (133, 0, 64, 1),
        (1, 0, 128, 1),  # two have no room
    ],
)
def test_two_pages_are_on_their_way_where_that_costs_no_program_its_place(
    programs: int, ahead: int, kib: int, pages: int
) -> None:
    assert pages_behind(programs, ahead, kib << 10) == pages


@pytest.mark.parametrize(
    ("tile", "dim", "has_both"),
    [(STREAMED, 128, True), (STREAMED, 64, True), (STREAMED, 96, False), (HALF, 128, False)],
)
def test_a_tile_has_both_halves_of_a_head_where_heads_begin_with_tiles(
    tile: Tile, dim: int, has_both: bool
) -> None:
    assert tile.pairs(dim) == has_both
