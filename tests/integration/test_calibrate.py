"""Calibration: what is measured on CPU workers, what follows from it, and what is refused."""

import contextlib
import io
import itertools
import json
import socket
import time
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
import stuck_calibration
from click.testing import CliRunner
from rich.console import Console
from tables import make

from orchestrator import cli
from orchestrator.cluster import hardware
from orchestrator.errors import UserError
from orchestrator.node import calibrate, fabric, links
from orchestrator.node.calibrate import NO_MODEL, Calibration, calibration_plan
from orchestrator.node.partial import Partial
from orchestrator.plan.installed import installed
from orchestrator.report import fabric_tables
from orchestrator.store.arrow_files import write_part
from strategies.placement import Placement
from workers import engines
from workers.engines.calibration_parts import Part, parts
from workers.engines.node_timing import QUICK_SWEEP
from workers.messages import EnginePlan, RankReport
from workers.records import FABRIC, STEPS

OPERATIONS = {"all_reduce", "all_gather", "reduce_scatter", "send_recv"}


def collective(op, size, us, factor, group=4, mode="graph"):
    algbw = size / us / 1e3
    return {
        "kind": "collective",
        "op": op,
        "group_size": group,
        "mode": mode,
        "bytes": size,
        "time_us": us,
        "algbw": algbw,
        "busbw": algbw * factor,
    }


def test_a_quick_calibration_on_cpu_workers(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "connect", lambda *_, **__: contextlib.nullcontext(ray_cluster))
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    done = CliRunner().invoke(
        cli.main, ["calibrate", "--device", "cpu", "--ranks", "2", "--quick", "--json"]
    )
    assert time.monotonic() - start < 200
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines() == [
        "Connecting to Ray.",
        "Starting 2 x cpu.",
        "[1/4] memory",
        "[2/4] matrix products",
        "[3/4] matrix products of decoding",
        "[4/4] collectives of 2 ranks",
    ]
    path = tmp_path / "results" / f"fabric-{socket.gethostname()}" / "fabric.arrow"
    assert {file.name for file in path.parent.iterdir()} == {fabric.FILE, fabric.FITS_FILE}
    table = fabric.load(path)
    assert table.schema.equals(FABRIC.schema, check_metadata=True)
    rows = table.to_pylist()
    assert {
        (row["op"], row["group_size"], row["mode"]) for row in rows if row["kind"] == "collective"
    } == {(op, 2, "eager") for op in OPERATIONS}
    assert {row["kind"] for row in rows} == {"cache", "hbm", "gemm", "decode_gemm", "collective"}
    assert all(row["time_us"] > 0 and row["algbw"] > 0 for row in rows if row["kind"] != "cache")
    found = json.loads(done.stdout)
    assert len(found["fits"]) == 4
    fits = pa.ipc.open_file(path.with_name(fabric.FITS_FILE)).read_all()
    assert fabric.FITS.rows(fits) == fabric.fits(table)
    assert "not measured" in found["left_out"]  # in one shot, on CPUs
    assert found["statistic"] == f"percentile 50 of {QUICK_SWEEP.samples} samples"
    assert found["warnings"] == []  # of CPUs nothing is asked
    assert found["datasheet"] is None
    assert found["links"] == []
    ceilings = fabric.ceilings(table, "cpu")
    assert ceilings is not None
    assert ceilings.source == "calibrated"
    rates = ceilings.rates("float32")
    assert rates is not None
    assert rates.flops > 1e8
    assert fabric.look_up(None, None).num_rows == table.num_rows


# -- a part that fails


