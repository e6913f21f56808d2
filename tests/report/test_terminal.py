"""What is shown in a terminal: the comparison of layouts, and how far the runs are."""

import io
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from live_inputs import live
from rich.console import Console
from summaries import one_run as run

from orchestrator.analysis.comparing.compare import compare
from orchestrator.report import output, terminal


def compared(*runs):
    return compare(runs)


def shown(table, width=110):
    console = Console(file=io.StringIO(), width=width)
    terminal.render(table, console)
    return console.file.getvalue()


def headers(text):
    """The columns of each table in `text`."""
    return [line.split("layout", 1)[1] for line in text.splitlines() if line.startswith(" layout")]


def test_a_run_that_is_invalid_is_not_said_to_have_failed():
    invalid = run("tp4", 900.0, 1, status="invalid", reason="900 tok/s is above the bound")
    mixed, alone = compared(run("tp4", 10.0), invalid), compared(invalid)
    assert [cells[0].reason_status for cells in (mixed, alone)] == ["invalid", "invalid"]
    assert "tp4 (torch), one of its runs is invalid: 900 tok/s is above the bound" in shown(mixed)
    assert "tp4 (torch) is invalid: 900 tok/s is above the bound" in shown(alone)
    failed = shown(compared(run("tp4", 10.0), run("tp4", start=1, reason="timeout")))
    assert "tp4 (torch), one of its runs failed: timeout" in failed


def test_a_layout_of_which_every_run_is_invalid_shows_that_in_place_of_its_throughput():
    (cell,) = compared(run("tp4", 900.0, status="invalid", reason="900 tok/s is above the bound"))
    assert terminal.FIGURES["tok/s"](cell) == "invalid"


def test_the_table_is_plain_text_that_fits_and_tells_failures_and_that_cpu_is_no_ranking():
    wide = {
        "engine": "transformers",
        "peak_memory_bytes": 123_400_000_000,
        "median_ttft_ms": 12345.6,
        "median_tpot_ms": 123.45,
    }
    runs = [run("tp2pp2", 1e5, **wide), run("pp4", 5e4), run("dp4", reason="out_of_memory: rank 3")]
    text = shown(compared(*runs))
    assert "…" not in text + shown(compared(*runs, run("tp4", 1.0, dtype="bfloat16")), width=120)
    assert max(map(len, text.splitlines())) <= 110
    assert "…" not in shown(
        compared(run("tp2pp2", 100.0, median_ttft_ms=123.4, peak_memory_bytes=10**9)), width=80
    )
    assert "\x1b" not in text
    assert "short (256 in / 128 out) · 8 concurrent" in text
    assert not {"best", "GPUs", "/GPU"} & set(headers(text)[0].split())
    assert "workers" in headers(text)[0]
    assert "123.4 GB" in text
    assert "dp4 (torch) failed: out_of_memory: rank 3" in text
    assert "no ranking" in " ".join(text.split())
    first = [line.split()[0] for line in text.splitlines() if line.startswith((" pp4", " tp2pp2"))]
    assert first == ["pp4", "tp2pp2"]  # by name, not by throughput


LARGE = {
    "device_name": "NVIDIA H200",
    "steady_output_throughput": 12345.6,
    "bound_pct": 81.4,
    "median_ttft_ms": 12345.6,
    "median_tpot_ms": 123.45,
    "comm_exposed_pct": 12.3,
    "bubble_pct": 50.0,
    "power_valid": True,
    "joules_per_output_token": 26.361,
    "peak_memory_bytes": 123_400_000_000,
    "output_throughput_per_gpu": 6172.8,
}
OPEN = {
    "request_rate": 20.0,
    "goodput": "ttft:500",
    "request_goodput": 18.84,
    "median_schedule_delay_ms": 1234.5,
}


@pytest.mark.parametrize("width", [80, 110, 160])
@pytest.mark.parametrize("fields", [{}, OPEN, {"engine": "transformers"}, {"dtype": "bfloat16"}])
def test_a_table_leaves_columns_out_until_nothing_of_it_is_cut_or_wrapped(width, fields):
    first = run("tp2pp2", 1e4, **LARGE, **(fields if fields is OPEN else {}))
    text = shown(compared(first, run("dp2zero3", 1e3, **LARGE, **fields)), width)
    table = [line for line in text.splitlines() if line.startswith(" ") and line.strip()]
    assert "…" not in text
    assert len(table) == 4  # the header, the rule and two rows
    assert max(map(len, table)) <= width
    for name in (
        "tok/s",
        "best",
        "TTFT ms",
        "TPOT ms",
        "comm",
        *(["goodput"] if fields is OPEN else []),
    ):
        assert name in headers(text)[0]


