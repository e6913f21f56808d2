"""The page of runs that train: its verdict, what its charts show, and how they are drawn."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from browser import WIDTHS, Chromium
from click.testing import CliRunner
from pages import data_of
from training_inputs import GIGABYTE, H200, write_training

from orchestrator.analysis.training.comparison import findings_of
from orchestrator.analysis.training.observed import observed_in
from orchestrator.cli import main
from orchestrator.report.training.page import parts_shown, render_html
from orchestrator.report.training.predicted import predictions
from orchestrator.report.training.verdict import verdicts_of

CHARTS = ("step", "memory", "loss")
PAPER_WIDTH, PAPER_HEIGHT = 688, 950  # px between margins of 14 mm
SPEEDS = {
    "fsdp2": (66000.0, 66100.0, 65900.0, 66050.0),
    "tp2": (60000.0, 60100.0, 59900.0, 60050.0),
    "pp2": (50000.0, 50100.0, 49900.0, 50050.0),
    "dp2": (40000.0, 40100.0, 39900.0, 40050.0),
}
# Two stages, of which the first has more weights, and the second more activations.
UNLIKE = {"activation_bytes": 40 * GIGABYTE, "peak_memory_bytes": 92 * GIGABYTE}
PIPELINE = {
    "exposed_ms": 50.0,
    "handover_ms": 80.0,
    "agreement_ms": 30.0,
    "gap_ms": 20.0,
    "bubble_ms": 110.0,
    "bubble_share": 0.12,
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layouts: dp2 was not observed, and the profiler slowed tp2 down."""
    folder = tmp_path_factory.mktemp("trained") / "llama-8b"
    parts: dict[str, dict[str, object]] = {
        "fsdp2": {},
        "tp2": {"profile_ratio": 1.4},
        "pp2": PIPELINE,
    }
    write_training(folder, SPEEDS, {"pp2": UNLIKE}, parts)
    return render_html([folder], folder / "report.html")


def rows(page: Path, chart: str) -> dict[str, dict[str, Any]]:
    """Layout -> its row of a chart."""
    return {row["layout"]: row for row in data_of(page)[chart]}


# -- the verdict


@pytest.mark.parametrize(
    ("speeds", "confidence", "sentence"),
    [
        (
            SPEEDS,
            "shown",
            "fsdp2 trains the most tokens per second at 16 sequences a step, 1.10x the next: "
            "shown at 95% confidence over 4 rounds of starts.",
        ),
        (
            {"fsdp2": (66000.0,), "tp2": (60000.0,)},
            "mean",
            "fsdp2 trains the most tokens per second at 16 sequences a step, 1.10x the next: by "
            "the means alone, which shows nothing yet: each layout was started once.",
        ),
        (
            {"fsdp2": (66000.0,)},
            "none",
            "Only fsdp2 has a result, 66,000 tokens per second, in one start: there is nothing to "
            "rank it against.",
        ),
        (
            {"fsdp2": (66000.0, 66000.0)},
            "none",
            "Only fsdp2 has a result, 66,000 tokens per second, the mean of 2 starts: there is "
            "nothing to rank it against.",
        ),
    ],
    ids=["shown", "once", "alone", "alone in two starts"],
)
def test_the_verdict_is_a_sentence_with_how_sure_it_is(
    speeds: dict[str, Sequence[float]], confidence: str, sentence: str, tmp_path: Path
) -> None:
    folder = write_training(tmp_path / "llama-8b", speeds)
    (said,) = verdicts_of(findings_of([folder]))
    assert (said.confidence, said.sentence) == (confidence, sentence)
    assert sentence in render_html([folder], tmp_path / "page.html").read_text()