@pytest.fixture
def failing(ray_cluster, tmp_path, monkeypatch):
    """A function that calibrates two CPU workers, of which rank 1 raises or hangs in a part, and
    returns how the command ended and the seconds that it took from that part on."""
    site, pids = stuck_calibration.install(tmp_path / "site"), tmp_path / "pids"
    pids.mkdir()
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibrate, "connect", lambda *_, **__: contextlib.nullcontext(ray_cluster))
    engine = EntryPoint(stuck_calibration.NAME, "", engines.GROUP)
    monkeypatch.setattr(calibrate.engines, "CALIBRATION", engine)

    def run(fault, at):
        def plan(*asked):
            made = calibration_plan(*asked)
            options = {"fault": fault, "at": at, "pids": str(pids)}
            return replace(made, placement=made.placement.with_options(**options))

        def limits(ranks):
            return {part: HANG_S if part == at else limit for part, limit in parts(ranks).items()}

        monkeypatch.setattr(calibrate, "calibration_plan", plan)
        monkeypatch.setattr(calibrate, "parts", limits)
        began = []
        monkeypatch.setattr(
            calibrate,
            "Part",
            lambda *_, part: began.append(time.monotonic()) or Part((), 1, part=part),
        )
        done = CliRunner().invoke(
            cli.main, ["calibrate", "--device", "cpu", "--ranks", "2", "--quick"]
        )
        left = [file.name for file in pids.iterdir() if psutil.pid_exists(int(file.name))]
        assert left == []  # also those that would wait for ever
        return done, time.monotonic() - began[-1]

    return run


HANG_S = 3.0
TWO_RANKS = "collectives of 2 ranks"


def test_what_was_measured_before_a_part_hangs_is_kept_beside_the_calibration(failing, tmp_path):
    done, seconds = failing("hang", TWO_RANKS)
    assert seconds < HANG_S + 10
    whole = Path("results", f"fabric-{socket.gethostname()}")
    kept = whole / "partial-1" / fabric.FILE
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: the calibration failed: part 4 of 4, {TWO_RANKS}: timeout: the run took longer "
        "than 3 s (rank 1 hangs: the others wait for it in the start of a group of 2). What was "
        f"measured before is kept: {kept}, which `--fabric` takes for ceilings and predictions of "
        "one device. Run the command again to measure everything"
    )
    assert not (whole / fabric.FILE).exists()
    table = fabric.load(kept.parent)  # as `--fabric` does
    kinds = {row.kind for row in FABRIC.rows(table)}
    assert kinds == {"cache", "hbm", "gemm", "decode_gemm"}
    assert {row.nodes for row in FABRIC.rows(table)} == {1}
    assert fabric.ceilings(table, "cpu").rates("float32") is not None
    assert fabric.look_up(None, None) is None  # nothing takes a part for the whole by itself


def test_a_calibration_from_before_stays_where_another_fails(failing):
    whole = fabric.folder()
    whole.mkdir(parents=True)
    before = FABRIC.make(timed(0, []))
    write_part(whole / fabric.FILE, before)
    for number in (1, 2):
        done, _ = failing("raise", "matrix products")
        kept = whole / f"partial-{number}" / fabric.FILE
        assert done.exit_code == 2
        assert done.stderr.splitlines()[-1] == (
            "error: the calibration failed: part 2 of 4, matrix products: rank 1: ValueError: told "
            f"to raise. What was measured before is kept: {kept}, too little to predict with; "
            f"{whole / fabric.FILE}, made before, stays. Run the command again to measure "
            "everything"
        )
        assert {row.kind for row in FABRIC.rows(fabric.load(kept))} == {"cache", "hbm"}
    assert fabric.look_up(None, None).equals(before)


def test_where_the_first_part_fails_nothing_is_kept(failing):
    done, _ = failing("raise", "memory")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == (
        "error: the calibration failed: part 1 of 4, memory: rank 1: ValueError: told to raise"
    )
    assert not Path("results").exists()


def reports(*rows):
    return [RankReport(0, None, STEPS.make([]), None, 0, fabric=make(FABRIC, list(rows)))]


def test_ctrl_c_says_what_is_kept(tmp_path, monkeypatch):
    def interrupted(cluster, plan, partial, tell):
        partial.add("memory", reports(timed_data(0, [])), ["a node"])
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate, "connect", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(calibrate, "_measure", interrupted)
    done = CliRunner().invoke(
        cli.main, ["calibrate", "--device=cpu", "--ranks=1", f"--out={tmp_path}"]
    )
    assert done.exit_code == 130
    assert f"is kept: {tmp_path / 'partial-1' / fabric.FILE}, too little" in done.stderr


