"""What is on disk of the first cell, and what of it a strike has taken away."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.store.folders import MANIFEST
from orchestrator.store.journal import CHECKSUMS
from orchestrator.store.store import OBSERVED_TABLES, RUN_TABLES

# Fields of the manifest that later commands set again, or add to.
GROWING = ("updated_at", "finished_at", "blocks")


@dataclass(frozen=True, slots=True)
class Kept:
    """parts: content by path, of every table of the first cell: its run is over before the second
    one begins, what was observed of it is there if it was. lines: the whole ones of the journal.
    manifest: the fields that stay. blocks: how many commands it names."""

    parts: Mapping[str, bytes]
    lines: tuple[bytes, ...]
    manifest: Mapping[str, object]
    blocks: int

    @property
    def count(self) -> int:
        """How many parts, lines and fields there are."""
        return len(self.parts) + len(self.lines) + len(self.manifest)

    def lost(self, now: Kept) -> list[str]:
        """What was there and is gone or changed."""
        found = [path for path, data in self.parts.items() if now.parts.get(path) != data]
        if now.lines[: len(self.lines)] != self.lines:
            found.append(CHECKSUMS)
        if now.blocks < self.blocks or not self.manifest.items() <= now.manifest.items():
            found.append(MANIFEST)
        return found


def kept(results: Path) -> Kept:
    """What there is in the folder below `results`. A manifest that cannot be read has no fields."""
    journals = b"".join(path.read_bytes() for path in results.rglob(CHECKSUMS))
    fields = _manifest(results)
    return Kept(
        {str(path.relative_to(results)): path.read_bytes() for path in _parts(results)},
        tuple(journals.split(b"\n")[:-1]),
        {name: json.dumps(value) for name, value in fields.items() if name not in GROWING},
        len(fields.get("blocks", ())),
    )


def _parts(results: Path) -> Iterator[Path]:
    for tables, name in ((RUN_TABLES, "*.c1.s0.r0.arrow"), (OBSERVED_TABLES, "*.c1.s0.arrow")):
        yield from (path for path in results.rglob(name) if path.parent.name in tables)


def _manifest(results: Path) -> dict[str, list[object]]:
    try:
        return dict(json.loads(next(results.rglob(MANIFEST)).read_text()))
    except (StopIteration, ValueError):
        return {}
