"""Results at a URI, against a real S3 server: what is there after each crash, and who is told."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import object_store
import pytest
from click.testing import CliRunner, Result
from driver_inputs import deployment, run
from fake_group import installed
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem
from stores import CELL, RUN, observed_tables, run_tables
from summaries import write_run

from orchestrator.cli import main
from orchestrator.commands.jobs import _root
from orchestrator.errors import UserError
from orchestrator.experiment import Experiment, Run
from orchestrator.run import driver
from orchestrator.store import claim, spool
from orchestrator.store.folders import folder_of
from orchestrator.store.objects import Objects
from orchestrator.store.spool import TwoWriters, download, restore
from orchestrator.store.store import Store

TABLES = {"requests", "collectives"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with object_store.s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def at(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Objects:
    """An empty place in the bucket, which the client of this test finds, and an empty spool."""
    for name, value in object_store.environment(endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(claim, "WATCH_S", 0.1)
    elsewhere(tmp_path / "spool", monkeypatch)
    return object_store.folder(endpoint, tmp_path.name)


def elsewhere(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go on as on another machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def store_at(at: Objects) -> Store:
    return Store(folder_of(Experiment(result_dir=at.uri)))


def there(at: Objects, store: Store) -> Objects:
    return at.below(store.folder.name)


def write_all(store: Store) -> None:
    with store.opened():
        store.update_manifest(started_at="2026-01-01")
        write_run(store, RUN, run_tables())
        store.update_manifest(finished_at="2026-01-02")


def the_same(left: Store, right: Store) -> bool:
    tables = ("summary", *TABLES, "parts")
    return all(left.read(table) == right.read(table) for table in tables) and (
        left.manifest() == right.manifest()
    )


# -- what goes up


def test_each_part_goes_up_whole_and_its_checksum_after_it(
    at: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    put = Objects.put
    monkeypatch.setattr(
        Objects, "put", lambda self, name, content: (sent.append(name), put(self, name, content))
    )
    store = store_at(at)
    write_all(store)
    sent = [name for name in sent if name != claim.WRITER]
    lines = [name for name in sent if name.startswith("SHA256SUMS.d/")]
    assert len(lines) == len(set(lines)), "a line is never changed"
    part = f"requests/{RUN.name}.arrow"
    assert sent.count(part) == 1
    line = there(at, store).get(sent[sent.index(part) + 1])
    assert line is not None
    assert line.decode().endswith(f"  {part}\n")
    first, second = (number for number, name in enumerate(sent) if name == "manifest.json")
    assert sent[first + 1] == lines[0]
    assert sent[second - 1] == lines[-1], "a file that replaces one has its line first"


def test_nothing_but_results_is_left_there(at: Objects) -> None:
    store = store_at(at)
    write_all(store)
    names = there(at, store).names()
    assert {name for name in names if not name.startswith("SHA256SUMS.d/")} == {
        "manifest.json",
        *(f"{table}/{RUN.name}.arrow" for table in ("summary", *TABLES)),
    }


def test_a_machine_with_an_empty_spool_goes_on(
    at: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store_at(at)
    write_all(first)
    with first.opened():
        first.write_observed(CELL, 0, observed_tables())
    elsewhere(tmp_path / "other", monkeypatch)
    second = store_at(at)
    assert second.folder != first.folder
    restore(second.folder)
    assert second.is_completed(RUN)
    assert the_same(first, second)
    more = Run(CELL, 1, 0)
    with second.opened():
        write_run(second, more, run_tables())
    elsewhere(tmp_path / "spool", monkeypatch)
    with first.opened():
        assert first.is_completed(more)
    assert the_same(first, second)


def test_an_experiment_goes_on_from_its_uri(
    at: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch)
    layouts = [deployment("tp1")]
    first, _ = run(layouts, tmp_path, result_dir=at.uri, num_warmups=0)
    elsewhere(tmp_path / "other", monkeypatch)
    restore(folder_of(Experiment(result_dir=at.uri, num_warmups=0)))
    second, seen = run(layouts, tmp_path, result_dir=at.uri, num_warmups=0, num_starts=2)
    assert (seen.asked, seen.runs()) == ((1, 1), [("tp1", 1, 0)])
    assert second.folder != first.folder
    assert len(there(at, second).names("summary")) == 2


def test_what_is_dropped_goes_there_too(at: Objects) -> None:
    store = store_at(at)
    write_all(store)
    with store.opened():
        write_run(store, RUN, {"requests": run_tables()["requests"]})
    assert f"collectives/{RUN.name}.arrow" not in there(at, store).names()
    copy = Store(download(at.uri, store.folder.parents[4] / "copy") / store.folder.name)
    assert the_same(store, copy)


def test_a_full_disk_here_is_not_taken_for_a_store_that_does_not_answer(
    in_memory: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(store_at(in_memory))
    elsewhere(tmp_path / "other", monkeypatch)

    def full(path: Path, fill: object) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(spool, "replace_file", full)
    with pytest.raises(UserError, match=r"No space left on device; .* make room on this disk"):
        restore(store_at(in_memory).folder)


def test_a_folder_by_its_uri_is_that_folder(tmp_path: Path) -> None:
    asked = Experiment(result_dir=(tmp_path / "a b").as_uri())
    assert asked == Experiment(result_dir=tmp_path / "a b")


# -- what dies


class Killed(BaseException):
    """A driver that does nothing more."""


@contextlib.contextmanager
def killed_at(request: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, the driver dies in place of its upload number `request`."""
    count = iter(range(request))
    ended = threading.Event()

    def dying(method: Callable[..., object]) -> Callable[..., object]:
        def call(self: Objects, name: str, *content: bytes) -> object:
            if name == claim.WRITER and not ended.is_set():
                return method(self, name, *content)
            if ended.is_set() or (content and next(count, None) is None):
                ended.set()
                raise Killed
            return method(self, name, *content)

        return call

    with monkeypatch.context() as patch:
        for name in ("put", "delete"):
            patch.setattr(Objects, name, dying(getattr(Objects, name)))
        yield


UPLOADS = 10  # the manifest, three parts, the manifest again, and their lines


@pytest.fixture
def in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Objects:
    """A store of this process, for what is tried at every upload."""
    files = PyFileSystem(FSSpecHandler(MemoryFileSystem()))
    monkeypatch.setattr(spool, "connect", lambda uri: Objects(uri, files, uri.removeprefix("s3:/")))
    monkeypatch.setattr(claim, "RENEW_S", 0.1)
    monkeypatch.setattr(claim, "WATCH_S", 0.02)
    elsewhere(tmp_path / "spool", monkeypatch)
    root = f"/memory/{tmp_path.name}"
    return Objects(f"s3:/{root}", files, root)


@pytest.mark.parametrize("keeps_spool", [True, False], ids=["spool kept", "spool lost"])
@pytest.mark.parametrize("request_", range(UPLOADS))
def test_a_driver_that_dies_between_any_two_uploads_loses_at_most_its_run(
    in_memory: Objects,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keeps_spool: bool,
    request_: int,
) -> None:
    dies_and_resumes(in_memory, tmp_path, monkeypatch, keeps_spool, request_)


def test_a_driver_that_dies_between_a_part_and_its_checksum_in_s3_loses_at_most_its_run(
    at: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies_and_resumes(at, tmp_path, monkeypatch, False, 7)


def dies_and_resumes(
    at: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keeps_spool: bool, request_: int
) -> None:
    with killed_at(request_, monkeypatch), pytest.raises(Killed):
        write_all(store_at(at))
    if not keeps_spool:
        elsewhere(tmp_path / "other", monkeypatch)
    store = store_at(at)
    with store.opened():
        held = {table for table in TABLES if store.read(table)}
        assert held == TABLES or not store.is_completed(RUN)
        assert bool(store.manifest()) == (keeps_spool or request_ > 1)
        assert store.is_completed(RUN) == (request_ > (1 if keeps_spool else 7))
        if not store.is_completed(RUN):
            write_run(store, RUN, run_tables())
        store.update_manifest(finished_at="2026-01-02")
    copy = Store(download(at.uri, tmp_path / "copy") / store.folder.name)
    assert copy.is_completed(RUN)
    assert the_same(store, copy)


def test_a_spool_that_another_machine_left_behind_is_moved_away(
    at: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_at(at)
    with killed_at(4, monkeypatch), pytest.raises(Killed):
        write_all(store)
    elsewhere(tmp_path / "other", monkeypatch)
    other = store_at(at)
    with other.opened():
        write_run(other, RUN, run_tables(), output_throughput=7.0)
    elsewhere(tmp_path / "spool", monkeypatch)
    with store.opened():
        assert the_same(store, other)
    (aside,) = (path for path in store.folder.parent.iterdir() if path != store.folder)
    assert (aside / "summary" / f"{RUN.name}.arrow").is_file()
    assert f"moved to {aside}" in capsys.readouterr().err


def test_a_store_that_stops_answering_costs_no_run(
    at: Objects, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_at(at)

    def refuse(self: Objects, name: str, content: bytes) -> None:
        raise OSError("AWS Error NETWORK_CONNECTION")

    def measure() -> None:
        with monkeypatch.context() as patch, store.opened():
            patch.setattr(Objects, "put", refuse)
            write_run(store, RUN, run_tables())
            write_run(store, Run(CELL, 1, 0), run_tables())

    with pytest.raises(UserError, match="same command on this machine sends them"):
        measure()
    assert capsys.readouterr().err.count("results are kept in") == 1
    assert there(at, store).names("summary") == []
    with store.opened():
        assert len(there(at, store).names("summary")) == 2


# -- what is damaged there


@pytest.mark.parametrize("damage", [b"", b"x"], ids=["cut", "changed"])
def test_a_part_that_is_damaged_there_is_mended_from_the_spool_or_measured_again(
    at: Objects,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: bytes,
) -> None:
    store, part = store_at(at), f"requests/{RUN.name}.arrow"
    write_all(store)
    whole = there(at, store).get(part)
    there(at, store).put(part, damage)
    with store.opened():
        assert there(at, store).get(part) == whole
    assert "was damaged; it is mended" in capsys.readouterr().err
    there(at, store).put(part, damage)
    elsewhere(tmp_path / "other", monkeypatch)
    other = store_at(at)
    with other.opened():
        assert not other.is_completed(RUN)
        assert "its checksum is another one" in capsys.readouterr().err
        write_run(other, RUN, run_tables())
    assert Store(download(at.uri, tmp_path / "copy") / store.folder.name).is_completed(RUN)


def test_a_checksum_that_is_gone_or_damaged_there_is_mended_from_the_spool(at: Objects) -> None:
    store = store_at(at)
    write_all(store)
    objects = there(at, store)
    first, second, *_ = lines = objects.names("SHA256SUMS.d")
    before = [objects.get(name) for name in lines]
    objects.delete(first)
    objects.put(second, b"?")
    with store.opened():
        assert [objects.get(name) for name in lines] == before


def test_without_its_checksum_a_part_counts_as_missing(at: Objects, tmp_path: Path) -> None:
    store = store_at(at)
    write_all(store)
    objects = there(at, store)
    (line,) = (
        name
        for name in objects.names("SHA256SUMS.d")
        if f"  summary/{RUN.name}.arrow" in str(objects.get(name))
    )
    objects.delete(line)
    assert not Store(download(at.uri, tmp_path / "copy") / store.folder.name).is_completed(RUN)


def test_a_checksum_cannot_name_a_file_outside_its_folder(at: Objects, tmp_path: Path) -> None:
    store = store_at(at)
    write_all(store)
    for number, name in ((90, "../../outside"), (91, f"{tmp_path}/outside")):
        there(at, store).put(
            f"SHA256SUMS.d/{number:08}-00000000", f"{'0' * 63}1  {name}\n".encode()
        )
    copy = download(at.uri, tmp_path / "copy")
    assert Store(copy / store.folder.name).is_completed(RUN)
    assert not list(tmp_path.rglob("outside"))


# -- two writers


def test_a_second_driver_leaves_while_the_first_one_lives(
    at: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "RENEW_S", 0.2)
    first = store_at(at)
    with first.opened():
        elsewhere(tmp_path / "other", monkeypatch)
        monkeypatch.setattr(claim, "WATCH_S", 60.0)  # it leaves at the first sign of life
        second = store_at(at)
        with pytest.raises(UserError, match=r"pid \d+ on .* is writing to s3://"):
            second._sent().__enter__()
        write_run(first, RUN, run_tables())
    assert claim.WRITER not in there(at, first).names()


def test_a_driver_whose_place_was_taken_stops_at_its_next_write(
    at: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store_at(at)
    other = json.dumps({"host": "b", "pid": 1, "token": "other"}).encode()

    def measure() -> None:
        with first.opened():
            there(at, first).put(claim.WRITER, other)
            write_run(first, RUN, run_tables())

    with pytest.raises(UserError, match=r"pid 1 on b writes to s3://.* too"):
        measure()
    assert there(at, first).get(claim.WRITER) == other
    assert first.is_completed(RUN), "what it has measured is kept in its spool"
    assert there(at, first).names("summary") == []


def test_results_of_two_drivers_at_a_time_are_not_taken_for_one(
    at: Objects, tmp_path: Path
) -> None:
    store = store_at(at)
    write_all(store)
    line = f"{'0' * 63}1  summary/{RUN.name}.arrow\n"
    there(at, store).put("SHA256SUMS.d/00000001-00000000", line.encode())
    with pytest.raises(TwoWriters, match="two drivers have written"):
        restore(store.folder)
    with pytest.raises(TwoWriters):
        download(at.uri, tmp_path / "copy")


# -- who reads it


def ran(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_what_reads_results_reads_them_by_their_uri(at: Objects, tmp_path: Path) -> None:
    store = store_at(at)
    write_all(store)
    uri = f"{at.uri}/{store.folder.name}"
    for words in (("compare",), ("runs",)):
        here, by_uri = (ran(*words, place, "--json") for place in (store.folder, uri))
        assert (by_uri.exit_code, by_uri.output) == (here.exit_code, here.output)
        assert here.exit_code == 0
    (listed,) = json.loads(ran("runs", at.uri, "--json").stdout)
    assert (listed["folder"], listed["completed"]) == (uri, 1)
    for words in (
        ("report", "--out", "page.html"),
        ("export", "--out", "e"),
        ("pack", "--out", "p"),
    ):
        assert ran(words[0], uri, "--out", tmp_path / words[2]).exit_code == 0
        assert (tmp_path / words[2]).exists()


@pytest.mark.parametrize("command", ["report", "export", "pack", "trace"])
def test_what_writes_beside_results_says_how_to_bring_them_here(at: Objects, command: str) -> None:
    store = store_at(at)
    write_all(store)
    done = ran(command, at.uri)
    assert done.exit_code == 2
    assert f"orchestrator fetch {at.uri}" in done.stderr


def test_fetch_brings_results_here_as_they_are(at: Objects, tmp_path: Path) -> None:
    store = store_at(at)
    write_all(store)
    out = tmp_path / "here"
    uri = f"{at.uri}/{store.folder.name}"
    done = ran("fetch", uri, "--out", out)
    assert (done.exit_code, done.stdout.strip()) == (0, str(out / store.folder.name))
    assert the_same(Store(out / store.folder.name), store)
    assert "is there already" in ran("fetch", uri, "--out", out).stderr
    assert "there are no results at" in ran("fetch", f"{uri}/requests", "--out", out).stderr
    assert [path.name for path in out.iterdir()] == [store.folder.name]


@pytest.mark.parametrize("command", ["pack", "import", "export"])
def test_a_folder_to_be_written_here_is_no_uri(tmp_path: Path, command: str) -> None:
    done = ran(command, tmp_path, "--out", "s3://bucket/a")
    assert done.exit_code == 2
    assert "is a URI" in done.stderr


def test_results_are_not_read_from_a_folder_of_another_host() -> None:
    done = ran("compare", "file://host/a")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "'file://host/a' is no place for results; give a folder" in done.stderr


def test_a_job_is_given_the_uri() -> None:
    asked = Experiment(result_dir="s3://bucket/my results")
    assert _root(asked.result_dir, "tiny-1") == "'s3://bucket/my results/tiny-1'"


# -- before a device is taken


@pytest.mark.parametrize(
    ("uri", "variables", "said"),
    [
        ("s3://no-such-bucket/a", {}, "there is no bucket 'no-such-bucket'"),
        ("s3://results/a", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "cannot be reached"),
        ("s3://results/a?region=x", {}, "come from the environment"),
        ("ftp://host/a", {}, "is no place for results"),
    ],
)
def test_a_place_that_cannot_be_reached_is_one_line_before_anything_is_taken(
    at: Objects, monkeypatch: pytest.MonkeyPatch, uri: str, variables: dict[str, str], said: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(driver, "connect", None)
    for words in (("submit", "--device", "cpu", "--result-dir"), ("compare",), ("runs",)):
        done = ran(*words, uri)
        assert done.exit_code == 2, done.output
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert said in line