def test_a_column_is_explained_where_it_is_shown():
    rows = compared(run("tp4", 100.0, **LARGE))
    wide, narrow = shown(rows, 160), shown(rows, 80)
    for words in ("J/tok", "26.36", "energy of the GPUs per generated token"):
        assert words in " ".join(wide.split())
    assert "J/tok" not in headers(narrow)[0]
    assert "energy" not in narrow
    assert "For J/tok" in narrow
    assert "the terminal is too narrow; --json has all." in " ".join(narrow.split())
    for text in (wide, narrow):
        assert "81%" in text
        assert (
            "of bound: tok/s in percent of what the GPUs' memory and arithmetic would allow"
            in " ".join(text.split())
        )


def test_what_held_clocks_down_and_a_failed_cross_check_are_told_below_the_table():
    off = "NVLink counters saw 1.31 of the bytes counted, 1.00 expected"
    held = {"power_capped_pct": 96.0, "clock_limited_pct": 96.0}
    text = shown(compared(run("tp4", 9.0, **held, crosscheck_reasons=off), run("pp4", 8.0)), 160)
    assert "Clocks held down by the power cap: tp4 in 96% of samples.\n" in text
    assert f"Cross-check of tp4 failed in a run: {off}.\n" in text
    quiet = shown(compared(run("tp4", 9.0), run("pp4", 8.0)), 160)
    assert "Power cap" not in quiet
    assert "Cross-check" not in quiet


def test_figures_that_nobody_has_take_no_column():
    text = shown(compared(run("tp4", 100.0)), 160)
    for name in ("of bound", "goodput", "J/tok"):
        assert name not in text
    some = shown(compared(run("tp4", 100.0, **LARGE), run("pp4", 90.0)), 160)
    pp4 = next(line for line in some.splitlines() if line.startswith(" pp4")).split()
    assert (
        pp4[
            headers(some)[0].replace("of bound", "bound").replace(" ms", "").split().index("bound")
            + 1
        ]
        == "-"
    )


def test_kernels_that_communicate_and_compute_stand_beside_what_only_communicates():
    ours = run("tp4", 110.0, comm_exposed_pct=15.9, fused_pct=0.0)
    fused = run("tp4", 115.0, engine="vllm", comm_exposed_pct=3.0, fused_pct=7.3)
    text = shown(compared(ours, fused), 160)
    meaning = "fused: share of a decode step in kernels that exchange data and compute at once"
    assert meaning in " ".join(text.split())
    rows = [line.split() for line in text.splitlines() if line.startswith(" tp4")]
    beside = {words[1]: [word for word in words if word.endswith("%")] for words in rows}
    assert beside["vllm"][-2:] == ["3.0%", "7.3%"]
    assert beside["torch"][-2:] == ["15.9%", "0.0%"]
    assert "fused" not in shown(compared(ours), 160)


def test_a_token_costs_milliseconds_of_gpus_or_of_workers():
    gpu = shown(compared(run("tp4", 100.0, device_ms_per_token=40.0, device_name="GPU")))
    assert "GPU-ms/tok" in headers(gpu)[0]
    assert "time of all GPUs of the layout for each generated token" in " ".join(gpu.split())
    cpu = shown(compared(run("tp4", 100.0, device_ms_per_token=40.0, device_name="cpu")))
    assert "worker-ms/tok" in headers(cpu)[0]
    assert "GPU-ms/tok" not in cpu
    assert "ms/tok" not in headers(shown(compared(run("tp4", 100.0))))[0]


def test_goodput_is_shown_where_it_was_asked_for():
    text = shown(compared(run("tp4", 10.0, **OPEN), run("tp4", 10.0, max_concurrency=9)))
    asked, not_asked = headers(text)
    assert "goodput" in asked
    assert "goodput" not in not_asked
    assert "18.8" in text
    assert "requests per second that met every service level" in " ".join(text.split())


def test_tables_of_one_experiment_have_the_same_columns():
    text = shown(
        compared(
            run("tp4", 1e4, **LARGE),
            run("tp4", 1.0, device_name="H200", bound_pct=1.0, max_concurrency=1),
        ),
        80,
    )
    one, two = headers(text)
    assert one.split() == two.split()
    assert "memory" in one


def test_engine_and_dtype_stand_in_the_title_unless_they_differ():
    text = shown(compared(run("tp4", 10.0), run("pp4", 9.0)))
    assert "8 concurrent · torch · float32" in text
    text = shown(compared(run("tp4", 10.0), run("tp4", 9.0, engine="deepspeed")))
    assert "8 concurrent · float32" in text
    assert headers(text)[0].split()[0] == "engine"


