"""Two measures of the same thing against each other, on samples with known answers and on the
published runs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from driver_inputs import SHAPE, plan
from samples import report, without_gpu
from summaries import summary

from orchestrator.analysis.comparing.compare import compare
from orchestrator.analysis.crosscheck import Crosscheck, crosscheck_of, sent_by, sentences
from orchestrator.analysis.samples import sampled
from orchestrator.store.arrow_files import read_part
from orchestrator.store.schema import RUN_KEYS
from strategies import Placement
from workers.messages import EnginePlan, RankReport, Switches
from workers.records import COLLECTIVES
from workers.rows import grouped

BUSY = [500.0] * 41  # 4 s
MIB = 1 << 20
PUBLISHED = Path(__file__).parents[2] / "docs" / "results"


def all_reduce(mib: float, calls: int = 10, axis: str = "tp") -> dict[str, object]:
    """`calls` all-reduces of so many MiB each."""
    return {"op": "all_reduce", "axis": axis, "calls": calls, "bytes": round(calls * mib * MIB)}


def ramp(total: float) -> list[int]:
    """A counter that rises from 0 to `total` over the run."""
    return [round(total * i / 40) for i in range(41)]


def pair(saw: float, *calls: dict[str, object], **fields: object) -> list[RankReport]:
    """Two ranks that counted the same calls, whose GPUs each sent `saw` bytes over NVLink."""
    return [report(r, BUSY, collectives=calls, nvlink_tx_bytes=ramp(saw), **fields) for r in (0, 1)]


def checked(reports: list[RankReport], asked: EnginePlan | None = None) -> Crosscheck:
    asked = asked or plan(2)
    return crosscheck_of(sampled(reports, 4.0, asked.placement.num_ranks), reports, asked)


# -- bytes


def test_counters_that_saw_what_was_counted_are_no_reason_for_a_word() -> None:
    found = checked(pair(1280 * MIB, all_reduce(128)))
    assert found.nvlink_over_counted == pytest.approx(1.0)
    assert found.nvlink_over_counted_limit == 1.0
    assert found.nvlink_reasons is found.crosscheck_reasons is None


@pytest.mark.parametrize("saw", [0.69, 1.31])
def test_counters_that_are_off_by_31_percent_are_told(saw: float) -> None:
    found = checked(pair(saw * 1280 * MIB, all_reduce(128)))
    assert found.nvlink_over_counted == pytest.approx(saw)
    assert found.crosscheck_reasons == (
        f"NVLink counters saw {saw:.2f} of the bytes counted, 1.00 expected"
    )


@pytest.mark.parametrize(
    ("saw", "told"), [(0.94, True), (0.96, False), (1.04, False), (1.06, True)]
)
def test_the_tolerance_is_5_percent(saw: float, told: bool) -> None:
    found = checked(pair(saw * 1280 * MIB, all_reduce(128)))
    assert (found.crosscheck_reasons is not None) is told


def test_small_messages_which_nccl_may_double_are_not_compared() -> None:
    found = checked(pair(2 * 160 * 1024, all_reduce(1 / 64)))
    assert found.nvlink_over_counted is found.crosscheck_reasons is None
    assert found.nvlink_reasons == (
        "messages of 1 MiB and more carry 0% of the bytes; NCCL may double smaller ones"
    )


def test_beside_large_messages_small_ones_may_cross_once_or_twice() -> None:
    """600 MiB in messages of 100 MiB and 400 MiB in messages of half a MiB."""
    calls = all_reduce(100, 6), {**all_reduce(0.5, 800), "phase": "prefill"}
    limit = checked(pair(1000 * MIB, *calls)).nvlink_over_counted_limit
    assert limit == pytest.approx(1.4)
    for saw, told in ((1000, False), (1400, False), (1500, True), (900, True)):
        found = checked(pair(saw * MIB, *calls))
        assert (found.crosscheck_reasons is not None) is told, saw
    (low,) = {checked(pair(900 * MIB, *calls)).crosscheck_reasons}
    assert low == "NVLink counters saw 0.90 of the bytes counted, 1.00 to 1.40 expected"


@pytest.mark.parametrize(("mib", "limit"), [(1.6, 2.0), (4, 128 / 120), (63, 128 / 120), (64, 1.0)])
def test_what_a_protocol_adds_depends_on_the_size_of_a_message(mib: float, limit: float) -> None:
    """LL sends 8 bytes for 4, LL128 128 bytes for 120."""
    sent = sent_by(COLLECTIVES.rows(report(0, [], collectives=[all_reduce(mib)]).collectives), TP2)
    assert sent is not None
    assert sent.most / sent.payload == pytest.approx(limit)


@pytest.mark.parametrize(
    ("kind", "kib", "limit"),
    [
        ("one-shot", 512, 4.0),  # to three others, and with each 4 bytes the number of the call
        ("one-shot", 513, 2.0),  # by NCCL
        ("two-shot", 85, 4.0),
        ("two-shot", 86, 2.0),
        ("nccl", 85, 2.0),
    ],
)
def test_what_goes_through_memory_of_gpus_is_expected_of_it(
    kind: str, kib: int, limit: float
) -> None:
    calls = report(0, [], collectives=[all_reduce(kib / 1024)]).collectives
    sent = sent_by(COLLECTIVES.rows(calls), TP4, kind)
    assert sent is not None
    assert sent.most / sent.payload == pytest.approx(limit)


TP2 = Placement.single(SHAPE).with_axis("tp", 2)
TP4 = Placement.single(SHAPE).with_axis("tp", 4)
PP2 = Placement.single(SHAPE).with_axis("pp", 2)


@pytest.mark.parametrize(
    ("placement", "op", "axis", "sent"),
    [
        (TP2, "all_reduce", "tp", 100),
        (TP4, "all_reduce", "tp", 150),
        (TP4, "all_gather", "tp", 75),
        (TP4, "reduce_scatter", "tp", 75),
        (PP2, "send", "pp", 100),
        (PP2, "recv", "pp", 0),
        (PP2, "broadcast", "pp", 50),
    ],
)
def test_a_rank_sends_what_its_operation_needs(
    placement: Placement, op: str, axis: str, sent: int
) -> None:
    calls = report(0, [], collectives=[{"op": op, "axis": axis, "calls": 1, "bytes": 100}])
    found = sent_by(COLLECTIVES.rows(calls.collectives), placement)
    assert found is not None
    assert found.payload == pytest.approx(sent)


def test_the_ranks_of_a_pipeline_are_added_up() -> None:
    """Only the first stage sends activations, and only its counter has them."""
    one = {"axis": "pp", "calls": 10, "bytes": 1280 * MIB}
    first = report(0, BUSY, collectives=[{"op": "send", **one}], nvlink_tx_bytes=ramp(1280 * MIB))
    last = report(1, BUSY, collectives=[{"op": "recv", **one}], nvlink_tx_bytes=ramp(0))
    found = checked([first, last], replace(plan(2), placement=PP2))
    assert (found.nvlink_over_counted, found.crosscheck_reasons) == (pytest.approx(1.0), None)


LARGE = all_reduce(128)
NO_COUNTERS = [report(r, BUSY, collectives=[LARGE]) for r in (0, 1)]
LATE = [report(r, BUSY, collectives=[LARGE], nvlink_tx_bytes=[None, *ramp(9)[1:]]) for r in (0, 1)]
EARLY = [
    report(r, BUSY, collectives=[LARGE], nvlink_tx_bytes=[*ramp(9)[:38], *[None] * 3])
    for r in (0, 1)
]
UNCOUNTED = [
    report(r, BUSY, collectives=calls, nvlink_tx_bytes=ramp(9))
    for r, calls in enumerate(([LARGE], None))
]


@pytest.mark.parametrize(
    ("reports", "changes", "reason"),
    [
        ([without_gpu()], {}, "no GPU was sampled"),
        (UNCOUNTED, {}, "what its collectives send was not counted"),
        (pair(9, {**LARGE, "op": "all_to_all"}), {}, "what its collectives send was not counted"),
        (pair(9, {**LARGE, "axis": "ep"}), {}, "what its collectives send was not counted"),
        (pair(0), {}, "nothing was sent"),
        (pair(0, LARGE), {"ablation": "p2p"}, "NCCL was kept from using NVLink"),
        (pair(9, LARGE, gpu=[0] * 41), {}, "its GPUs are in several nodes"),
        (NO_COUNTERS, {}, "no NVLink counters on 2 of 2 GPUs"),
        (pair(9, LARGE)[:1], {}, "no NVLink counters on 1 of 2 GPUs"),
        (LATE, {}, "the samples do not cover the run"),
        (EARLY, {}, "the samples do not cover the run"),
    ],
)
def test_bytes_that_cannot_be_compared_have_a_reason_and_accuse_nobody(
    reports: list[RankReport], changes: dict[str, str], reason: str
) -> None:
    found = checked(reports, replace(plan(2), **changes))
    assert (found.nvlink_over_counted, found.nvlink_reasons) == (None, reason)
    assert found.crosscheck_reasons is None


def test_bytes_on_the_links_without_any_collective_are_told() -> None:
    found = checked(pair(10**9))
    assert found.nvlink_reasons == "nothing was sent"
    assert found.crosscheck_reasons == ("NVLink counters saw 2.0 GB, and no collective was counted")


# -- energy


@pytest.mark.parametrize(
    ("watts", "told"),
    [
        (462.0, "1848 J by the samples, 2000 J by the energy counter"),
        (463.0, None),
        (537.0, None),
        (538.0, "2152 J by the samples, 2000 J by the energy counter"),
        (480.0, None),
        (500.0, None),
    ],
)
def test_sampled_power_is_told_where_it_is_off_by_5_percent_and_an_update_of_the_counter(
    watts: float, told: str | None
) -> None:
    counted = [50_000 * i for i in range(41)]  # 50 J every 0.1 s
    found = checked([report(0, [watts] * 41, energy_mj=counted)], plan(1))
    assert found.energy_over_counter == pytest.approx(watts / 500)
    assert found.crosscheck_reasons == told


def test_a_run_of_few_samples_says_nothing_of_its_energy() -> None:
    few = report(0, [100.0] * 9, energy_mj=[50_000 * i for i in range(9)], step_s=0.5)
    found = checked([few], plan(1))
    assert found.energy_over_counter is found.crosscheck_reasons is None


# -- what is said


def test_both_checks_are_told_and_the_comparison_keeps_what_a_run_said() -> None:
    reports = pair(1.31 * 1280 * MIB, LARGE, energy_mj=[60_000 * i for i in range(41)])
    found = checked(reports)
    assert found.crosscheck_reasons == (
        "NVLink counters saw 1.31 of the bytes counted, 1.00 expected; 4000 J by the samples, "
        "4800 J by the energy counter"
    )
    reasons = {"crosscheck_reasons": found.crosscheck_reasons}
    (cell,) = compare(
        [
            summary(run=0, nvlink_over_counted=1.0),
            summary(run=1, nvlink_over_counted=1.31, **reasons),
        ]
    )
    assert cell.crosscheck.nvlink_over_counted == pytest.approx(1.155)
    assert list(sentences({"tp2": cell.crosscheck})) == [
        f"Cross-check of tp2 failed in a run: {found.crosscheck_reasons}."
    ]


def test_checks_that_hold_are_not_talked_about() -> None:
    assert list(sentences({"tp2": checked(pair(1280 * MIB, LARGE))})) == []


# -- the published runs


def published_runs() -> list[tuple[str, Crosscheck]]:
    """The cross-checks of every published run that was sampled, worked out from its tables."""
    folders = [
        path.parent
        for path in sorted(PUBLISHED.rglob("summary.arrow"))
        if (path.parent / "telemetry.arrow").exists()
    ]
    return [found for folder in folders for found in published(folder)]


def published(folder: Path) -> list[tuple[str, Crosscheck]]:
    tables = [read_part(folder / f"{name}.arrow") for name in ("telemetry", "collectives")]
    places = [grouped(range(one.num_rows), RUN_KEYS.rows(one).__getitem__) for one in tables]
    runs = read_part(folder / "summary.arrow")
    found = []
    for key, row in zip(RUN_KEYS.rows(runs), runs.to_pylist(), strict=True):
        samples, counted = (
            table.take(pa.array(of_run.get(key, []), pa.int64()))
            for table, of_run in zip(tables, places, strict=True)
        )
        calls = None if row["comm_bytes"] is None else counted
        whole = RankReport(0, None, pa.table({}), calls, 0, telemetry=samples)
        placement = Placement.single(SHAPE)
        for axis, degree in re.findall(r"(tp|pp|dp)(\d+)", row["strategy"]):
            placement = placement.with_axis(axis, int(degree))
        switches = Switches(allreduce=row.get("allreduce"))
        asked = replace(plan(1), placement=placement, ablation=row["ablation"], switches=switches)
        seen = sampled([whole], row["duration"], placement.num_ranks)
        place = folder.relative_to(PUBLISHED)
        of = f"{place} {row['strategy']} {row['engine']} c{row['max_concurrency']}"
        name = f"{of} start {row['start']} run {row['run']}"
        found.append((name, crosscheck_of(seen, [whole], asked)))
    return found


def test_of_the_published_runs_two_are_accused_of_their_power_and_one_of_its_link() -> None:
    """As docs/measurement.md says."""
    found = published_runs()
    compared = [one for _, one in found if one.nvlink_over_counted is not None]
    assert len(compared) == 595
    assert sum(one.energy_over_counter is not None for _, one in found) == 1107
    joules = {
        "2xh100/engines-qwen2.5-32b pp2 vllm c1 start 0 run 1": (1825, 2002),
        "4xh100/engines-qwen2.5-32b pp4 vllm c1 start 2 run 1": (2488, 2833),
    }
    expected = [
        (name, f"{samples} J by the samples, {counter} J by the energy counter")
        for name, (samples, counter) in joules.items()
    ]
    link = "NVLink counters saw 0.92 of the bytes counted, 1.00 to 2.00 expected"
    short = "2xh200/switches-qwen2.5-32b/tp2-nccl-flashinfer tp2 torch c1 start 0 run 0"
    accused = [(name, one.crosscheck_reasons) for name, one in found if one.crosscheck_reasons]
    assert sorted(accused) == sorted([*expected, (short, link)])