def test_groups_that_were_measured_are_named_and_the_folder_goes_with_the_whole(tmp_path):
    partial = Partial(tmp_path)
    for part in [*parts(4)][:4]:
        partial.add(part, reports(timed_data(0, [])), ["a node"])
    assert "predictions of one device, with collectives of 4 ranks. Run" in partial.told()
    assert partial.finish() == tmp_path / fabric.FILE
    assert partial.told() == ""
    assert {file.name for file in tmp_path.iterdir()} == {fabric.FILE, fabric.FITS_FILE}


def test_what_cannot_take_its_place_is_kept_where_it_was(tmp_path):
    (tmp_path / fabric.FILE).mkdir()
    partial = Partial(tmp_path)
    partial.add("memory", reports(timed_data(0, [])), ["a node"])
    with pytest.raises(
        UserError, match=r"cannot be written: Is a directory.* is kept: .*partial-1"
    ):
        partial.finish()
    assert fabric.load(tmp_path / "partial-1").num_rows == 1


def test_four_ranks_are_measured_in_groups_of_two_and_four(calibrated):
    reports = calibrated[-1]
    rows = [row for report in reports for row in FABRIC.rows(report.fabric)]
    # CPU workers share what is measured
    assert {row.rank for row in rows if row.kind != "collective"} == {0}
    collectives = [row for row in rows if row.kind == "collective"]
    assert all(row.rank == row.group[0] for row in collectives)
    messages = {(row.op, row.group_size, row.bytes) for row in collectives if fabric.is_first(row)}
    assert messages == {
        (op, size, message)
        for op in OPERATIONS
        for size in (2, 4)
        for message in QUICK_SWEEP.messages
    }
    pairs = fabric.pairs(pa.concat_tables(report.fabric for report in reports))
    assert {(pair.a, pair.b) for pair in pairs} == set(itertools.combinations(range(4), 2))
    assert [pair.busbw for pair in pairs] == sorted(pair.busbw for pair in pairs)


# -- fits


@pytest.mark.parametrize(
    ("op", "factor"), [("all_reduce", 1.5), ("all_gather", 0.75), ("send_recv", 1.0)]
)
def test_the_fit_recovers_latency_and_bandwidth(op, factor):
    sizes = [4096 * 4**i for i in range(9)]
    rows = [collective(op, size, 17.0 + size * factor / 345e3, factor) for size in sizes]
    (fit,) = fabric.fits(make(FABRIC, rows))
    assert (fit.op, fit.group_size, fit.mode) == (op, 4, "graph")
    assert fit.alpha_us == pytest.approx(17.0, rel=1e-6)
    assert fit.beta_gb_s == pytest.approx(345.0, rel=1e-6)
    assert fit.worst < 1e-6


def test_noise_on_large_messages_leaves_the_latency_alone():
    sizes = [4096 * 4**i for i in range(9)]
    times = [
        (17.0 + size * 1.5 / 345e3) * (1.05 if i % 2 else 0.95) for i, size in enumerate(sizes)
    ]
    rows = [
        collective("all_reduce", size, time, 1.5) for size, time in zip(sizes, times, strict=True)
    ]
    (fit,) = fabric.fits(make(FABRIC, rows))
    assert fit.alpha_us == pytest.approx(17.0, rel=0.08)
    assert fit.beta_gb_s == pytest.approx(345.0, rel=0.08)
    assert fit.worst < 0.15


def test_a_latency_is_never_negative():
    rows = [
        collective("send_recv", size, us, 1.0)
        for size, us in ((1000, 0.5), (2000, 2.0), (4000, 4.0))
    ]
    (fit,) = fabric.fits(make(FABRIC, rows))
    assert fit.alpha_us == 0.0
    assert fit.beta_gb_s > 0


def test_groups_and_modes_are_fitted_apart_and_one_size_is_no_line():
    rows = [
        collective("all_reduce", size, 10.0 + size, 1.0, group, mode)
        for size in (1000, 9000)
        for group in (2, 4)
        for mode in ("eager", "graph")
    ]
    rows.append(collective("send_recv", 1000, 5.0, 1.0))
    found = [(fit.op, fit.group_size, fit.mode) for fit in fabric.fits(make(FABRIC, rows))]
    assert sorted(found) == [("all_reduce", g, m) for g in (2, 4) for m in ("eager", "graph")]


# -- in one shot


