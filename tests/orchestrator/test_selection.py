"""`orchestrator matrix` and `orchestrator crossover`: against `plan`, and by what must hold."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from pages import data_of, text_of

from orchestrator import cli
from orchestrator.plan import models
from orchestrator.predict import factors
from orchestrator.predict.crossover import CROSSINGS, PAIRS, crossover, linked, marks
from orchestrator.predict.hardware import Fabric, Hardware, Link, Span
from orchestrator.predict.layouts import Case, rankings
from orchestrator.predict.load import Asked
from orchestrator.predict.matrix import SELECTIONS, changes
from orchestrator.predict.plan import Machines
from orchestrator.predict.replica import Lengths
from orchestrator.store.arrow_files import read_part
from strategies.precision import Precision

SHORT = Lengths(256, 128, 2048)
SMALL = ("--model", "qwen2.5-32b", "--scenario", "short", "--gpu", "h200,l40s", "--gpus-max", "4")


def run(*asked: str) -> Result:
    return CliRunner().invoke(cli.main, list(asked))


def data(*asked: str) -> dict[str, Any]:
    done = run(*asked, "--json")
    assert done.exit_code in (0, 2), done.output  # 2: a plan in which nothing is predicted
    return dict(json.loads(done.stdout))


def planned(gpu: str, gpus: int, concurrencies: str) -> list[list[str]]:
    """The layouts of `plan` by rank, for each concurrency."""
    asked = ("--gpu", gpu, "--gpus", str(gpus), "--max-concurrency", concurrencies)
    found = data("plan", "--model", "qwen2.5-32b", *asked)["plans"][0]["rankings"]
    return [[one["layout"] for one in ranking["layouts"]] for ranking in found]


def case(gpu: str, concurrency: int, model: str = "llama-70b") -> Case:
    shape = models.resolve(model, "dummy").shape
    engine = factors.load().of("torch")
    asked = Asked(SHORT, concurrency)
    return Case(shape, Precision("bfloat16"), Machines(gpu, 4).hardware(), engine, asked)


def speeds(of: Case, hardware: Hardware, pair: tuple[str, str], gpus: int) -> list[float]:
    (found,) = rankings(replace(of, hardware=hardware), pair, gpus, [of.asked.max_concurrency])
    known = {one.layout: one.output_throughput.value for one in found.predictions}
    return [known[name] for name in pair]


# -- the matrix


def test_a_field_is_what_plan_ranks_first_and_the_fewest_gpus_that_plan_has_a_layout_of() -> None:
    rows = data("matrix", *SMALL)["selection"]
    assert [one["gpu"] for one in rows] == ["H200", "L40S"]
    for one in rows:
        (ranked,) = planned(one["gpu"], 4, "32")
        assert one["layout"] == ranked[0]
        holding = [count for count in (1, 2, 4) if planned(one["gpu"], count, "32")[0]]
        assert one["least_gpus"] == holding[0]
    # 64 GB of weights: one GPU of 150 GB, two of 48
    assert [one["least_gpus"] for one in rows] == [1, 2]


def test_from_a_threshold_on_plan_ranks_the_other_layout_first() -> None:
    for one in data("matrix", *SMALL, "--concurrency", "1")["selection"]:
        at = one["changes_at"]
        before, after = planned(one["gpu"], 4, f"{at - 1},{at}")
        index = one["best_from"].index(at)
        assert before[0] == one["best_layouts"][index - 1]
        assert after[0] == one["best_layouts"][index]
        assert before[0] != after[0]


@pytest.mark.parametrize(
    "ladder", [[(1, "a")], [(1, "a"), (2, "b")], [(1, "a"), (37, "b"), (100, "a"), (256, "c")]]
)
def test_every_change_of_the_best_is_found_where_it_happens(ladder: list[tuple[int, str]]) -> None:
    def best(number: int) -> str:
        return [name for start, name in ladder if start <= number][-1]

    assert list(changes(best)) == ladder


def test_a_larger_limit_never_needs_more_gpus_in_any_field() -> None:
    needed = []
    for limit in ("8", "12", "20", "60", "900"):
        rows = data("matrix", *SMALL, "--slo", f"tpot:{limit}")["selection"]
        needed.append([one["least_gpus"] or 99 for one in rows])
    for tight, loose in pairwise(needed):
        assert all(a >= b for a, b in zip(tight, loose, strict=True))
    assert needed[0] != needed[-1]


def test_where_no_layout_meets_the_limits_the_field_says_so() -> None:
    for one in data("matrix", *SMALL, "--slo", "tpot:1")["selection"]:
        assert one["layout"] is None
        assert one["least_gpus"] is None
        assert one["reason"] == "no layout meets the limits"
    (held,) = data(
        "matrix", "--model", "llama-70b", "--scenario", "short", "--gpu", "l4", "--gpus-max", "2"
    )["selection"]
    assert "weights" in held["reason"]


def test_layouts_that_cannot_be_placed_are_no_reason_where_others_miss_the_limits() -> None:
    """Of 64 GPUs 16 layouts of this model are impossible, and 12 are not."""
    asked = ("--model", "tiny", "--scenario", "short", "--gpu", "h200")
    (one,) = data("matrix", *asked, "--gpus-max", "64", "--slo", "tpot:0.01")["selection"]
    assert one["reason"] == "no layout meets the limits"


def test_the_table_and_the_page_say_why_a_field_is_empty(tmp_path: Path) -> None:
    asked = ("--model", "llama-8b", "--scenario", "short", "--gpu", "l4", "--gpus-max", "2")
    done = run("matrix", *asked, "--slo", "tpot:1", "--out", str(tmp_path))
    assert "the fewest GPUs that keep the limits" in done.stdout
    assert "-: none; --json says why." in done.stdout
    said = text_of(tmp_path / "selection.html")
    assert "misses the limits" in said
    assert "does not fit" not in said
    assert "-: none" not in run("matrix", *asked).stdout


def test_of_gpus_whose_link_is_not_known_it_says_what_is_not_looked_at() -> None:
    asked = ("--model", "llama-8b", "--gpu", "mi300x,l40s", "--gpus-max", "16")
    hidden = (
        "Not looked at: of MI300X layouts that send between GPUs, as that link is not known; of "
        "L40S layouts that send between nodes, as that link is not known."
    )
    assert hidden in run("matrix", *asked, "--scenario", "short").stdout
    assert hidden in run("recommend", *asked, "--slo", "tpot:50").stdout
    assert "Not looked at" not in run("matrix", *SMALL).stdout


def test_the_page_says_of_how_many_kinds_the_rates_were_measured(written: Path) -> None:
    assert "2 kinds: 1 from data sheets, 1 measured" in text_of(written / "selection.html")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("selection")
    done = run("matrix", *SMALL, "--out", str(folder))
    assert done.exit_code == 0, done.output
    for name in ("selection.arrow", "crossover.arrow", "selection.html"):
        assert f"written: {folder / name}" in done.stdout
    return folder


def test_the_tables_are_typed_rows_with_units(written: Path) -> None:
    table = read_part(written / "selection.arrow")
    assert isinstance(table, pa.Table)
    assert SELECTIONS.data(SELECTIONS.rows(table)) == [
        {name: tuple(v) if isinstance(v, list) else v for name, v in row.items()}
        for row in data("matrix", *SMALL)["selection"]
    ]
    units = {f.name: (f.metadata or {}).get(b"unit") for f in SELECTIONS.schema}
    assert units["output_throughput"] == b"tokens/s"
    assert units["median_tpot_ms"] == b"ms"
    crossings = read_part(written / "crossover.arrow")
    assert isinstance(crossings, pa.Table)
    rows = CROSSINGS.rows(crossings)
    assert [(one.gpu, one.first, one.second) for one in rows] == [
        (gpu, *pair) for gpu in ("H200", "L40S") for pair in PAIRS
    ]


def test_the_page_holds_the_same_rows_and_asks_for_nothing(written: Path) -> None:
    page = written / "selection.html"
    held, said = data_of(page), text_of(page)
    kept = {one["gpu"]: one["layout"] for one in held["selection"]}
    assert kept == {one["gpu"]: one["layout"] for one in data("matrix", *SMALL)["selection"]}
    assert all(len(one["curve"]) == 25 for one in held["crossover"])
    assert "Best of 4 GPUs at 32 concurrent" in said
    assert "own link is kept" in said
    assert "src=" not in page.read_text().split("<script")[0]


# -- the crossover


@pytest.mark.parametrize(("gpu", "concurrency"), [("h200", 32), ("h200", 100), ("b200", 32)])
@pytest.mark.parametrize("pair", PAIRS)
def test_above_the_crossover_the_first_is_faster_below_it_the_second(
    gpu: str, concurrency: int, pair: tuple[str, str]
) -> None:
    asked = case(gpu, concurrency)
    found, gpus = crossover(asked, pair), 4 if pair[0] == "tp4" else 2

    def at(bandwidth: float) -> list[float]:
        return speeds(asked, linked(asked.hardware, bandwidth), pair, gpus)

    if found.bandwidth is None:
        low, high = at(min(marks().values())), at(max(marks().values()))
        leads = [one[0] > one[1] for one in (low, high)]
        assert leads == [found.best == pair[0]] * 2
        return
    first, second = at(found.bandwidth)
    assert first == pytest.approx(second, rel=0.01)
    first, second = at(found.bandwidth * 1.1)
    assert first > second
    first, second = at(found.bandwidth / 1.1)
    assert first < second


def test_where_time_is_a_line_over_what_a_byte_takes_the_crossover_is_where_two_lines_meet() -> (
    None
):
    link = Fabric(Link(1e11, 1e-6, "test"))
    asked = replace(case("h200", 100), hardware=replace(case("h200", 1).hardware, fabric=link))
    pair = ("tp2", "pp2")
    found = crossover(asked, pair)
    assert found.bandwidth is not None
    points = (30e9, 120e9)
    # seconds for a token = a + b x (seconds for a byte), through two points, of both layouts
    slow, fast = (
        [1 / one for one in speeds(asked, linked(asked.hardware, at), pair, 2)] for at in points
    )
    span = 1 / points[0] - 1 / points[1]
    slopes = [(s - f) / span for s, f in zip(slow, fast, strict=True)]
    starts = [f - b / points[1] for f, b in zip(fast, slopes, strict=True)]
    meets = (slopes[0] - slopes[1]) / (starts[1] - starts[0])
    assert found.bandwidth == pytest.approx(meets, rel=0.01)


@pytest.mark.parametrize("gpu", ["h200", "l40s"])
def test_another_bandwidth_keeps_the_latency_and_moves_bytes_at_that_rate(gpu: str) -> None:
    hardware = case(gpu, 1).hardware
    other = linked(hardware, 1e11).fabric
    small = [one.seconds("all_reduce", Span(2), 1, "graph") for one in (hardware.fabric, other)]
    assert small[1] == pytest.approx(small[0], rel=0.01)
    large = other.seconds("all_reduce", Span(2), 1 << 30, "graph")
    assert large == pytest.approx((1 << 30) / 1e11, rel=0.01)  # 2 (n - 1) / n = 1 of the bytes


def test_a_crossover_is_said_in_a_sentence() -> None:
    asked = ("--model", "llama-70b", "--concurrency", "1,100", "--gpu")
    done = run("crossover", *asked, "h200,mi300x")
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    at = data("crossover", *asked, "h200")["found"]
    (found,) = (o for o in at if (o["max_concurrency"], o["first"]) == (100, "tp4"))
    above = f"tp4 beats tp2pp2 above {found['bandwidth'] / 1e9:.3g} GB/s of bus bandwidth"
    assert f"H200, 100 concurrent: {above}; its own link has" in said
    assert "H200, 1 concurrent: tp4 beats tp2pp2 at every bandwidth looked at" in said
    assert "the link between GPUs of MI300X is not known" in said
    assert "latency of each GPU's own link is kept" in said


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("matrix", "--model", ","), "names no model"),
        (("matrix", "--model", "nope"), "no model 'nope'"),
        (("matrix", "--gpu", "h2000"), "did you mean h200"),
        (("matrix", "--scenario", "medium"), "no scenario 'medium'"),
        (("matrix", "--concurrency", "1,2"), "for one of them"),
        (("matrix", "--slo", "tpot:p99:5"), "of medians"),
        (("matrix", *SMALL, "--out", "/dev/null/x"), "give another --out"),
        (("crossover", "--gpu", "h800"), "how much memory H800 has"),
        (("crossover", "--engine", "torch,vllm"), "for one of them"),
        (("crossover", "--engine", "deepspeed"), "no factors were fitted"),
        (("crossover", "--concurrency", "none"), "max_concurrency"),
    ],
)
def test_what_cannot_be_answered_is_said_in_a_line(asked: tuple[str, ...], says: str) -> None:
    done = run(*asked)
    assert done.exit_code != 0
    assert says in " ".join(done.stderr.split())
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