def test_nothing_is_ranked_on_a_cpu(tmp_path: Path) -> None:
    folder = write_training(tmp_path / "llama-8b", SPEEDS, device="cpu")
    page = render_html([folder], tmp_path / "page.html")
    text = page.read_text()
    assert "It is no ranking" in text
    for said in (
        'class="headline',
        "trains the most",
        "the best mean first",
        "the tokens a second of",
    ):
        assert said not in text
    table = CliRunner().invoke(main, ["compare", str(folder)]).output
    assert "It is no ranking" in " ".join(table.split())
    assert "the tokens a second of" not in " ".join(table.split())
    assert ">/GPU<" not in text
    assert "/GPU" not in table
    names = [row["layout"] for row in data_of(page)["step"]]
    assert names == sorted(names)
    firsts = [word for line in table.splitlines() for word in line.split()[:1]]
    assert [word for word in firsts if word in SPEEDS] == sorted(SPEEDS)
    assert all(not row["predicted"] for row in data_of(page)["memory"])


def test_what_was_asked_for_and_never_ran_is_named(tmp_path: Path) -> None:
    published = Path("docs/results/4xh200/training-llama-8b")
    said = "llama-8b.pp4.torch.bfloat16.train4096.c16 was asked for and has no run that can be read"
    page = render_html([published], tmp_path / "page.html").read_text()
    assert "3 remarks on what is not here" in page
    assert said in page
    table = CliRunner().invoke(main, ["compare", str(published)], terminal_width=400).output
    assert said in " ".join(table.split())
    data = json.loads(CliRunner().invoke(main, ["compare", str(published), "--json"]).output)
    assert sorted(one["cell"].split(".")[1] for one in data["missing"]) == [
        "dp4zero3",
        "pp4",
        "tp4",
    ]


def test_only_ranks_of_a_pipeline_have_stages(page: Path) -> None:
    (seen,) = [observed_in(page.parent)]
    stages = {(row["layout"], row["rank"]): row["stages"] for row in parts_shown(seen)}
    assert {stages["pp2", rank] for rank in "01"} == {"0", "1"}
    assert stages["fsdp2", "0"] == "-"


# -- the data of the charts


def test_an_observed_step_is_cut_into_parts_that_sum_to_it(page: Path) -> None:
    step = rows(page, "step")
    assert sum(step["fsdp2"]["parts"].values()) == pytest.approx(1000.0)
    assert sum(step["pp2"]["parts"].values()) == pytest.approx(1000.0)
    assert (step["fsdp2"]["parts"]["bubble"], step["fsdp2"]["parts"]["agreement"]) == (0, 30)
    assert (step["pp2"]["parts"]["bubble"], step["pp2"]["parts"]["agreement"]) == (110, 0)
    assert (step["fsdp2"]["parts"]["exposed"], step["fsdp2"]["hidden"]) == (100, 300)


def test_a_step_that_was_not_observed_or_slowed_down_is_one_piece_with_the_reason(
    page: Path,
) -> None:
    step = rows(page, "step")
    for layout, reason in (
        ("dp2", "no step was observed"),
        ("tp2", "the profiled step takes 1.40 of the timed one"),
    ):
        assert step[layout]["parts"] == {"uncut": step[layout]["timed"]}
        assert (step[layout]["reason"], step[layout]["hidden"]) == (reason, None)


def test_the_parts_of_a_peak_sum_to_it_or_are_not_told(page: Path) -> None:
    memory = rows(page, "memory")
    assert memory["fsdp2"]["parts"] == {
        "weights": 8.0,
        "gradients": 8.0,
        "optimizer": 48.0,
        "activations": 22.0,
    }
    assert memory["pp2"]["parts"] == {"uncut": 92.0}
    assert memory["pp2"]["reason"] == "its parts are greatest on different ranks"
    # Half of 8.03e9 parameters in BF16, as explain has it.
    assert memory["fsdp2"]["predicted"]["weights"] == pytest.approx(8.03, abs=0.01)


