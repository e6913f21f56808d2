"""`benchmarks/fit_predictions.py`: what it fits, and how it says how far that is off."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator.predict import factors

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "fit_predictions", ROOT / "benchmarks" / "fit_predictions.py"
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["fit_predictions"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def predictor(bench: ModuleType):
    known = factors.load()
    return bench.Bench(known.attainable, known.calibrations)


def cell(bench: ModuleType, layout: str, concurrency: int, measured=()):
    return bench.Cell(
        "here",
        "torch",
        "H200",
        "llama-8b",
        layout,
        bench.Precision("bfloat16"),
        "short",
        (256, 128),
        concurrency,
        concurrency,
        dict(measured),
    )


def test_the_factors_that_made_the_times_are_found_again(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bench.FREE, "torch", ("stream", "layer_s"))
    monkeypatch.setattr(bench, "PULL", 100.0)
    begin = bench.BEGIN["torch"]
    true = replace(begin, stream=0.8, layer_s=50e-6)
    by = predictor(bench)
    cells = []
    for layout, concurrency in (("tp1", 1), ("tp2", 1), ("pp2", 32)):
        blank = cell(bench, layout, concurrency)
        made = by.predicted(blank, true)
        cells.append(cell(bench, layout, concurrency, {"decode_ms": made["decode_ms"]}.items()))
    found = bench.fit(by, cells, begin)
    assert found.stream == pytest.approx(0.8, rel=1e-3)
    assert found.layer_s == pytest.approx(50e-6, rel=1e-2)


def test_the_factors_of_few_rows_are_found_with_all_others_as_they_are(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "PULL", 100.0)
    by, torch = predictor(bench), factors.load().of("torch")
    few = replace(bench.BEGIN_FEW, stream=0.8, layer_s=50e-6, gap_s=3e-6)
    cells = []
    for layout in ("tp1", "tp2"):
        blank = replace(cell(bench, layout, 1), early=True)
        made = by.predicted(blank, replace(torch, few=few))
        assert made != by.predicted(replace(blank, early=False), replace(torch, few=few))
        seen = {name: made[name] for name in ("decode_ms", "compute_ms", "gap_ms")}
        cells.append(replace(blank, measured=seen))
    found = bench.fit_few(by, cells, torch, "here")
    assert replace(found, few=None, earlier=()) == replace(torch, few=None, earlier=())
    assert found.earlier == (*torch.earlier, torch.few)
    assert found.few.most_ranks == 2
    assert found.few.since == bench.NEWEST  # of its cells
    assert found.few.stream == pytest.approx(0.8, rel=1e-3)
    assert found.few.layer_s == pytest.approx(50e-6, rel=1e-2)
    assert found.few.gap_s == pytest.approx(3e-6, rel=1e-2)
    assert found.few.gpus == ("H200",)


def test_a_cell_has_few_rows_of_its_own_with_both_switches(bench: ModuleType) -> None:
    """Results from before there were any have none."""
    (found,) = bench.results.load([ROOT / "docs" / "results" / "2xh200" / "other-engines-llama-8b"])
    run = next(one for one in found.runs if one.cell.engine == "torch")
    at = run.conditions

    def early(**switches: str) -> bool:
        settings = replace(at.settings, **switches)
        one = replace(run, conditions=replace(at, settings=settings))
        return bench._cell("here", run.cell, [one]).early

    assert early(products="triton", pdl="on")
    assert not early()
    assert not early(products="triton", pdl="off")
    assert not early(products="cublas", pdl="on")


def test_no_share_of_a_rate_is_fitted_above_1(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bench.FREE, "torch", ("stream", "layer_s"))
    monkeypatch.setattr(bench, "PULL", 100.0)
    begin, by, cells = bench.BEGIN["torch"], predictor(bench), []
    for layout in ("tp1", "tp2"):
        blank = cell(bench, layout, 1)
        made = by.predicted(blank, replace(begin, stream=1.2))  # faster than the memory
        cells.append(cell(bench, layout, 1, {"decode_ms": made["decode_ms"]}.items()))
    assert bench.fit(by, cells, begin).stream == 1.0


def test_an_interval_takes_the_greatest_of_few_errors(bench: ModuleType) -> None:
    assert bench.quantile([0.01, -0.04, 0.02]) == 0.04
    many = [i / 100 for i in range(1, 20)]  # 19 errors: the 18th is that of 90%
    assert bench.quantile(many) == pytest.approx(0.18)


def test_the_share_within_has_a_binomial_interval(bench: ModuleType) -> None:
    low, high = bench.wilson(9, 10)
    assert (round(low), round(high)) == (60, 98)  # Wilson 1927
    assert bench.wilson(30, 30)[1] == pytest.approx(100)


def test_a_row_has_errors_bias_and_baselines(bench: ModuleType) -> None:
    errors = [
        bench.Error(math.log(1.1), math.log(2.0), True),
        bench.Error(math.log(0.9), math.log(2.0), False),
        bench.Error(math.log(1.2), math.log(2.0), True),
    ]
    row = bench.row("here", "output_throughput", errors)
    assert row.split(" | ")[2:6] == ["3", "10.0", "+10.0", "20.0"]
    assert "2 of 3" in row
    assert row.endswith("| 100 | 60 |")  # twice as fast, and 1.6 times


def test_what_is_kept_is_what_was_fitted_and_reads_back(bench: ModuleType, tmp_path: Path) -> None:
    known = factors.load()
    data = bench.as_data(known.engines, known.attainable, known.calibrations)
    file = tmp_path / "factors.json"
    file.write_text(json.dumps(data))
    assert factors.load(file) == known


def test_only_two_gpus_and_few_requests_are_fitted_on(bench: ModuleType) -> None:
    mine = cell(bench, "tp2", 32)
    mine = replace(mine, model="qwen2.5-32b")
    assert bench._is_fitted(mine, "torch")
    for other in (
        {"layout": "dp2"},
        {"layout": "tp4"},
        {"concurrency": 100},
        {"model": "llama-70b"},
    ):
        assert not bench._is_fitted(replace(mine, **other), "torch")


def test_communication_that_shares_a_kernel_with_other_work_counts(bench: ModuleType) -> None:
    parts = {"transfer_ms": 0.01, "wait_ms": 0.15, "fused_ms": 0.65}
    assert bench.communication_ms(cell(bench, "tp4", 1, parts)) == pytest.approx(0.81)
    fused = bench.observed(cell(bench, "tp4", 1, parts))
    assert fused["transfer_ms"][0] == pytest.approx(0.66)  # all but the wait
    apart = cell(bench, "tp4", 1, {"transfer_ms": 1.0, "wait_ms": 0.5})
    assert bench.observed(apart)["comm_ms"][0] == 1.5


def test_kinds_of_kernels_differ_by_the_most_that_one_is_off_by_the_factors_of_another(
    bench: ModuleType,
) -> None:
    by, torch = predictor(bench), factors.load().of("torch")
    few = replace(torch, few=replace(torch.few, layer_s=torch.layer_s, stream=torch.stream))
    plain, early = cell(bench, "tp1", 1), replace(cell(bench, "tp1", 1), early=True)
    plain, early = (
        replace(one, measured={"decode_ms": by.predicted(one, few)["decode_ms"]})
        for one in (plain, early)
    )
    # they differ by nothing but gaps
    found = bench.kinds_s(by, [plain], [early], few)
    assert found == pytest.approx(few.gap_s - few.few.gap_s)
    late = replace(plain, measured={"decode_ms": plain.measured["decode_ms"] + 32 * 10e-3})
    assert bench.kinds_s(by, [late], [early], few) == pytest.approx(found + 10e-6)  # 32 layers


def test_the_longest_start_is_what_first_tokens_leave_for_it(bench: ModuleType) -> None:
    by, vllm = predictor(bench), factors.load().of("vllm")
    plain = [replace(cell(bench, name, 1), engine="vllm") for name in ("tp2", "pp2")]
    late = [
        replace(one, measured={"ttft_ms": by.predicted(one, vllm)["ttft_ms"] + ms})
        for one, ms in zip(plain, (20.0, 35.0), strict=True)
    ]
    assert bench.longest_start(by, late, vllm) == pytest.approx(vllm.start_s + 0.035)


def test_a_cell_has_the_prompt_tokens_of_its_run(bench: ModuleType) -> None:
    """Of vLLM by itself, of a run that asked for some, and of another one's rows."""
    own, asked = ("engines-qwen2.5-32b", "4xh200"), ("engines-qwen2.5-32b", "2xh100")
    vllm = factors.load().of("vllm")
    for (name, node), tokens in ((own, 8192), (asked, 2048)):
        cells = bench.cells_of(ROOT / "docs" / "results" / node / name)
        of = {predictor(bench).asked(one, vllm).lengths.prefill_tokens for one in cells}
        assert tokens in of
        assert of <= {2048, tokens}  # torch's
    rows = bench.peers_of(ROOT / "benchmarks" / "peers-2xh200.csv", "H200")
    assert {predictor(bench).asked(one, vllm).lengths.prefill_tokens for one in rows} == {16384}


def test_results_from_before_a_switch_say_what_vllm_sums_with(bench: ModuleType) -> None:
    folder = ROOT / "docs" / "results" / "2xh100" / "engines-qwen2.5-32b"
    kinds = {(one.engine, one.allreduce) for one in bench.cells_of(folder)}
    assert kinds == {("torch", "nccl"), ("vllm", "custom")}


def test_a_check_prints_each_cell_and_writes_nothing(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: pytest.fail("it writes"))
    results = ROOT / "docs" / "results" / "2xh200"
    asked = f"2 x H200 llama-70b={results / 'llama-70b'}@{results}"
    monkeypatch.setattr(sys, "argv", ["fit", "--check", "--held-out", asked])
    bench.main()
    said = capsys.readouterr().out
    assert "| torch, 2 x H200 llama-70b | throughput | 6 | 2.6 | -2.6 | 4.6 | 6 of 6" in said
    lines = [line for line in said.splitlines() if line.startswith("torch, 2 x H200 llama-70b: ")]
    assert len(lines) == 6
    assert all("throughput" in line and "TPOT" in line for line in lines)


def test_a_fit_without_results_is_refused(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fit"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "a fit needs results and --fabric" in capsys.readouterr().err