def test_on_a_cpu_nothing_is_said_of_ratios_and_verdicts():
    def told(device):
        each = [(name, n) for name in ("tp4", "pp4") for n in range(2)]
        return shown(compared(*(run(name, 10.0, n, device_name=device) for name, n in each)))

    assert "verdicts" in told("NVIDIA H200")
    assert "verdicts" not in told("cpu")


def test_on_a_cpu_there_are_workers_and_no_gpus():
    parts = {"comm_exposed_pct": 4.0, "bubble_pct": 8.0}
    on_cpu = shown(compared(run("pp2", 100.0, device_name="cpu", **parts)))
    on_gpu = shown(compared(run("pp2", 100.0, device_name="NVIDIA H200", **parts)))
    assert "in which workers exchange data" in " ".join(on_cpu.split())
    assert "a worker waits for another pipeline stage" in " ".join(on_cpu.split())
    assert "GPU" not in on_cpu
    assert "in which GPUs exchange data" in " ".join(on_gpu.split())


def test_the_cpu_note_is_for_cpus():
    assert "share a few cores" in shown(compared(run("tp4", 100.0, device_name="cpu")))
    assert "share a few cores" not in shown(compared(run("tp4", 100.0, device_name="NVIDIA H200")))


def test_the_comparison_as_a_picture(tmp_path):
    output.export_svg(
        lambda console: terminal.render(compared(run("tp4", 100.0)), console),
        tmp_path / "picture.svg",
    )
    picture = (tmp_path / "picture.svg").read_text()
    assert "tp4" in picture
    assert "@font-face" not in picture
    assert "url(http" not in picture


def test_outside_a_terminal_progress_is_a_line_per_finished_run(tmp_path):
    console = Console(file=io.StringIO(), width=100)
    with terminal.RunProgress(console) as progress:
        progress.begin(live(tmp_path, runs=3, skipped=1))
        progress.phase("tiny.tp4", "tiny.tp4.short.c8", "start 1/1 run 1/2")
        progress.finished(run("tp4", 10.0, median_ttft_ms=5.0, median_tpot_ms=1.0))
        progress.finished(run("tp4", run=1, reason="timeout", request_rate=2.8125))
        trace = {"request_rate": 2.8125, "trace": "60s at speed 2"}
        progress.finished(run("tp4", reason="timeout", **trace))
    lines = console.file.getvalue().splitlines()
    assert lines == [
        "1 of 4 runs have a result and are skipped.",
        "3 runs of 1 layout: how long that takes is known after the first.",
        "[1/3] tp4 torch short c8 start 1 run 1: 10.0 tok/s, TTFT 5.0 ms, TPOT 1.00 ms",
        "[2/3] tp4 torch short c8 at 2.81/s start 1 run 2: failed: timeout",
        "[3/3] tp4 torch short c8 of a trace, 60s at speed 2, start 1 run 1: failed: timeout",
    ]


def test_the_table_shows_half_the_interval_in_percent_where_there_are_two_runs():
    text = shown(
        compared(
            *(run("tp4", tokens, i) for i, tokens in enumerate((90.0, 100.0, 110.0))),
            run("pp4", 50.0),
        )
    )
    rows = [line.split() for line in text.splitlines() if line.startswith((" tp4", " pp4"))]
    assert [row[2:4] for row in rows] == [["50.0", "-"], ["100.0", "24.8%"]]
    assert "half of that mean's 95% interval" in " ".join(text.split())
    assert "±" not in shown(compared(run("tp4", 100.0)))


def test_each_group_says_which_layouts_made_the_same_tokens():
    done = [
        run(name, 10.0, output_digest="a" * 16, max_concurrency=c)
        for name in ("tp4", "dp4")
        for c in (1, 2)
    ]
    assert shown(compared(*done)).count("Output tokens: the same under dp4, tp4.") == 2
    assert "Output tokens" not in shown(compared(done[0]))


def test_repeats_come_with_a_note_on_what_they_are_worth():
    def noted(starts, runs):
        rows = [
            run(name, 10.0 + index, start, run=index, device_name="NVIDIA H200")
            for name in ("tp4", "pp4")
            for start in range(starts)
            for index in range(runs)
        ]
        return " ".join(shown(compared(*rows)).split())

    assert "Its runs share whatever was fixed when its workers were built" in noted(1, 2)
    assert "Layouts took turns, start by start" in noted(2, 1)
    assert "start by start" not in noted(1, 1)
    assert "start by start" not in shown(compared(run("tp4", 10.0), run("tp4", 11.0, 1)))


def test_starts_are_counted_where_there_are_several():
    assert "starts" not in headers(shown(compared(run("tp4", 10.0)), 160))[0]
    assert "starts" in headers(shown(compared(run("tp4", 10.0), run("tp4", 11.0, 1)), 160))[0]