def with_one_shot():
    return [
        {**timed_data(0, []), **collective(op, size, us, factor, 2), "group": [0, 1]}
        for op, factor, times in (
            ("all_reduce", 1.0, (6.5, 7.8)),
            ("one_shot_all_reduce", 2.0, (2.8, 5.1)),
        )
        for size, us in zip((10240, 327680), times, strict=True)
    ]


def test_one_shot_is_shown_beside_nccl_and_fitted():
    rows = FABRIC.rows(make(FABRIC, with_one_shot()))
    lines = [line.split() for line in shown(rows).splitlines()]
    assert ["all_reduce", "2", "graph", "6.5", "7.8"] in lines
    assert ["one_shot_all_reduce", "2", "graph", "2.8", "5.1"] in lines
    found = {fit.op: fit.alpha_us for fit in fabric.fits(FABRIC.make(rows))}
    assert found["one_shot_all_reduce"] < 3 < found["all_reduce"]
    assert "not measured" not in shown(rows)


def test_where_one_shot_was_not_measured_it_is_said():
    rows = FABRIC.rows(make(FABRIC, with_one_shot()[:2]))
    said = "All-reduces through memory of GPUs are not measured"
    assert said in shown(rows)
    assert said not in shown(timed(0, []))  # one device has no collectives
    calibration = Calibration(Path("fabric.arrow"), FABRIC.make(rows), [])
    assert fabric_tables.as_data(calibration)["left_out"].startswith(said)


# -- the statistic, and clocks that were held down


def timed_data(rank, held, device="NVIDIA H200"):
    return {
        "host": "node",
        "device_name": device,
        "kind": "hbm",
        "op": "copy",
        "dtype": "float32",
        "rank": rank,
        "group_size": 1,
        "algbw": 4000.0,
        "time_us": 1.0,
        "percentile": 50.0,
        "samples": 7,
        "held_down": held,
    }


def timed(rank, held, device="NVIDIA H200"):
    return FABRIC.rows(make(FABRIC, [timed_data(rank, held, device)]))


CAPPED = "sw_power_cap in 40% of the samples"


def shown(rows):
    console = Console(width=200, file=io.StringIO())
    fabric_tables.render(Calibration(Path("fabric.arrow"), FABRIC.make(rows), []), console)
    return console.file.getvalue()


def test_a_calibration_says_which_percentile_it_is():
    assert fabric.statistic(timed(0, [])) == "percentile 50 of 7 samples"
    assert "Times: percentile 50 of 7 samples." in shown(timed(0, []))


def test_clocks_and_power_that_were_held_down_are_warned_of_for_each_rank():
    rows = timed(0, []) + timed(1, ["power limit 500 W, by default 700 W", CAPPED])
    warning = (
        "rank 1: held down while it was measured: power limit 500 W, by default 700 W; " + CAPPED
    )
    assert fabric.warnings(rows) == [warning]
    assert f"Warning: {warning}" in shown(rows)
    assert "lower than the devices allow" in shown(rows)
    found = fabric_tables.as_data(Calibration(Path("fabric.arrow"), FABRIC.make(rows), []))
    assert found["warnings"] == [warning]


def test_nothing_is_warned_of_where_nothing_was_held_down():
    assert "Warning" not in shown(timed(0, []))
    assert fabric.warnings(timed(0, None, "cpu")) == []


def test_a_gpu_that_nvml_does_not_know_is_said():
    assert fabric.warnings(timed(0, None)) == [
        "rank 0: not known whether clocks or power were held down"
    ]
    assert "lower than the devices allow" not in shown(timed(0, None))


def test_a_calibration_from_before_the_statistic_was_kept_can_be_read():
    old = FABRIC.make(timed(0, [])).drop_columns(["percentile", "samples", "held_down"])
    assert fabric.statistic(FABRIC.rows(old)) == "medians of several samples"
    assert fabric.ceilings(old, "NVIDIA H200").hbm == 4000e9


def test_cells_of_a_data_sheet_that_are_unknown_are_a_dash():
    text = shown(timed(0, [], "NVIDIA H800 PCIe"))
    assert "4000 GB/s" in text
    assert "Data sheet:" not in text


def test_without_a_data_sheet_there_are_no_columns_of_one():
    assert "data sheet" in shown(timed(0, [], "NVIDIA H200"))
    assert "data sheet  " not in shown(timed(0, [], "cpu"))
    assert "reached" not in shown(timed(0, [], "cpu"))


# -- the engine


def test_the_engine_is_found_by_name_and_offered_to_nobody():
    assert engines.create("calibration").processes == "per_rank"
    assert "calibration" not in engines.names()
    assert "calibration" not in [one.name for one in installed().engines]


def test_the_engine_serves_no_model():
    assert engines.create("calibration").supports(calibration_plan("cpu", 2, quick=False)) is None
    serving = EnginePlan(NO_MODEL, "tp1", Placement(), None, "float32", "cpu", 1, 1, 1)
    assert "orchestrator calibrate" in engines.create("calibration").supports(serving)


# -- refusals


def test_no_gpu_is_said_before_anything_is_started(monkeypatch):
    monkeypatch.setattr(hardware, "gpus", list)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = CliRunner().invoke(cli.main, ["calibrate", "--device", "cuda"])
    assert (done.exit_code, done.stderr) == (
        2,
        "error: there is no GPU to calibrate; use --device cpu\n",
    )


def test_a_file_that_is_no_calibration_is_said(tmp_path):
    (tmp_path / "fabric.arrow").write_text("no")
    for path in (tmp_path, tmp_path / "fabric.arrow", tmp_path / "nowhere.arrow"):
        with pytest.raises(
            UserError,
            match="holds no calibration that can be read; `orchestrator calibrate` makes one",
        ):
            fabric.load(path)


def test_a_host_that_was_not_calibrated_has_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fabric.look_up(None, tmp_path) is None


# -- links, of a NVML that is not here


class FakeNvml:
    """Four GPUs: 0 and 1 bridged by four links, 2 and 3 on a switch that has six links to each."""

    NVMLError = RuntimeError
    NVML_P2P_CAPS_INDEX_NVLINK, NVML_P2P_STATUS_OK, NVML_FEATURE_ENABLED, NVML_NVLINK_MAX_LINKS = (
        2,
        0,
        1,
        8,
    )
    PORTS = ([1] * 4, [0] * 4, [None] * 6, [None] * 6)  # what is at the other end

    class Pci:
        def __init__(self, number):
            self.busId = f"0000:{number}:00.0".encode()

    def nvmlDeviceGetP2PStatus(self, a, b, kind):
        return 0 if kind == 0 or {a, b} in ({0, 1}, {2, 3}) else 5

    def nvmlDeviceGetNvLinkState(self, gpu, link):
        if link >= len(self.PORTS[gpu]):
            raise RuntimeError("not supported")
        return 1

    def nvmlDeviceGetNvLinkRemotePciInfo(self, gpu, link):
        if self.PORTS[gpu][link] is None:
            raise RuntimeError("not told")
        return self.Pci(self.PORTS[gpu][link])

    def nvmlDeviceGetPciInfo(self, gpu):
        return self.Pci(gpu)

    def nvmlDeviceGetTopologyCommonAncestor(self, a, b):
        return 50


def test_links_are_counted_between_bridged_gpus_and_through_a_switch(monkeypatch):
    monkeypatch.setattr(
        hardware, "visible_gpus", lambda: contextlib.nullcontext((FakeNvml(), [0, 1, 2, 3]))
    )
    found = {(pair.a, pair.b): pair for pair in links.pairs()}
    assert [found[key].nvlinks for key in ((0, 1), (2, 3), (0, 2), (1, 3))] == [4, 6, 0, 0]
    assert (found[0, 2].path, found[0, 1].path, found[0, 2].p2p) == ("SYS", "NVLink", True)


def test_without_gpus_there_are_no_links(monkeypatch):
    monkeypatch.setattr(hardware, "visible_gpus", lambda: contextlib.nullcontext((None, [])))
    assert links.pairs() == []


def test_a_calibration_of_an_older_version_is_to_be_made_anew(tmp_path):
    old = FABRIC.schema.empty_table().replace_schema_metadata({"schema_version": "1"})
    fabric.folder(tmp_path).mkdir()
    file = write_part(fabric.folder(tmp_path) / fabric.FILE, old)
    with pytest.raises(UserError, match=r"schema version 1.*`orchestrator calibrate` makes a new"):
        fabric.look_up(None, tmp_path)
    assert file.is_file()
