"""Results in the formats of other tools, and back: vLLM's benchmark, AIPerf, trackers."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result
from request_tables import request, requests
from summaries import write_run
from training_inputs import write_training

from orchestrator.analysis.comparing.findings import of_folders
from orchestrator.analysis.comparing.two_results import cells_of, two_results
from orchestrator.analysis.latency import TokenTimes, latency_of
from orchestrator.analysis.load import load
from orchestrator.analysis.throughput import throughput_of
from orchestrator.cli import main
from orchestrator.errors import UserError
from orchestrator.experiment import Cell, Deployment, Run, Scenario
from orchestrator.report.charts.choices import rate_of
from orchestrator.store.journal import CHECKSUMS, Journal
from orchestrator.store.store import Store
from workers.rows import flat

CELL = Cell(Deployment("tiny", "tp2", "torch", "float32"), Scenario("short", 10, 3), 2)
# Two requests of three tokens and one that made none.
SERVED = requests(
    request([0.1, 0.15, 0.2]), request([0.3, 0.45, 1.2], arrival_s=0.1), request([], arrival_s=0.2)
)
# What `vllm bench serve --save-result --percentile-metrics ttft,tpot,itl,e2el` writes, in its order
# (vllm/benchmarks/serve.py), the lists of --save-detailed among them.
BEFORE = ["date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts"]
TRAFFIC = ["request_rate", "burstiness", "max_concurrency"]
TOTALS = [
    *("duration", "completed", "failed", "total_input_tokens", "total_output_tokens"),
    *("request_throughput", "request_goodput", "output_throughput", "total_token_throughput"),
]
LISTS = ["input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times", "queue_times"]
TEXTS = ["generated_texts", "errors"]
PEAKS = ["max_output_tokens_per_s", "max_concurrent_requests", "rtfx"]
STATISTICS = [
    f"{statistic}_{latency}_ms"
    for latency in ("ttft", "tpot", "itl", "e2el")
    for statistic in ("mean", "median", "std", "p99")
]
ONLY_DETAILED = {"input_lens", "output_lens", "start_times", "ttfts", "itls", *TEXTS}


def written(folder: Path, **given: object) -> Path:
    """An experiment of one cell with three runs, of which the second is the middle one."""
    store = Store(folder)
    store.create()
    store.update_manifest()
    made = flat(throughput_of(SERVED, 2, 3, 2)) | flat(latency_of(TokenTimes.of(SERVED)))
    row = {**made, "num_prompts": 3, "metadata": '{"owner": "me"}', **given}
    for index, rate in enumerate((30.0, 20.0, 10.0)):
        tables = {"requests": SERVED}
        write_run(store, Run(CELL, 0, index), tables, **{**row, "output_throughput": rate})
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return written(tmp_path / "tiny-1")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def done(*arguments: object) -> str:
    found = call(*arguments)
    assert found.exit_code == 0, found.output
    return found.stdout


def exported(folder: Path, *options: str, format: str = "vllm-bench") -> tuple[Path, Any]:
    (path,) = done("export", folder, "--format", format, *options).split()
    return Path(path), json.loads(Path(path).read_text())


# -- vLLM's benchmark


@pytest.mark.parametrize("detailed", [False, True])
def test_the_fields_are_those_of_vllms_benchmark_in_its_order(
    results: Path, detailed: bool
) -> None:
    path, found = exported(results, *["--save-detailed"] * detailed)
    assert path.name == f"{CELL.name}.json"
    names = [*BEFORE, *TRAFFIC, *TOTALS, *LISTS, *TEXTS, *PEAKS, *STATISTICS]
    theirs = [name for name in names if detailed or name not in ONLY_DETAILED]
    metadata = set(found) - set(theirs)
    assert [name for name in found if name not in metadata] == theirs
    assert all(isinstance(found[name], str) for name in metadata)
    assert (found["strategy"], found["owner"], found["num_runs"]) == ("tp2", "me", "3")


def test_a_file_is_of_the_middle_run_of_its_cell(results: Path) -> None:
    _, found = exported(results)
    assert (found["output_throughput"], found["run"]) == (20.0, "1")


@pytest.mark.parametrize("format", ["vllm-bench", "aiperf"])
def test_a_cell_without_a_completed_run_has_no_file_which_is_said(
    tmp_path: Path, format: str
) -> None:
    store = Store(tmp_path / "e")
    store.create()
    other = replace(CELL, max_concurrency=4)
    write_run(store, Run(other, 0, 0), status="failed")
    asked = ("export", store.folder, "--format", format, "--out", tmp_path / "out")
    found = call(*asked)
    assert (found.exit_code, found.stderr.count("\n")) == (2, 1)
    assert "was completed, so there is nothing to export" in found.stderr
    write_run(store, Run(CELL, 0, 0))
    found = call(*asked)
    assert (found.exit_code, len(found.stdout.splitlines())) == (0, 1)
    assert found.stderr == f"note: {other.name} has no file, as no run of it was completed.\n"


def test_the_lists_have_a_value_for_each_request_a_failed_one_too(results: Path) -> None:
    _, found = exported(results, "--save-detailed")
    assert found["ttfts"] == [pytest.approx(0.1), pytest.approx(0.2), 0.0]
    assert found["itls"] == [pytest.approx([0.05, 0.05]), pytest.approx([0.15, 0.75]), []]
    assert found["latencies"] == [pytest.approx(0.2), pytest.approx(1.1), 0.0]
    assert (found["output_lens"], found["errors"]) == ([3, 3, 0], ["", "", "no token was made"])
    assert (found["max_output_tokens_per_s"], found["max_concurrent_requests"]) == (5.0, 2)
    assert (found["request_rate"], found["max_concurrency"]) == ("inf", 2)


def test_what_was_exported_for_vllm_comes_back_as_the_same_run(
    results: Path, tmp_path: Path
) -> None:
    path, _ = exported(results, "--save-detailed")
    out = tmp_path / "back"
    assert done("import", path, "--out", out).strip() == str(out)
    (before,), (back,) = load([results]), load([out])
    (run,), middle = back.runs, before.runs[1]
    assert run.latency == middle.latency
    assert replace(run.cell, experiment="") == replace(middle.cell, experiment="")
    assert run.throughput.output_throughput == 20.0
    assert (run.start, run.run, run.conditions.num_gpus) == (0, 1, 2)
    assert run.energy.joules_per_output_token is None
    assert "imported from" in (run.reason or "")
    (judged,) = load([out], {"ttft:p99": 150.0})[0].runs
    assert judged.slo.slo_met is False


THEIRS = {
    "date": "20300102-030405",
    "backend": "openai",
    "model_id": "meta-llama/Llama-3.1-8B",
    "num_prompts": 4,
    "request_rate": "inf",
    "burstiness": 1.0,
    "max_concurrency": 2,
    "duration": 2.0,
    "completed": 4,
    "failed": 0,
    "total_input_tokens": 1024,
    "total_output_tokens": 512,
    "request_throughput": 2.0,
    "request_goodput": 1.5,
    "output_throughput": 256.0,
    "total_token_throughput": 768.0,
    "mean_ttft_ms": 20.0,
    "median_tpot_ms": 7.0,
}


def theirs(path: Path, **given: object) -> Path:
    path.write_text(json.dumps({**THEIRS, **given}))
    return path


def test_a_file_of_vllm_has_its_columns_and_null_elsewhere(tmp_path: Path) -> None:
    out = tmp_path / "them"
    done("import", theirs(tmp_path / "b.json"), "--strategy", "tp2pp2", "--out", out)
    (run,) = load([out])[0].runs
    cell = (run.cell.model, run.cell.strategy, run.cell.engine, run.cell.dtype, run.cell.scenario)
    assert cell == ("Llama-3.1-8B", "tp2pp2", "openai", "unknown", "256x128")
    assert (run.throughput.output_throughput_per_gpu, run.conditions.num_gpus) == (64.0, 4)
    assert (run.latency.ttft.mean, run.latency.ttft.p99, run.latency.tpot.median) == (20.0, None, 7)
    assert (run.arrivals.request_rate, run.conditions.seed) == (None, None)
    assert run.goodput.request_goodput is None  # of levels that the file does not name
    assert run.conditions.started_at == "2030-01-02T03:04:05"


@pytest.mark.parametrize("name", ["tp2pp2", "PP2TP2", "pp2tp2dp1", "3d"])
def test_a_layout_is_spelled_as_results_spell_it(name: str, tmp_path: Path) -> None:
    """Else `compare` would not find the same cell in both."""
    done("import", theirs(tmp_path / "b.json"), "--strategy", name, "--out", tmp_path / "them")
    (run,) = load([tmp_path / "them"])[0].runs
    assert (run.cell.strategy, run.conditions.num_gpus) == ("tp2pp2", 4)
    path = theirs(tmp_path / "c.json", strategy="tp2pp2")
    done("import", path, "--strategy", name, "--out", tmp_path / "same")


def test_a_file_that_says_its_layout_is_not_taken_for_another_one(tmp_path: Path) -> None:
    path = theirs(tmp_path / "b.json", strategy="dp2")
    found = call("import", path, "--strategy", "tp2", "--out", tmp_path / "them")
    assert found.exit_code == 2
    assert "b.json says that it is of dp2, and --strategy tp2 is another layout" in found.stderr
    assert not (tmp_path / "them").exists()


def test_an_import_says_so_has_checksums_and_every_command_reads_it(
    results: Path, tmp_path: Path
) -> None:
    out = tmp_path / "them"
    names = ("--strategy", "tp2", "--model", "tiny", "--engine", "torch", "--dtype", "float32")
    path = theirs(tmp_path / "b.json")
    done("import", path, *names, "--scenario", "short", "--out", out)
    assert Store(out).manifest()["imported"]["format"] == "vllm-bench"
    assert (out / CHECKSUMS).is_file()
    assert all(Journal(out).is_sound(one) for one in out.glob("*.arrow"))
    assert "was imported (vllm-bench" in done("compare", out)
    both = json.loads(done("compare", results, out, "--json"))
    assert {one["metric"] for one in both["changes"]} >= {"output_throughput"}
    assert "was imported" in Path(done("report", out).strip()).read_text()
    assert "tiny" in done("runs", tmp_path)
    assert call("import", path, *names, "--out", out).exit_code == 2


@pytest.mark.parametrize("format", ["vllm-bench", "aiperf"])
def test_an_imported_run_without_a_date_can_be_exported(tmp_path: Path, format: str) -> None:
    path = theirs(tmp_path / "b.json", date=None)
    done("import", path, "--strategy", "tp2", "--out", tmp_path / "them")
    out, _ = exported(tmp_path / "them", format=format)
    done("import", out, "--strategy", "tp2", "--out", tmp_path / "back")
    (run,) = load([tmp_path / "back"])[0].runs
    assert (run.conditions.started_at, run.throughput.output_throughput) == ("", 256.0)


def test_repeats_without_numbers_are_runs_of_one_start(tmp_path: Path) -> None:
    files = [theirs(tmp_path / f"{index}.json") for index in range(3)]
    done("import", *files, "--strategy", "tp2", "--out", tmp_path / "them")
    runs = load([tmp_path / "them"])[0].runs
    assert [(run.start, run.run) for run in runs] == [(0, 0), (0, 1), (0, 2)]


def test_a_file_of_append_result_has_a_run_a_line(tmp_path: Path) -> None:
    path = tmp_path / "many.json"
    path.write_text("\n".join(json.dumps({**THEIRS, "max_concurrency": c}) for c in (1, 8)))
    done("import", path, "--strategy", "dp2", "--out", tmp_path / "them")
    cells = of_folders([tmp_path / "them"]).comparison
    assert sorted(one.cell.max_concurrency for one in cells) == [1, 8]


def test_a_count_may_be_written_with_a_point(tmp_path: Path) -> None:
    path = theirs(tmp_path / "B.JSON", completed=4.0, max_concurrency=3.0, total_input_tokens=8.0)
    done("import", path, "--strategy", "tp2", "--out", tmp_path / "them")
    (run,) = load([tmp_path / "them"])[0].runs
    assert (run.throughput.completed, run.cell.max_concurrency) == (4, 3)
    assert run.conditions.input_len == 2


def test_tables_of_training_are_refused_as_such(tmp_path: Path) -> None:
    folder = write_training(tmp_path / "llama-8b", {"fsdp2": (1.0,)})
    done("export", folder, "--out", tmp_path / "export")
    found = call("import", tmp_path / "export", "--out", tmp_path / "back")
    assert (found.exit_code, found.stderr.count("\n")) == (2, 1)
    assert "export is of training, which is not imported" in found.stderr


def test_tokens_that_came_several_at_once_have_no_times_of_their_own(tmp_path: Path) -> None:
    lists = {"input_lens": [9], "output_lens": [4], "start_times": [5.0], "ttfts": [0.1]}
    path = theirs(tmp_path / "b.json", **lists, itls=[[0.2]])
    done("import", path, "--strategy", "tp2", "--out", tmp_path / "them")
    assert Store(tmp_path / "them").read("requests") is None


@pytest.mark.parametrize(
    "fields",
    [
        {"device_name": 5},
        {"goodput": 5},
        {"seed": "9" * 30},
        {"mean_ttft_ms": 10**400},
        {"mean_ttft_ms": -1.0},
        {"request_goodput": True},
    ],
    ids=str,
)
def test_a_field_that_is_not_what_it_should_be_is_one_that_the_file_has_not(
    tmp_path: Path, fields: dict[str, object]
) -> None:
    for name, given in (("plain", {}), ("odd", fields)):
        path = theirs(tmp_path / "b.json", **{**dict.fromkeys(fields), **given})
        done("import", path, "--strategy", "tp2", "--out", tmp_path / name)
    plain, odd = (
        replace(one, cell=None, conditions=replace(one.conditions, metadata=None))
        for name in ("plain", "odd")
        for one in load([tmp_path / name])[0].runs
    )
    assert plain == odd


DETAILS = {
    "input_lens": [9],
    "output_lens": [2],
    "start_times": [5.0],
    "ttfts": [0.1],
    "itls": [[0.2]],
}


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ({"completed": True}, ("--strategy", "tp2"), "no whole number 'completed', 0 or more"),
        ({"completed": 1.5}, ("--strategy", "tp2"), "no whole number 'completed', 0 or more"),
        ({"total_input_tokens": 1e308}, ("--strategy", "tp2"), "no whole number 'total_input_to"),
        ({"duration": -1.0}, ("--strategy", "tp2"), "no number 'duration', 0 or more"),
        ({"duration": 10**400}, ("--strategy", "tp2"), "no number 'duration', 0 or more"),
        *(
            ({**DETAILS, name: [value]}, ("--strategy", "tp2"), f"request 0 in {name} is {value!r}")
            for name, value in (
                ("input_lens", "a"),
                ("output_lens", 2.5),
                ("start_times", "x"),
                ("ttfts", None),
                ("input_lens", -1),
                ("ttfts", -0.5),
                ("ttfts", 1e300),
                ("itls", [-0.5]),
                ("itls", "ab"),
                ("itls", ["a"]),
            )
        ),
        ({}, (), "does not say which layout it is of; give --strategy"),
        ({"output_throughput": None}, ("--strategy", "tp2"), "no number 'output_throughput'"),
        ({}, ("--strategy", "fast"), "is not a layout"),
        ([1, 2], ("--strategy", "tp2"), "holds no JSON object"),
        ("{", ("--strategy", "tp2"), "is not JSON that can be read"),
    ],
)
def test_a_file_that_cannot_be_imported_is_refused_in_a_line(
    tmp_path: Path, content: Any, options: tuple[str, ...], words: str
) -> None:
    whole = {**THEIRS, **content} if isinstance(content, dict) else content
    path = tmp_path / "b.json"
    path.write_text(whole if isinstance(whole, str) else json.dumps(whole))
    found = call("import", path, *options, "--out", tmp_path / "them")
    assert (found.exit_code, len(found.stderr.splitlines())) == (2, 1)
    assert words in found.stderr
    assert not (tmp_path / "them").exists()


def test_one_cell_at_two_rates_is_refused(tmp_path: Path) -> None:
    files = [theirs(tmp_path / f"{rate}.json", request_rate=rate) for rate in (1.0, 2.0)]
    found = call("import", *files, "--strategy", "tp2", "--out", tmp_path / "them")
    assert "different work; import them one by one" in found.stderr


# -- our own tables


@pytest.mark.parametrize("format", ["parquet", "arrow", "csv"])
def test_exported_tables_come_back_with_every_run(
    results: Path, tmp_path: Path, format: str
) -> None:
    done("export", results, "--format", format, "--out", tmp_path / "export")
    done("import", tmp_path / "export", "--out", tmp_path / "back")
    (before,), (back,) = load([results]), load([tmp_path / "back"])
    assert list(back.runs) == list(before.runs)
    assert back.manifest["imported"]["format"] == "orchestrator-export"
    again = [load([one], {"ttft:p99": 150.0})[0].runs for one in (results, tmp_path / "back")]
    assert list(again[0]) == list(again[1])


def test_a_summary_alone_can_be_imported_and_other_tables_alone_cannot(
    results: Path, tmp_path: Path
) -> None:
    done("export", results, "--out", tmp_path / "export")
    done("import", tmp_path / "export" / "summary.parquet", "--result-dir", tmp_path / "new")
    assert len(load([tmp_path / "new" / "imported-summary"])[0].runs) == 3
    found = call("import", tmp_path / "export" / "requests.parquet", "--out", tmp_path / "x")
    assert "there is no table 'summary'" in found.stderr


def test_tables_of_another_schema_version_are_refused(results: Path, tmp_path: Path) -> None:
    done("export", results, "--out", tmp_path)
    table = pyarrow.parquet.read_table(tmp_path / "summary.parquet")
    older = table.replace_schema_metadata({"schema_version": "1"})
    pyarrow.parquet.write_table(older, tmp_path / "summary.parquet")
    found = call("import", tmp_path / "summary.parquet", "--out", tmp_path / "back")
    assert "schema version 1" in found.stderr


@pytest.mark.parametrize("rate", [9.5, None])
@pytest.mark.parametrize("format", ["vllm-bench", "aiperf"])
def test_a_trace_comes_back_as_one(tmp_path: Path, format: str, rate: float | None) -> None:
    asked = {"request_rate": rate, "burstiness": None, "trace": "60s at speed 2"}
    path, _ = exported(written(tmp_path / "tiny-1", **asked), format=format)
    done("import", path, "--out", tmp_path / "back")
    arrivals = load([tmp_path / "back"])[0].runs[0].arrivals
    assert {name: getattr(arrivals, name) for name in asked} == asked


# -- AIPerf


def test_aiperfs_metrics_have_its_names_units_and_statistics(results: Path) -> None:
    path, found = exported(results, format="aiperf")
    assert path.name == "profile_export_aiperf.json"
    assert path.parent.name == CELL.name
    assert found["output_token_throughput"] == {"unit": "tokens/sec", "avg": 20.0}
    first = found["time_to_first_token"]
    percentiles = [f"p{one}" for one in (1, 5, 10, 25, 50, 75, 90, 95, 99)]
    assert list(first) == ["unit", "avg", *percentiles, "min", "max", "std"]
    assert (first["avg"], first["min"], first["max"]) == pytest.approx((150.0, 100.0, 200.0))
    # Its inter-token latency is a value a request: 50 and 450 ms; ours is its inter-chunk latency.
    assert found["inter_token_latency"]["avg"] == pytest.approx(250.0)
    assert found["inter_chunk_latency"]["max"] == pytest.approx(750.0)
    assert found["time_to_second_token"]["avg"] == pytest.approx(100.0)
    assert found["error_summary"] == [
        {"error_details": {"message": "no token was made"}, "count": 1}
    ]
    config = found["input_config"]
    assert config["models"] == {"items": [{"name": "tiny"}]}
    assert config["endpoint"]["extra"]["strategy"] == "tp2"
    load = {"name": "profiling", "kind": "profiling", "requests": 3, "concurrency": 2}
    assert config["phases"] == [{**load, "type": "concurrency"}]


@pytest.mark.parametrize(
    ("arrivals", "told"),
    [
        ({"request_rate": 4.0, "burstiness": 1.0}, {"type": "poisson", "rate": 4.0}),
        (
            {"request_rate": 4.0, "burstiness": 0.5},
            {"type": "gamma", "rate": 4.0, "smoothness": 0.5},
        ),
        ({"request_rate": 4.0}, {"type": "constant", "rate": 4.0}),
        ({"request_rate": 4.0, "trace": "all at speed 1"}, {"type": "fixed_schedule"}),
        ({}, {"type": "concurrency"}),
    ],
    ids=str,
)
def test_aiperf_is_told_how_requests_arrived_as_it_says_that_itself_and_it_comes_back(
    tmp_path: Path, arrivals: dict[str, object], told: dict[str, object]
) -> None:
    path, found = exported(written(tmp_path / "tiny-1", **arrivals), format="aiperf")
    (phase,) = found["input_config"]["phases"]
    assert told.items() <= phase.items()
    assert phase.keys() == {"name", "kind", "requests", "concurrency"} | told.keys()
    done("import", path, "--out", tmp_path / "back")
    back = load([tmp_path / "back"])[0].runs[0].arrivals
    names = ("request_rate", "burstiness", "trace")
    assert [getattr(back, name) for name in names] == [arrivals.get(name) for name in names]


def test_without_requests_aiperf_gets_what_the_summary_knows(tmp_path: Path) -> None:
    store = Store(tmp_path / "e")
    store.create()
    write_run(store, Run(CELL, 0, 0), mean_ttft_ms=3.0, p99_ttft_ms=4.0)
    _, found = exported(tmp_path / "e", format="aiperf")
    assert found["time_to_first_token"] == {"unit": "ms", "avg": 3.0, "p99": 4.0}
    assert "request_latency" not in found


def test_what_was_exported_for_aiperf_comes_back_with_the_same_figures(tmp_path: Path) -> None:
    levels = {"goodput": "ttft:2000 tpot:50.5", "request_goodput": 1.25, "seed": 7}
    results = written(tmp_path / "tiny-1", request_throughput=3.0, **levels)
    path, _ = exported(results, format="aiperf")
    done("import", path, "--out", tmp_path / "back")
    (before,), (back,) = load([results]), load([tmp_path / "back"])
    (run,), middle = back.runs, before.runs[1]
    assert run.latency == middle.latency
    assert replace(run.cell, experiment="") == replace(middle.cell, experiment="")
    for name in ("completed", "failed", "duration", "total_input_tokens", "total_output_tokens"):
        assert getattr(run.throughput, name) == getattr(middle.throughput, name)
    assert (run.throughput.output_throughput, run.throughput.request_throughput) == (20.0, 3.0)
    assert run.throughput.total_token_throughput is None
    assert run.goodput == replace(middle.goodput, slo_attainment_pct=None)
    assert (run.start, run.run) == (middle.start, middle.run)
    for name in ("num_prompts", "num_gpus", "seed", "started_at"):
        assert getattr(run.conditions, name) == getattr(middle.conditions, name)
    both = json.loads(done("compare", results, tmp_path / "back", "--json"))
    alike = {one["metric"]: one["ratio"] for one in both["changes"]}
    assert {"output_throughput", "median_ttft_ms", "p99_tpot_ms"} <= alike.keys()
    assert set(alike.values()) == {1.0}
    assert back.manifest["imported"]["format"] == "aiperf"


# What AIPerf writes (aiperf/common/models/export_models.py): `extra` as pairs, counts as numbers
# with a point, and no errors where there were none.
AIPERF = {
    "request_throughput": {"unit": "requests/sec", "avg": 2.0},
    "request_latency": {"unit": "ms", "avg": 900.0, "p50": 890.0, "min": 1.0, "std": 5.0},
    "request_count": {"unit": "requests", "avg": 4.0},
    "time_to_first_token": {"unit": "ns", "avg": 20_000_000.0, "p99": 30_000_000.0},
    "inter_token_latency": {"unit": "ms", "avg": 7.0},
    "output_token_throughput": {"unit": "tokens/sec", "avg": 256.0},
    "benchmark_duration": {"unit": "sec", "avg": 2.0},
    "total_isl": {"unit": "tokens", "avg": 1024.0},
    "total_osl": {"unit": "tokens", "avg": 512.0},
    "goodput": {"unit": "requests/sec", "avg": 1.5},
    "input_config": {
        "endpoint": {"model_names": ["meta-llama/Llama-3.1-8B"], "streaming": True},
        "input": {"extra": [["ignore_eos", True]], "goodput": {"request_latency": 250}},
        "loadgen": {"concurrency": 2, "request_count": 4},
    },
    "was_cancelled": False,
    "error_summary": [],
    "start_time": "2030-01-02T03:04:05.678901",
    "end_time": "2030-01-02T03:04:07.678901",
}


def test_a_file_of_aiperf_has_its_columns_and_null_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "profile_export_aiperf.json"
    path.write_text(json.dumps(AIPERF, indent=2))
    done("import", path, "--strategy", "tp2pp2", "--engine", "vllm", "--out", tmp_path / "them")
    (run,) = load([tmp_path / "them"])[0].runs
    cell = (run.cell.model, run.cell.strategy, run.cell.engine, run.cell.scenario)
    assert cell == ("Llama-3.1-8B", "tp2pp2", "vllm", "256x128")
    assert (run.cell.max_concurrency, run.throughput.completed, run.throughput.failed) == (2, 4, 0)
    assert run.throughput.output_throughput_per_gpu == 64.0
    assert (run.latency.ttft.mean, run.latency.ttft.p99) == pytest.approx((20.0, 30.0))
    assert (run.latency.e2el.median, run.latency.itl.mean) == (890.0, None)
    assert (run.goodput.goodput, run.goodput.request_goodput) == ("e2el:250", 1.5)
    assert run.conditions.started_at == "2030-01-02T03:04:05.678901"
    assert "written by AIPerf" in (run.reason or "")


# What AIPerf 0.13 (schema 1.4) writes of its configuration, with a warm-up before what is measured.
OF_PHASES = {
    "models": {"items": [{"name": "meta-llama/Llama-3.1-8B"}]},
    "endpoint": {"urls": ["http://127.0.0.1:8000"], "extra": {"ignore_eos": True}},
    "phases": [
        {"name": "warmup", "kind": "warmup", "type": "poisson", "requests": 3, "concurrency": 9},
        {"name": "profiling", "kind": "profiling", "type": "poisson", "requests": 4}
        | {"concurrency": 2, "rate": 30.0},
    ],
    "slos": {"request_latency": 250.0},
}


@pytest.mark.parametrize(
    ("phase", "asked"),
    [
        ({}, (2, 30.0, 1.0)),
        ({"type": "gamma", "smoothness": 2.0}, (2, 30.0, 2.0)),
        ({"type": "constant"}, (2, 30.0, None)),
        ({"type": "concurrency", "rate": None}, (2, None, None)),
        ({"kind": None}, (2, 30.0, 1.0)),
        ({"concurrency": None}, (4, 30.0, 1.0)),
    ],
    ids=str,
)
def test_a_file_of_a_newer_aiperf_says_its_model_its_load_and_its_levels_elsewhere(
    tmp_path: Path, phase: dict[str, object], asked: tuple[object, ...]
) -> None:
    warmup, measured = OF_PHASES["phases"]
    config = {**OF_PHASES, "phases": [warmup, {**measured, **phase}]}
    path = tmp_path / "profile_export_aiperf.json"
    path.write_text(json.dumps({**AIPERF, "input_config": config, "run_info": {"random_seed": 7}}))
    done("import", path, "--strategy", "tp2", "--out", tmp_path / "them")
    (run,) = load([tmp_path / "them"])[0].runs
    assert (run.cell.model, run.conditions.seed) == ("Llama-3.1-8B", 7)
    arrivals = run.arrivals.request_rate, run.arrivals.burstiness
    assert (run.cell.max_concurrency, *arrivals) == asked
    assert (run.goodput.goodput, run.conditions.num_prompts) == ("e2el:250", 4)


SCHEDULE = "a fixed schedule of AIPerf"


@pytest.mark.parametrize(
    ("config", "arrivals"),
    [  # of AIPerf before schema 1.2, whose default is Poisson, and since
        ({"input": {"fixed_schedule": True}}, (None, None, SCHEDULE)),
        ({"input": {"custom_dataset_type": "mooncake_trace"}}, (None, None, SCHEDULE)),
        (
            {"input": {"fixed_schedule": True, "fixed_schedule_end_offset": 9000}},
            (None, None, f"{SCHEDULE}, 0 to 9000 ms"),
        ),
        (
            {
                "input": {"custom_dataset_type": "mooncake_trace"},
                "loadgen": {"concurrency": 1, "request_rate_mode": "concurrency_burst"},
            },
            (None, None, None),
        ),
        ({"loadgen": {"request_rate": 3.0}}, (3.0, 1.0, None)),
        ({"loadgen": {"request_rate": 3.0, "request_rate_mode": "constant"}}, (3.0, None, None)),
        ({"loadgen": {"concurrency": 2}}, (None, None, None)),
        ({"phases": [{"name": "profiling", "type": "fixed_schedule"}]}, (None, None, SCHEDULE)),
        (
            {"phases": [{"name": "profiling", "type": "fixed_schedule", "start_offset": 5}]},
            (None, None, f"{SCHEDULE}, 5 to its end ms"),
        ),
        (
            {"phases": [{"name": "profiling", "type": "poisson", "rate_series": {"points": []}}]},
            (None, None, "a rate series of AIPerf"),
        ),
        ({"phases": [{"name": "profiling", "type": "user_centric", "rate": 4}]}, (4.0, None, None)),
        (
            {
                "phases": [{"name": "profiling", "type": "concurrency"}],
                "endpoint": {"extra": {"trace": "x"}},
            },
            (None, None, None),
        ),
    ],
    ids=str,
)
def test_a_file_of_aiperf_is_of_an_open_loop_where_requests_had_times_of_their_own(
    tmp_path: Path, config: dict[str, object], arrivals: tuple[object, ...]
) -> None:
    path = tmp_path / "profile_export_aiperf.json"
    path.write_text(json.dumps({**AIPERF, "input_config": config}))
    done("import", path, "--strategy", "tp2", "--out", tmp_path / "them")
    (cell,) = of_folders([tmp_path / "them"]).comparison
    told = cell.arrivals
    assert (told.request_rate, told.burstiness, told.trace) == arrivals
    trace = arrivals[2]
    assert told.is_open == any(arrivals)
    if trace:
        assert rate_of(cell) == f"a trace ({trace})"


def test_a_schedule_of_aiperf_is_other_work_than_its_closed_loop(tmp_path: Path) -> None:
    path = tmp_path / "profile_export_aiperf.json"
    for name, sent in (("closed", {"concurrency": 4}), ("open", {})):
        config = {"input": {"fixed_schedule": not sent}, "loadgen": sent}
        path.write_text(json.dumps({**AIPERF, "input_config": config}))
        done("import", path, "--strategy", "tp2", "--out", tmp_path / name)
    joined = {
        cell for name in ("closed", "open") for cell in cells_of(load([tmp_path / name])[0].runs)
    }
    assert len(joined) == 2
    assert sorted(cell.arrivals for cell in joined) == [
        "a closed loop",
        f"an open loop at its own times ({SCHEDULE})",
    ]
    with pytest.raises(UserError, match="one is a closed loop, the other an open loop at its own"):
        two_results(tmp_path / "closed", tmp_path / "open").check_common_cells()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"total_osl": None}, "of a model that generates: it has no metric 'total_osl'"),
        ({"request_count": {"unit": "requests", "avg": "4"}}, "has no metric 'request_count'"),
        ({"request_latency": {"unit": "min", "avg": 1.0}}, "has request_latency in 'min', which"),
        ({"metadata": {}, "metrics": {}}, "or several runs; give profile_export_aiperf.json"),
        ({"was_cancelled": True}, "is of a run that was stopped"),
        ({"is_complete": False}, "is of a run that was stopped"),
        (
            {"input_config": {"phases": [{"kind": "profiling"}, {"kind": "profiling"}]}},
            "is of several phases with loads of their own",
        ),
        ({"request_count": {"unit": "requests", "avg": -4}}, "no whole number 'completed', 0"),
    ],
    ids=str,
)
def test_a_file_of_aiperf_that_cannot_be_imported_is_refused_in_a_line(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    path = tmp_path / "profile_export_aiperf.json"
    path.write_text(json.dumps({**AIPERF, **fields}))
    found = call("import", path, "--strategy", "tp2", "--out", tmp_path / "them")
    assert (found.exit_code, len(found.stderr.splitlines())) == (2, 1)
    assert words in found.stderr


@pytest.mark.parametrize(
    "fields",
    [
        {"goodput": {"unit": "requests/sec", "avg": True}},
        {"request_latency": 5},
        {"inter_chunk_latency": {"unit": "us", "avg": 10**400}},
        {
            "input_config": {
                **AIPERF["input_config"],
                "input": {"goodput": {"request_latency": "a"}},
            }
        },  # type: ignore[dict-item]
        {"input_config": {"endpoint": 1, "input": [[1, 2]], "loadgen": {"concurrency": "x"}}},
        {"input_config": None, "start_time": 5},
    ],
    ids=str,
)
def test_a_field_of_aiperf_that_is_not_what_it_should_be_is_one_that_the_file_has_not(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    path = tmp_path / "profile_export_aiperf.json"
    path.write_text(json.dumps({**AIPERF, **fields}))
    done("import", path, "--strategy", "tp2", "--out", tmp_path / "them")
    (run,) = load([tmp_path / "them"])[0].runs
    assert run.throughput.output_throughput == 256.0


def test_an_unknown_format_is_refused_with_those_that_are_known(results: Path) -> None:
    found = call("export", results, "--format", "excel")
    assert "use arrow, parquet, csv, vllm-bench, aiperf" in found.stderr
    assert "is of --format vllm-bench" in call("export", results, "--save-detailed").stderr


# -- trackers


class Calls(ModuleType):
    """Stands in for a tracker's package: remembers each call, by its name."""

    def __init__(self, seen: list[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> None:
        super().__init__("calls")
        self.__dict__["seen"] = seen

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def called(*arguments: Any, **named: Any) -> Calls:
            self.seen.append((name, arguments, named))
            return Calls(self.seen)

        return called if name != "summary" else Calls(self.seen)

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize(
    ("tracker", "module", "figures", "page"),
    [
        ("mlflow", "mlflow", "log_metrics", "log_artifact"),
        ("wandb", "wandb", "update", "Html"),
        ("tensorboard", "torch.utils.tensorboard", "add_scalar", "add_text"),
    ],
)
def test_a_tracker_gets_the_figures_of_each_cell_and_the_page(
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    tracker: str,
    module: str,
    figures: str,
    page: str,
) -> None:
    seen: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setitem(sys.modules, module, Calls(seen))
    done("export", results, "--track", tracker)
    logged: dict[str, float] = {}
    for name, arguments, _ in seen:
        if name == figures:
            logged |= dict([arguments]) if len(arguments) == 2 else arguments[0]
    assert logged["output_throughput"] == 20.0
    assert logged["mean_ttft_ms"] == pytest.approx(150.0)
    assert any("report" in str(arguments) for name, arguments, _ in seen if name == page)
    assert not list((results / "export").glob("*.parquet"))


def test_a_tracker_whose_package_is_missing_is_refused_with_what_to_install(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    found = call("export", results, "--track", "mlflow")
    assert found.exit_code == 2
    assert "pip install 'shard-orchestrator[mlflow]'" in found.stderr


def test_a_tracker_that_refuses_is_told_in_a_line(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refuses(ModuleType):
        def set_experiment(self, name: str) -> None:
            raise ConnectionError("no server answers")

    monkeypatch.setitem(sys.modules, "mlflow", Refuses("mlflow"))
    found = call("export", results, "--track", "mlflow")
    assert "mlflow has not taken the results: no server answers" in found.stderr


@pytest.mark.parametrize(
    "way", [("--format", "aiperf"), ("--format", "vllm-bench"), ("--track", "mlflow")]
)
def test_what_trained_is_not_exported_as_requests(tmp_path: Path, way: tuple[str, str]) -> None:
    folder = write_training(tmp_path / "llama-8b", {"fsdp2": (1.0,)})
    found = call("export", folder, *way)
    assert found.exit_code == 2
    said = " ".join(found.stderr.split())
    assert f"llama-8b trained, and {way[0]} {way[1]} takes requests that were served" in said
    assert "use --format arrow, parquet, csv" in said