def test_offloaded_states_are_no_part_of_the_peak_of_a_device(tmp_path: Path) -> None:
    held: dict[str, Any] = {"activation_bytes": None}
    folder = write_training(tmp_path / "llama-8b", {"fsdp2": (1.0,)}, {"fsdp2": held})
    (row,) = data_of(render_html([folder], tmp_path / "page.html"))["memory"]
    assert row["parts"] == {"uncut": 86.0}
    assert "main memory" in row["reason"]


@pytest.mark.parametrize(
    ("device", "parts"),
    [("cpu", {"weights": 8.0, "optimizer": 48.0, "rest": 30.0}), (H200, {"uncut": 86.0})],
)
def test_gradients_that_an_engine_does_not_tell_are_not_zero(
    device: str, parts: dict[str, float], tmp_path: Path
) -> None:
    held: dict[str, Any] = {"gradient_bytes": None, "activation_bytes": None}
    folder = write_training(tmp_path / "a", {"fsdp2": (1.0,)}, {"fsdp2": held}, device=device)
    (row,) = data_of(render_html([folder], tmp_path / "page.html"))["memory"]
    assert row["parts"] == parts
    assert row["reason"] == "its engine does not tell its gradients"


def test_gradients_that_are_not_there_at_the_peak_are_no_part_of_it(tmp_path: Path) -> None:
    whole: dict[str, Any] = {"micro_batch_size": 8, "micro_batches": 1}
    folder = write_training(tmp_path / "llama-8b", {"fsdp2": (1.0,)}, {"fsdp2": whole})
    (row,) = data_of(render_html([folder], tmp_path / "page.html"))["memory"]
    assert row["parts"] == {"uncut": 86.0}
    assert "gradients" in row["reason"]
    assert row["predicted"]["gradients"] == 0


def test_the_losses_of_the_first_run_of_each_layout_are_kept(page: Path) -> None:
    losses = data_of(page)["loss"]
    assert len(losses) == 3 * len(SPEEDS)
    assert [row["step"] for row in losses[:3]] == [0, 1, 2]


def test_experiments_with_the_same_load_are_told_apart(page: Path, tmp_path: Path) -> None:
    folders = [write_training(tmp_path / name, {"fsdp2": (66000.0,)}) for name in ("a", "b")]
    found = render_html(folders, tmp_path / "page.html")
    loads = [f"llama-8b, 16 x 4096 tokens a step, 3 steps, bf16 ({name})" for name in ("a", "b")]
    for chart in CHARTS:
        assert list(dict.fromkeys(row["load"] for row in data_of(found)[chart])) == loads
    assert f"{loads[1]}: Only fsdp2 has a result" in found.read_text()
    assert data_of(page)["step"][0]["load"] == loads[0].removesuffix(" (a)")


# -- in a browser


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_chart_is_drawn_without_a_complaint_at_every_width(
    chromium: Chromium, page: Path, dark: bool
) -> None:
    for width in WIDTHS:
        chromium.open(page, width, dark)
        for chart in CHARTS:
            marks = f"document.querySelectorAll('[data-chart={chart}] .role-mark path').length"
            assert chromium.evaluate(marks) >= len(SPEEDS), (chart, width)
        assert chromium.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert chromium.complaints == []
    assert chromium.requests == [page.resolve().as_uri()]


def test_a_chart_has_its_table_its_figures_and_its_picture(chromium: Chromium, page: Path) -> None:
    chromium.open(page)
    for chart in CHARTS:
        saved = list(csv.DictReader(io.StringIO(chromium.evaluate(f"report.csv('{chart}')"))))
        assert len(saved) == len(data_of(page)[chart])
        picture = chromium.evaluate(f"report.svg('{chart}')")
        assert "var(--" not in picture
        read = f"new DOMParser().parseFromString({json.dumps(picture)}, 'image/svg+xml')"
        assert chromium.evaluate(f"{read}.querySelector('parsererror')") is None
    cells = chromium.tab.locator("[data-figures=step] tbody tr").first.locator("td")
    assert cells.first.inner_text() == "1,638"
    assert chromium.tab.locator("[data-figures=memory] tbody tr").count() == len(SPEEDS)


def test_what_is_not_taken_apart_is_said_below_the_chart(chromium: Chromium, page: Path) -> None:
    chromium.open(page)
    note = chromium.tab.locator("[data-note=step]").inner_text()
    assert "dp2 is not taken apart: no step was observed." in note
    assert "tp2 is not taken apart: the profiled step takes 1.40 of the timed one." in note
    assert "apart at any step" in chromium.tab.locator("[data-note=loss]").inner_text()


def test_a_loss_of_one_step_is_not_drawn(chromium: Chromium, tmp_path: Path) -> None:
    folder = write_training(tmp_path / "llama-8b", {"fsdp2": (1.0,)}, steps=1)
    chromium.open(render_html([folder], tmp_path / "page.html"))
    assert not chromium.tab.locator("#loss").is_visible()
    assert "Loss" not in chromium.tab.locator(".contents a").all_inner_texts()
    assert chromium.complaints == []


@pytest.mark.parametrize(("steps", "ticks"), [(3, ["0", "1", "2"]), (11, [*map(str, range(11))])])
def test_no_step_stands_twice_below_the_losses(
    chromium: Chromium, tmp_path: Path, steps: int, ticks: list[str]
) -> None:
    folder = write_training(tmp_path / "llama-8b", {"fsdp2": (1.0,)}, steps=steps)
    chromium.open(render_html([folder], tmp_path / "page.html"))
    labels = chromium.tab.locator("#loss .role-axis-label text").all_text_contents()
    assert labels[: len(ticks)] == ticks  # of the first axis


def test_the_tables_are_sorted(chromium: Chromium, page: Path) -> None:
    chromium.open(page)
    table = chromium.tab.locator("#load-1")
    table.get_by_role("button", name="step ms").click()
    assert table.locator("tbody th").first.inner_text() == "dp2"
    assert "sort=load-1-0" in chromium.evaluate("location.hash")


def test_a_chart_prints_on_one_page_with_its_heading(chromium: Chromium, page: Path) -> None:
    chromium.look(page)
    chromium.on_paper(PAPER_WIDTH)
    for chart in CHARTS:
        height = chromium.evaluate(f"document.getElementById('{chart}').offsetHeight")
        assert 0 < height < PAPER_HEIGHT, chart


def test_what_was_to_be_taken_is_of_layers_as_they_were_compiled() -> None:
    folder = Path(__file__).resolve().parents[2] / "docs/results/2xh200/training-llama-8b/layouts"
    found = predictions([folder], findings_of([folder]).comparison)
    said = {cell.strategy: round(taken.total / 1e9, 1) for cell, taken in found.items()}
    assert said == {"fsdp2": 107.4, "tp2": 93.2, "pp2": 101.6}


def test_tables_of_the_same_load_are_told_apart_in_the_terminal(tmp_path: Path) -> None:
    folders = [write_training(tmp_path / name, {"fsdp2": (66000.0,)}) for name in ("a", "b")]
    said = CliRunner().invoke(main, ["compare", *map(str, folders)]).output
    assert "steps, bf16 (a)" in said
    assert "steps, bf16 (b)" in said
    alone = CliRunner().invoke(main, ["compare", str(folders[0])]).output
    assert "steps, bf16 (a)" not in alone


@pytest.mark.parametrize("command", ["trace", "recompute"])
def test_what_trained_has_no_spans_and_that_is_said(command: str, tmp_path: Path) -> None:
    folder = write_training(tmp_path / "llama-8b", {"fsdp2": (1.0,)})
    found = CliRunner().invoke(main, [command, str(folder)])
    assert found.exit_code == 2
    assert "or it trained: no spans are kept of training" in " ".join(found.stderr.split())