def test_every_layout_that_is_not_shown_to_be_worse_is_called_best():
    values = {"tp4": (100.0, 101.0, 99.0), "dp4": (99.0, 101.0, 98.0), "pp4": (50.0, 51.0, 49.0)}
    rows = [
        run(name, x, i, device_name="NVIDIA H200")
        for name, mine in values.items()
        for i, x in enumerate(mine)
    ]
    text = shown(compared(*rows), 160)
    lines = [line for line in text.splitlines() if line.startswith((" tp4", " dp4", " pp4"))]
    assert ["best" in line for line in lines] == [True, True, False]


def test_with_one_start_each_no_layout_is_called_best():
    gpus = {"device_name": "NVIDIA H200"}
    text = shown(compared(run("tp4", 100.0, **gpus), run("pp4", 50.0, **gpus)), 160)
    tp4, pp4 = (
        next(line for line in text.splitlines() if line.startswith(f" {name}"))
        for name in ("tp4", "pp4")
    )
    assert "best" not in tp4 + pp4
    assert "100%" in tp4


def test_an_open_loop_is_named_and_shows_its_delay_where_a_closed_one_shows_its_steady_state():
    text = shown(
        compared(
            run(
                "tp4",
                10.0,
                request_rate=2.5,
                mean_schedule_delay_ms=99.9,
                median_schedule_delay_ms=12.3,
            )
        )
    )
    assert "2.5 requests/s, at most 8 concurrent" in text
    talks = shown(compared(run("tp4", 10.0, request_rate=2.5, num_conversations=3)))
    assert "2.5 conversations/s, at most 8 concurrent" in talks
    trace = shown(compared(run("tp4", 10.0, request_rate=2.8125, trace="60s at speed 2")))
    assert "a trace (60s at speed 2), 2.81 requests/s on average, at most 8 concurrent" in trace
    assert "12.3" in text
    assert "delay ms" in text
    assert "delay ms" not in shown(compared(run("tp4", 10.0, steady_output_throughput=11.0)))


def test_where_ray_is_stands_once_however_often_a_search_connects():
    console = Console(file=io.StringIO(), width=110)
    dashboard = Future()
    one, other = (SimpleNamespace(dashboard=dashboard, logs=f"/tmp/orc-{i}") for i in (1, 2))
    progress = terminal.RunProgress(console)
    for cluster in (one, one):
        progress.connected(cluster)
    dashboard.set_result("http://127.0.0.1:8265")  # it starts beside the runs
    for cluster in (other, one):
        progress.connected(cluster)
    told = [line.split()[2] for line in console.file.getvalue().splitlines()]
    assert told == ["/tmp/orc-1", "http://127.0.0.1:8265", "/tmp/orc-2"]


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (lambda one: one.set_exception(RuntimeError("no port is free")), "did not start: no port"),
        (lambda one: one.set_result(None), ""),
        (lambda one: one.cancel(), ""),  # Ray has ended before
    ],
)
def test_a_dashboard_that_does_not_start_is_told_of(end, told):
    console = Console(file=io.StringIO(), width=110)
    dashboard = Future()
    progress = terminal.RunProgress(console)
    progress.connected(SimpleNamespace(dashboard=dashboard, logs=None))
    end(dashboard)
    assert told in console.file.getvalue()
    assert bool(told) == bool(console.file.getvalue())


def test_several_experiments_are_told_apart_by_their_names_and_their_settings():
    def one(experiment, attention):
        return run("tp4", 10.0, experiment=experiment, attention=attention, fusion="on")

    shown_ = shown(compared(one("a-1", "triton"), one("a-2", "fa3"))).splitlines()
    assert "tiny (a-1), attention triton" in shown_
    assert "tiny (a-2), attention fa3" in shown_
    assert shown_.index("tiny (a-1), attention triton") < shown_.index("tiny (a-2), attention fa3")
    assert "a-1" not in shown(compared(one("a-1", "triton")))


def test_results_of_two_kinds_of_gpu_are_told_apart_by_these():
    def one(experiment, name):
        return run("tp4", 10.0, experiment=experiment, device_name=name)

    two = compared(one("a-1", "NVIDIA H100 80GB HBM3"), one("a-2", "NVIDIA H200"))
    lines = shown(two).splitlines()
    assert "tiny (a-1), NVIDIA H100 80GB HBM3" in lines
    assert "tiny (a-2), NVIDIA H200" in lines
    same = compared(one("a-1", "NVIDIA H200"), one("a-2", "NVIDIA H200"))
    assert "NVIDIA" not in shown(same)
