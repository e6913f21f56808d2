"""Which tile multiplies few rows by a matrix, and in which kernel; and into how many parts decode
attention in Triton cuts contexts. Needs no GPU and no Triton."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_SHARED_BYTES = 226 << 10  # of the 227 KiB that a program has on Hopper; one is for sums
_LOWEST = 16  # rows of tokens in a tile
_MANY = 1 << 31
_PROGRAMS = 132  # that run at once, one a multiprocessor
# Of attention: enough programs to give every multiprocessor of a large GPU two, and those that it
# runs at once: five each.
_TARGET, _PLACES = 2 * _PROGRAMS, 5 * _PROGRAMS
_CONTEXTS = 192  # that need no parts where they are short, and have no pages ahead
_FP8_CONTEXTS = 96  # that have none in FP8
_AHEAD = 2  # pages of a part that a kernel has while it waits
_LONG = 16  # pages of a context from which on parts are worth their join


class Tile(NamedTuple):
    """What a program has of a matrix at once. outputs, inputs: of the tile. stages: tiles on their
    way. streamed: in `streamed`, else in `products`. matrix_first: the matrix is the larger
    operand, else the tokens are."""

    outputs: int
    inputs: int
    warps: int
    stages: int
    streamed: bool = False
    matrix_first: bool = True

    def pairs(self, dim: int) -> bool:
        """Whether it can have outputs i and i + dim / 2 of each `dim` side by side."""
        return self.streamed and dim % self.outputs == 0


_Tiles = tuple[tuple[int, range, Tile], ...]
_HALF = Tile(64, 128, 4, 6)
_LARGE = Tile(128, 128, 8, 4, streamed=True)
# Up to how many rows, and how many tiles of outputs: the first that fits (docs/performance.md).
# With more than two tiles of outputs a program, Triton's rate is higher.
_TILES: _Tiles = (
    (32, range(100, 2 * _PROGRAMS + 1), _LARGE),
    (64, range(100, _PROGRAMS + 1), _LARGE._replace(outputs=256)),  # tokens are read half as often
    (64, range(100, 2 * _PROGRAMS + 1), _LARGE),
    (64, range(100, _MANY), _LARGE._replace(streamed=False)),
    (64, range(48, _PROGRAMS + 1), Tile(64, 256, 4, 4, streamed=True)),
    (64, range(48, 100), _HALF._replace(streamed=True)),
    (64, range(100, _MANY), _HALF),
    (32, range(64, 100), _HALF),  # where nothing can be streamed
    (16, range(1, _PROGRAMS + 1), Tile(16, 512, 4, 3, matrix_first=False)),
)


# The same of FP8, where all are streamed, up to FP8_ROWS rows.
FP8_ROWS = 128
_FP8_HALF = Tile(64, 512, 4, 6, streamed=True)
_FP8_TILES: _Tiles = (
    (64, range(100, 2 * _PROGRAMS + 1), Tile(128, 256, 4, 6, streamed=True)),
    (64, range(48, _MANY), _FP8_HALF),
    (64, range(48, _MANY), _FP8_HALF._replace(inputs=256, stages=12)),
    (FP8_ROWS, range(48, 100), _FP8_HALF._replace(inputs=256, stages=12)),
)


def tile_of(rows: int, outputs: int, inputs: int, streams: bool) -> Tile | None:
    """The tile for [rows, inputs] by [outputs, inputs] in 16 bits; None: it is cuBLAS's. streams:
    whether `streamed` is there."""
    return _first(_TILES, rows, outputs, inputs, streams, 2)


def fp8_tile_of(rows: int, outputs: int, inputs: int, streams: bool) -> Tile | None:
    """The same of FP8, where a channel has one scale; None: it is as `fused_fp8` says."""
    return _first(_FP8_TILES, rows, outputs, inputs, streams, 1)


def _first(
    among: _Tiles, rows: int, outputs: int, inputs: int, streams: bool, size: int
) -> Tile | None:
    """size: bytes of an element."""
    fits = (
        tile for most, tiles, tile in among if rows <= most and -(-outputs // tile.outputs) in tiles
    )
    even = (tile for tile in fits if inputs % tile.inputs == 0 and streams >= tile.streamed)
    tile = next(even, None)
    return _with_room(tile, rows, size) if tile is not None and tile.streamed else tile


def _with_room(tile: Tile, rows: int, size: int) -> Tile:
    """With as many stages as there is room for: one has the inputs of outputs and tokens, and a
    barrier of 8 bytes."""
    stage = (tile.outputs + height_of(rows)) * tile.inputs * size + 8
    return tile._replace(stages=min(tile.stages, _SHARED_BYTES // stage))


def height_of(rows: int) -> int:
    """Rows of tokens in a tile: a power of 2."""
    return max(_LOWEST, 1 << (rows - 1).bit_length())


def parts_of(contexts: int, pages: int) -> int:
    """Parts of each context of at most `pages` pages: of 2 pages or more, and where there would be
    more than 16 of them, of 4 or more. Two of long ones whose last round would leave most of the
    GPU without a program. contexts: one a request and KV head."""
    if contexts >= _CONTEXTS and pages < _LONG:
        return 1
    if contexts > _PLACES:
        return 2 if contexts % _PLACES <= _PLACES // 4 else 1
    most = min(-(-pages // 2), max(16, -(-pages // 4)), 64)
    return max(1, min(-(-_TARGET // contexts), most))


def pages_ahead(requests: int, cache: Sequence[int], size: int) -> int:
    """Pages of each part that are read while a kernel waits for the one before: none where there
    are so many programs that they do not all run by then. cache: the shape of keys, see
    `Attention`. size: bytes of an element."""
    _, page, kv_heads, dim = cache
    few = requests * kv_heads < (_CONTEXTS if size > 1 else _FP8_CONTEXTS)
    return _AHEAD if few and _AHEAD * 2 * page * dim * size <= _SHARED_BYTES else 0


def pages_behind(programs: int, ahead: int, page_bytes: int) -> int:
    """Pages that are on their way to a program of attention while it computes another one: two if
    there are few programs, or no fewer run at once so. page_bytes: of a head's keys and values."""
    at_once = _SHARED_BYTES // (2 * page_bytes) * _PROGRAMS
    return 2 if not ahead and (at_once >= _PLACES or programs <= min(at_once, _TARGET)) else 1
