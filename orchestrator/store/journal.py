"""Checksums of the files of one experiment, in the form that `sha256sum --check` reads.

A line is appended and synced before the file that it is of gets its name. So a file without its
line was not kept whole; and as any line of a path may match, one that is replaced is never lost.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import click

from orchestrator.store.arrow_files import replace_file

CHECKSUMS = "SHA256SUMS"
NOTHING = "0" * 64  # in place of a digest: from this line on there is no such file
MOST_TOLD = 10  # files of an experiment: where the journal is damaged, each of them is
LINE = re.compile(r"([0-9a-f]{64})  (.+)")

Stamp = tuple[int, ...]
Digests = Mapping[str, frozenset[str]]


class Journal:
    """The checksums in one folder. Paths in it are relative to the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / CHECKSUMS
        self._digests: tuple[Stamp | None, Digests] = (None, {})
        self._seen: dict[
            Path, tuple[Stamp, str]
        ] = {}  # checksums, as long as the stamp is the same

    @property
    def exists(self) -> bool:
        """Whether the folder has checksums: results from before there were any have none."""
        return os.path.lexists(self.path)

    def begin(self, there: Iterable[Path] = ()) -> None:
        """Make the journal where there is none yet, with the files that are there as they are."""
        if self.exists:
            return
        lines = [self._line(sha256(path.read_bytes()), path) for path in there]
        replace_file(self.path, lambda temporary: temporary.write_bytes(b"".join(lines)))

    def write(self, path: Path, write: Callable[[Path], Any]) -> Path:
        """Let `write` fill the file at `path`: there whole, with its checksum, or not at all."""
        return replace_file(
            path, write, lambda temporary: self._append(sha256(temporary.read_bytes()), path)
        )

    def drop(self, path: Path) -> None:
        """Let there be no file at `path`."""
        if path.exists() or self.knows(path):
            self._append(NOTHING, path)
            path.unlink(missing_ok=True)

    def knows(self, path: Path) -> bool:
        """Whether there should be a file at `path`."""
        return bool(self.digests.get(self._name(path)))

    def known_in(self, folder: Path) -> set[Path]:
        """The files that should be in `folder`."""
        paths = (self.folder / name for name, found in self.digests.items() if found)
        return {path for path in paths if path.parent == folder}

    def read(self, path: Path) -> bytes | None:
        """The content of a file, None where it is not what was written: that is told."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            tell(self.folder, path, f"it is gone, though {CHECKSUMS} names it")
            return None
        except OSError as error:
            tell(self.folder, path, f"it cannot be read: {error.strerror}")
            return None
        return content if self._is_that_of(path, sha256(content)) else None

    def is_sound(self, path: Path) -> bool:
        """Whether a file is what was written. Its content is read again only after a change."""
        try:
            stamp = _stamp(path)
            if self._seen.get(path, (None,))[0] != stamp:
                self._seen[path] = stamp, sha256(path.read_bytes())
        except OSError:
            return self.read(path) is not None
        return self._is_that_of(path, self._seen[path][1])

    def _is_that_of(self, path: Path, digest: str) -> bool:
        """Whether a file with this checksum may be at `path`; one that may not is told."""
        if not self.exists:
            if path.suffix == ".arrow":  # of a manifest people see what it says
                _tell_unverified(self.folder)
            return True
        known = self.digests.get(self._name(path))
        if known and digest in known:
            return True
        tell(
            self.folder,
            path,
            "its checksum is another one" if known else f"{CHECKSUMS} does not name it",
        )
        return False

    @property
    def digests(self) -> Digests:
        """Path -> every checksum that it may have; none where the journal cannot be read, which is
        told where there is one."""
        try:
            stamp = _stamp(self.path)
            if self._digests[0] != stamp:
                self._digests = stamp, _digests(self.path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):  # there is no such folder
            return {}
        except OSError as error:
            tell(self.folder, self.path, f"it cannot be read: {error.strerror}")
            return {}
        return self._digests[1]

    def _append(self, digest: str, path: Path) -> None:
        """Add a line, on disk when this returns. It goes to the end by one call, so that nobody
        else's is overwritten. What a crash left of a line stays one by itself."""
        self.begin()
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND)
        try:
            size = os.fstat(handle).st_size
            torn = os.pread(handle, 1, max(0, size - 1)) not in (b"", b"\n")
            line = b"\n" * torn + self._line(digest, path)
            if os.write(handle, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
        finally:
            os.close(handle)

    def _line(self, digest: str, path: Path) -> bytes:
        return f"{digest}  {self._name(path)}\n".encode()

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def sha256(content: bytes) -> str:
    """The checksum of a file's content, 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def tell(folder: Path, path: Path, why: str) -> None:
    """Say on stderr that a file of the experiment in `folder` is damaged, and so counts as missing:
    of the first `MOST_TOLD`, and then that there are more."""
    before = told(folder)
    if (path, why) in before:
        return
    before.add((path, why))
    if len(before) <= MOST_TOLD:
        click.echo(f"note: {path} counts as missing: {why}.", err=True)
    elif len(before) == MOST_TOLD + 1:
        click.echo(
            f"note: more files in {folder} count as missing; `sha256sum --check {CHECKSUMS}` there "
            "names them.",
            err=True,
        )


@cache  # each line once a process: a table may be read more than once
def told(folder: Path) -> set[tuple[Path, str]]:
    """What was told of the files of an experiment."""
    return set()


@cache
def _tell_unverified(folder: Path) -> None:
    click.echo(
        f"note: {folder} has no {CHECKSUMS}: it is from before there were checksums, and is read "
        "as it is.",
        err=True,
    )


def _digests(content: bytes) -> Digests:
    found: dict[str, frozenset[str]] = {}
    for line in content.decode(errors="replace").split("\n"):
        match = LINE.fullmatch(line)
        if match:
            digest, name = match.groups()
            kept = frozenset() if digest == NOTHING else found.get(name, frozenset()) | {digest}
            found[name] = kept
    return found


def _stamp(path: Path) -> Stamp:
    """Changes whenever a file does, as far as the clock of the file system is fine enough."""
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns
