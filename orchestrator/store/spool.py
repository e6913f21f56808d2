"""Results at a URI. An object store has no append, no rename and no lock, so a driver writes to a
folder here, the spool, with all that a disk guarantees. From there each file goes up in one piece,
and after it an object that never changes: the line that the file has in the journal.

A file that replaces another one goes up after its line, so that whichever is there has one. A file
without a line counts as missing, as on a disk; so does one whose line is of another content.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import click

from orchestrator.errors import UserError
from orchestrator.experiment.places import folder_of_uri, uri_of
from orchestrator.store.arrow_files import replace_file
from orchestrator.store.claim import Claim
from orchestrator.store.journal import CHECKSUMS, LINE, NOTHING, sha256
from orchestrator.store.lock import LOCK, locked
from orchestrator.store.objects import AT_ONCE, Objects, connect, reaching, reason

LINES = f"{CHECKSUMS}.d"
OBJECT = re.compile(rf"(?:(.*)/)?{re.escape(LINES)}/([0-9]{{8}})-[0-9a-f]{{8}}")


class TwoWriters(UserError):
    """Results to which two drivers have written at a time."""


class Spool:
    """The folder of one experiment, and the objects that it becomes."""

    def __init__(self, folder: Path, objects: Objects) -> None:
        self.folder, self.objects = folder, objects
        self._up: dict[int, str] = {}  # number -> line of the journal that is there
        self._claim: Claim | None = None
        self._behind = ""  # why what is here is not all there

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Be the one that writes there, bring both sides to the same, and keep them so by `push`.

        Raises UserError where the store cannot be written, another driver writes there, or, at the
        end, not everything is there.
        """
        self._claim = claim = Claim(self.objects)
        try:
            with reaching(self.objects.uri):
                claim.take()
                self.pull()
                self._send()
            yield
            self.push()
        finally:
            self._claim = None
            claim.release(answers=not self._behind)
        if self._behind:
            raise UserError(
                f"not all results are at {self.objects.uri}: {self._behind}; they are kept in "
                f"{self.folder}, and the same command on this machine sends them"
            )

    def push(self) -> None:
        """Send what is not there yet. A store that does not answer is told, and tried again with
        the next part. Raises UserError where another driver writes there too."""
        if self._claim is None:
            return
        try:
            self._claim.check()
            self._send()
            self._behind = ""
        except OSError as error:
            if not self._behind:
                click.echo(
                    f"note: {self.objects.uri} cannot be written: {reason(error)}; results are "
                    f"kept in {self.folder} and sent later.",
                    err=True,
                )
            self._behind = reason(error)

    def pull(self) -> None:
        """Bring here what is only there, checked by its line; mend there what is damaged and whole
        here. Raises OSError where the store cannot be read, UserError where there is no room here,
        and TwoWriters."""
        self._up = self._lines_up()
        mine = self._lines()
        if any(self._up.get(number, line) != line for number, line in enumerate(mine)):
            self._set_aside()
            mine = []
        count = max(len(mine), 1 + max(self._up, default=-1))
        lines = [self._up.get(number) or _at(mine, number) for number in range(count)]
        known, up = _contents(lines), _contents(self._up.values())
        with ThreadPoolExecutor(AT_ONCE) as pool:
            settled = [
                pool.submit(self._settle, name, digests, name in up)
                for name, digests in known.items()
            ]
        for one in settled:
            one.result()
        if lines != mine:
            _write(self.folder / CHECKSUMS, "".join(f"{line}\n" for line in lines).encode())

    def _settle(self, name: str, digests: Sequence[str], is_up: bool) -> None:
        """Let a file be the same on both sides: the newer one of `digests`, which come in order.
        Any content is better than none here, for it is told. is_up: whether it should be there."""
        path = self.folder / name
        there, here = self.objects.get(name), path.read_bytes() if path.is_file() else None
        age = {None: -2} | {digest: number for number, digest in enumerate(digests)}
        age_there, age_here = age.get(_digest(there), -1), age.get(_digest(here), -1)
        if there is not None and age_there > age_here:
            _write(path, there)
        elif here is not None and age_here > age_there and is_up:
            self.objects.put(name, here)
            if age_there < 0:
                click.echo(
                    f"note: {self.objects.uri}/{name} was damaged; it is mended from {path}.",
                    err=True,
                )

    def _send(self) -> None:
        lines = self._lines()
        last = {_name(line): number for number, line in enumerate(lines)}
        for number, line in enumerate(lines):
            if number not in self._up:
                named = _contents(one for at, one in sorted(self._up.items()) if at < number)
                replaces = bool(named.get(_name(line)))
                self._send_line(number, line, last[_name(line)] == number, replaces)
                self._up[number] = line

    def _send_line(self, number: int, line: str, is_last: bool, replaces: bool) -> None:
        """Send a line, and its file where that still has this content. Between the two the store
        holds a file without a line, or one that has an earlier line."""
        digest, name = line[:64], _name(line)
        path = self.folder / name
        content = path.read_bytes() if is_last and path.is_file() else b""
        is_content = is_last and sha256(content) == digest
        if is_content and not replaces:
            self.objects.put(name, content)
        self.objects.put(f"{LINES}/{number:08}-{sha256(line.encode())[:8]}", f"{line}\n".encode())
        if is_content and replaces:
            self.objects.put(name, content)
        if is_last and digest == NOTHING:
            self.objects.delete(name)

    def _lines(self) -> list[str]:
        """The lines of the journal here."""
        path = self.folder / CHECKSUMS
        return _whole_lines(path.read_bytes()) if path.is_file() else []

    def _lines_up(self) -> dict[int, str]:
        """The lines that are there and whole, by number."""
        names = [name for name in self.objects.names(LINES) if OBJECT.fullmatch(name)]
        numbers = [_number(name) for name in names]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            contents = list(pool.map(self.objects.get, names))
        found: dict[int, str] = {}
        for number, content in zip(numbers, contents, strict=True):
            if number in found:
                raise TwoWriters(
                    f"two drivers have written to {self.objects.uri} at a time, so which of its "
                    "tables belong together is not known; measure again with another --result-dir"
                )
            found.update((number, line) for line in _whole_lines(content or b""))
        return found

    def _set_aside(self) -> None:
        """Start again from what is there: what is here has other lines, as those of a driver that
        was killed before it sent them, while another one went on."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        aside = self.folder.with_name(f"{self.folder.name}.{stamp}")
        aside.mkdir(parents=True)
        for path in self.folder.iterdir():
            if path.name != LOCK:
                path.rename(aside / path.name)
        click.echo(
            f"note: another driver has gone on at {self.objects.uri}; what was only here is moved "
            f"to {aside}.",
            err=True,
        )


def spool_of(folder: Path) -> Spool | None:
    """What stands between a folder and a store; None where the folder is the place itself. Raises
    UserError where the store does not answer or lacks the bucket."""
    uri = uri_of(folder)
    return Spool(folder, connect(uri)) if uri else None


def restore(folder: Path) -> None:
    """Bring to the folder of an experiment what its store has. Raises UserError where that cannot
    be, or another process writes there."""
    spool = spool_of(folder)
    if spool is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder), reaching(spool.objects.uri):
        spool.pull()


def download(uri: str, root: Path) -> Path:
    """Bring the results at or below a URI to a folder under `root`, and return it. Each file is
    what its checksum says, or is told when it is read.

    Raises UserError where there are none, the store cannot be reached, or two drivers wrote them.
    """
    folder = folder_of_uri(uri, root)
    objects = connect(uri.rstrip("/"))
    with reaching(uri):
        found = {match[1] or "" for name in objects.names() if (match := OBJECT.fullmatch(name))}
        for inner in sorted(found):
            Spool(folder / inner, objects.below(inner)).pull()
    if not found:
        raise UserError(f"there are no results at {uri}; give the URI that `submit` was given")
    return folder


def _whole_lines(content: bytes) -> list[str]:
    """The lines of a journal. One without an end was being written when its driver died."""
    texts = content.decode(errors="replace").split("\n")[:-1]
    return [text for text in texts if LINE.fullmatch(text) and _is_inside(_name(text))]


def _is_inside(name: str) -> bool:
    """Whether a name is of a file in the folder itself, whoever wrote it."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _name(line: str) -> str:
    return line[66:]


def _contents(lines: Iterable[str]) -> dict[str, list[str]]:
    """File -> the digests that it may have, in order; none where there should be no such file."""
    found: dict[str, list[str]] = {}
    for line in lines:
        digest, name = line[:64], _name(line)
        found[name] = [] if digest == NOTHING else [*found.get(name, ()), digest]
    return {name: digests for name, digests in found.items() if digests}


def _at(lines: Sequence[str], number: int) -> str:
    """A line; where it is gone, one that names nothing, so that those after it keep their
    number."""
    return lines[number] if number < len(lines) else f"{NOTHING}  {LINES}/{number:08}"


def _number(name: str) -> int:
    match = OBJECT.fullmatch(name)
    assert match is not None, "it was found by it"
    return int(match[2])


def _digest(content: bytes | None) -> str | None:
    return None if content is None else sha256(content)


def _write(path: Path, content: bytes) -> None:
    """Keep a file here. Raises UserError where there is no room: that is not the store's fault."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda temporary: temporary.write_bytes(content))
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}; what is at the URI is kept there too, so "
            "make room on this disk"
        ) from error
