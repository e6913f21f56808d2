"""`orchestrator recommend`: against arithmetic by hand, and by what must hold of any answer."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import ideal
import pytest
from click.testing import CliRunner, Result

from orchestrator import cli
from orchestrator.analysis.roofline import Ceilings
from orchestrator.errors import UserError
from orchestrator.experiment.levels import medians
from orchestrator.plan import models
from orchestrator.predict import factors
from orchestrator.predict.hardware import Fabric, Hardware, Link
from orchestrator.predict.kinds import counts, kinds
from orchestrator.predict.layouts import Case
from orchestrator.predict.load import Asked
from orchestrator.predict.objectives import Objective
from orchestrator.predict.prediction import Prediction, predict
from orchestrator.predict.recommend import Offer, Recommendation, Refusal, Wanted, recommend
from orchestrator.predict.replica import Lengths
from strategies.precision import Precision

ROOT = Path(__file__).resolve().parents[2]
# It knows what it reaches to 10%.
IDEAL = replace(
    ideal.IDEAL,
    half_width={"output_throughput": 0.1, "ttft_ms": 0.1, "tpot_ms": 0.1},
    fitted=factors.Fitted(("Round", "Half"), ("none", "fp8"), {}),
)
BF16, SHORT = Precision("bfloat16"), Lengths(256, 128, 2048)
# 4.2 TB/s and 800 TFLOP/s, and half of it, joined by links without latency.
ROUND = Hardware(
    name="Round",
    ceilings=Ceilings(4.2e12, {"bfloat16": 8e14, "float8_e4m3fn": 16e14}, 0, "calibrated"),
    memory_bytes=141 * 10**9,
    power_w=700,
    fabric=Fabric(Link(4e11, 0.0, "test"), Link(5e10, 1e-6, "test")),
)
HALF = replace(
    ROUND,
    name="Half",
    ceilings=Ceilings(2.1e12, {"bfloat16": 4e14, "float8_e4m3fn": 8e14}, 0, "calibrated"),
    memory_bytes=80 * 10**9,
)


def wanted(
    *slo: str,
    model: str = "llama-70b",
    hardware: tuple[Hardware, ...] = (ROUND,),
    concurrency: int = 1,
    **paid: float,
) -> Wanted:
    shape = models.resolve(model, "dummy").shape
    limits = (Objective(metric, limit) for metric, limit in medians(slo).items())
    case = Case(shape, BF16, hardware[0], IDEAL, Asked(SHORT, concurrency))
    return Wanted(case, tuple(limits), hardware, counts(8), paid)


def found(*slo: str, **asked: Any) -> Recommendation:
    return recommend(wanted(*slo, **asked))


def run(*asked: str) -> Result:
    return CliRunner().invoke(cli.main, ["recommend", *asked])


@pytest.mark.parametrize(("limit", "gpus", "ms"), [(20, 2, 16.6), (10, 4, 8.3), (5, 8, 4.15)])
def test_the_smallest_has_as_many_gpus_as_weights_must_be_streamed_by(
    limit: int, gpus: int, ms: float
) -> None:
    # 139.0 GB at 4.2 TB/s are 33.1 ms of one GPU, in whose 141 GB they leave no room
    choice = found(f"tpot:{limit}").smallest
    assert choice is not None
    assert (choice.offer.gpus, choice.offer.layout.name) == (gpus, f"tp{gpus}")
    (margin,) = choice.offer.margins
    assert margin.predicted.value == pytest.approx(ms, rel=0.02)
    assert margin.share == pytest.approx(1 - ms / limit, abs=0.02)
    # the far end is e^0.1 = 1.105 of the value
    assert margin.far_share == pytest.approx(1 - 1.105 * ms / limit, abs=0.02)
    assert choice.offer.is_certain


def test_what_is_kept_only_in_the_middle_of_the_interval_is_likely_and_not_certain() -> None:
    choice = found("tpot:17").smallest  # 16.6 of 17 ms, 18.3 at the far end
    assert choice is not None
    assert choice.offer.meets
    assert not choice.offer.is_certain


def test_the_next_smaller_hardware_misses_by_what_is_said_or_cannot_hold_the_model() -> None:
    four, two = found("tpot:10").smallest, found("tpot:20").smallest
    assert four is not None
    assert isinstance(four.smaller, Offer)
    assert four.smaller.gpus == 2
    assert four.smaller.least.share == pytest.approx(1 - 16.6 / 10, rel=0.02)
    assert two is not None
    assert isinstance(two.smaller, Refusal)
    assert (two.smaller.gpus, two.smaller.refused.layout) == (1, "tp1")
    assert "weights" in two.smaller.refused.reason


def test_fp8_is_named_where_it_halves_the_gpus() -> None:
    two, eight = found("tpot:20").smallest, found("tpot:4.5").smallest
    assert two is not None
    assert two.fp8 is not None  # 70 GB are 17 ms of one GPU
    assert two.fp8.gpus == 1
    assert eight is not None
    assert eight.fp8 is not None
    assert eight.fp8.gpus == 4


def test_a_limit_that_nothing_meets_has_no_recommendation() -> None:
    answer = found("tpot:2")
    assert answer.smallest is None
    assert answer.cheapest is None
    best = answer.of(ROUND)
    assert best is not None
    assert best.gpus == 8


@pytest.mark.parametrize("concurrency", [1, 32])
def test_a_larger_limit_never_needs_more_gpus(concurrency: int) -> None:
    asked = {"hardware": (ROUND, HALF), "concurrency": concurrency}
    needed = []
    for limit in (6, 9, 13, 20, 40, 80):
        choice = found(f"tpot:{limit}", **asked).smallest
        needed.append(choice.offer.gpus if choice else 99)
    assert needed == sorted(needed, reverse=True)
    assert needed[-1] < needed[0]


@pytest.mark.parametrize("slo", ["ttft:400", "tpot:25", "e2el:3500"])
def test_a_choice_holds_up_to_the_last_concurrency_at_which_it_is_predicted_to(slo: str) -> None:
    question = wanted(slo, concurrency=8, hardware=(HALF,))
    choice = recommend(question).smallest
    assert choice is not None
    offer, limit = choice.offer, choice.limit
    assert limit.broken is not None
    kept = []
    for number in (limit.concurrency, limit.concurrency + 1):
        one = predict(offer.setting, offer.layout.name, Asked(SHORT, number))
        assert isinstance(one, Prediction)
        (objective,) = question.objectives
        said = objective.of(one, SHORT)
        assert said is not None
        kept.append(said.value <= objective.limit_ms)
    assert kept == [True, False]


def test_a_whole_request_takes_its_first_token_and_all_others() -> None:
    choice = found("e2el:9999").smallest
    assert choice is not None
    one = choice.offer.prediction
    said = Objective("e2el", 9999).of(one, SHORT)
    assert said is not None
    assert one.ttft_ms is not None
    assert said.value == pytest.approx(one.ttft_ms.value + 127 * one.tpot_ms.value)
    assert said.high == pytest.approx(one.ttft_ms.high + 127 * one.tpot_ms.high)
    assert said.value / 1e3 == pytest.approx(one.duration_s, rel=0.01)


def test_the_cheapest_is_that_with_the_cheapest_tokens() -> None:
    both = {"hardware": (ROUND, HALF), "model": "llama-8b", "concurrency": 64}
    # on Half a token takes twice the GPU-ms: at 40% of the price it is cheaper, at 60% it is not
    for price, name in ((0.4, "Half"), (0.6, "Round")):
        answer = found("tpot:50", **both, Round=1.0, Half=price)
        assert answer.cheapest is not None
        offer = answer.cheapest.offer
        assert (offer.hardware.name, offer.gpus) == (name, 1)
        speed = offer.prediction.output_throughput.value
        paid = price if name == "Half" else 1.0
        assert offer.cost == pytest.approx(paid / 3600 / speed * 1e6)
    unpriced = found("tpot:50", **both)
    assert unpriced.cheapest is not None
    assert unpriced.cheapest.offer.gpu_ms == min(one.gpu_ms for one in unpriced.offers if one.meets)


def test_a_limit_on_what_is_not_predicted_is_not_judged() -> None:
    question = wanted("ttft:9999")
    wide = replace(IDEAL, half_width={**IDEAL.half_width, "ttft_ms": 5.0})  # a factor of 148
    answer = recommend(replace(question, case=replace(question.case, factors=wide)))
    assert answer.smallest is None
    assert not answer.offers
    refusal = answer.refusal(ROUND)
    assert refusal is not None
    assert "no limit on it is judged" in refusal.refused.reason


def test_of_equal_numbers_of_gpus_the_ones_with_less_memory_are_the_smaller() -> None:
    answer = found("tpot:50", hardware=(ROUND, HALF), model="llama-8b")
    assert answer.smallest is not None
    assert (answer.smallest.offer.gpus, answer.smallest.offer.hardware.name) == (1, "Half")


def test_the_next_bottleneck_is_the_largest_part_that_is_not_the_work() -> None:
    slow = replace(ROUND, fabric=Fabric(Link(1e9, 1e-3, "test")))
    question = wanted("tpot:999", hardware=(slow,))
    case = replace(question.case, factors=replace(IDEAL, collective=1.0))
    offers = recommend(replace(question, case=case, counts=(2,))).offers
    layouts = {one.layout.name: one.bottleneck for one in offers}
    assert layouts["pp2"][0] == "bubble"  # one request: the other stage always waits
    name, share = layouts["tp2"]
    assert name == "transfer"
    assert share > 0.5


def test_kinds_whose_figures_do_not_suffice_are_left_out_with_the_reason() -> None:
    every = kinds((), BF16, None, None)
    assert {"H200", "H100", "L40S"} <= {one.name for one in every.hardware}
    assert "memory bandwidth" in every.left_out["H800 NVL"]
    assert "what joins the GPUs of MI300X" in every.left_out["MI300X"]
    assert kinds(("mi300x",), BF16, None, None).hardware[0].name == "MI300X"
    assert "how much memory" in every.left_out["H800"]
    assert "bfloat16" in every.left_out["RTX PRO 6000 Blackwell Server"]
    fp8 = kinds((), Precision("bfloat16", "fp8"), None, None)
    assert "A100 has 8.0, and no FP8" in fp8.left_out["A100"]
    with pytest.raises(UserError, match="how much memory H800 has"):
        kinds(("h800",), BF16, None, None)


@pytest.mark.parametrize(("most", "expected"), [(1, (1,)), (8, (1, 2, 4, 8)), (6, (1, 2, 4, 6))])
def test_gpus_are_counted_as_they_are_rented(most: int, expected: tuple[int, ...]) -> None:
    assert counts(most) == expected


ASKED = ("--model", "llama-70b", "--slo", "ttft:2000", "tpot:25", "--concurrency", "50")


def test_an_answer_is_one_document_with_all_that_was_looked_at() -> None:
    priced = ("--gpu", "h200,h100,l40s", "--gpu-hour-cost", "h200=4.0,h100=2.5")
    done = run(*ASKED, *priced, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["objectives"] == {"ttft": 2000, "tpot": 25}
    assert set(said["kinds"]) == {"H200", "H100", "L40S"}
    choice = said["smallest"]
    assert choice["meets"]
    for margin in choice["margins"]:
        assert margin["predicted_ms"]["value"] <= margin["limit_ms"]
    assert said["cheapest"]["gpu"] in ("H200", "H100")
    assert said["kinds"]["L40S"]["reason"]
    assert choice["holds_up_to"] >= 50


def test_an_answer_is_a_table_and_sentences_for_people() -> None:
    done = run(*ASKED, "--gpu", "h100,l40s")
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    for words in ("Smallest: 4 x H100, tp4.", "next bottleneck:", "holds up to", "next smaller:"):
        assert words in said
    assert "Cheapest (by GPU-ms a token, as no prices are given):" in said


def test_what_is_impossible_is_said_with_how_near_the_best_comes() -> None:
    done = run("--model", "llama-70b", "--slo", "tpot:1", "--gpu", "h200,l4")
    assert done.exit_code == 0, done.output
    assert "No hardware here meets tpot 1 ms: the best is" in done.stdout
    both = run("--model", "llama-70b", "--slo", "tpot:1", "--gpu", "l4", "--gpus-max", "2")
    assert "No hardware here holds it" in both.stdout
    assert "impossible" in both.stdout


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("--slo", "ttft:p99:2000"), "a prediction is of medians"),
        (("--slo", "ttft"), "METRIC:MILLISECONDS"),
        (("--slo", "itl:3"), "no metric 'itl'"),
        (("--slo", "tpot:0"), "above 0"),
        (("--slo", "ttft:2000", "ttft:p50:1000"), "two limits"),
        ((), "give --slo"),
        (("--slo", "tpot:5", "--gpu", "h2000"), "did you mean h200"),
        (("--slo", "tpot:5", "--gpu", ","), "names no kind"),
        (("--slo", "tpot:5", "--gpu", "h800"), "how much memory H800 has"),
        (("--slo", "tpot:5", "--gpu", "h200", "--gpu-hour-cost", "l4=2"), "L4 is not looked at"),
        (("--slo", "tpot:5", "--gpu", "h200", "--gpu-hour-cost", "h200=-1"), "NAME=X"),
        (
            ("--slo", "tpot:5", "--gpu", "h200", "--gpu-hour-cost", "h200=3,H200=4"),
            "--gpu-hour-cost has two prices of H200; give one",
        ),
        (("--slo", "tpot:5", "--concurrency", "1,2"), "for one of them"),
        (("--slo", "tpot:5", "--scenario", "short,long"), "for one of them"),
        (("--slo", "tpot:5", "--gpu", "a100", "--quantization", "fp8"), "A100 has 8.0, and no FP8"),
        (("--slo", "tpot:5", "--gpu", "a100", "--kv-cache-dtype", "fp8"), "and no FP8"),
        (
            ("--slo", "tpot:5", "--gpu", "h200", "--input-len", "9:9", "--output-len", "4:5"),
            "equal",
        ),
    ],
)
def test_what_cannot_be_answered_is_said_in_a_line(asked: tuple[str, ...], says: str) -> None:
    done = run(*asked)
    assert done.exit_code != 0
    assert says in " ".join(done.stderr.split())
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1


def test_a_narrow_terminal_has_narrower_tables_and_no_cut_in_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    asked = ("--slo", "ttft:2000", "--slo", "tpot:21", "--slo", "e2el:9000", "--gpu", "h200,l40s")
    text = run("--model", "llama-70b", "--concurrency", "50", *asked).stdout
    assert "\u2026" not in text
    rows = [line for line in text.splitlines() if "   " in line.strip()]
    assert max(map(len, rows)) <= 80
    assert "4 x H200" in text
    assert "tpot 1" in text
    assert "GPU-ms" in text


def test_the_example_of_the_page_is_what_the_command_says() -> None:
    written = runpy.run_path(str(ROOT / "scripts" / "recommend_page.py"))["page"]()
    assert written == (ROOT / "docs" / "recommend.md").read_text(encoding="utf-8"), (
        "run `python scripts/recommend_page.py`"
    )
