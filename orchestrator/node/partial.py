"""A calibration while it is made: what was measured is on disk after every part."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from orchestrator.errors import UserError
from orchestrator.node import fabric
from orchestrator.store.arrow_files import write_part
from workers.engines.calibration_parts import ON_ONE_DEVICE
from workers.messages import RankReport
from workers.records import FABRIC

PARTIAL = "partial"  # folders among those of a calibration, each with a number behind its name


@dataclass(slots=True)
class Partial:
    """The parts that were measured so far, in a folder of their own until the calibration is whole.
    So a whole one that was there before stays, and so does what is left of one that failed.

    out: where the calibration is to be; None: in its host's folder. table: schema FABRIC. parts:
    those that are done.
    """

    out: Path | None
    table: pa.Table | None = None
    parts: list[str] = field(default_factory=list)
    _folder: Path | None = field(default=None, init=False)

    def add(self, part: str, reports: Sequence[RankReport], nodes: Sequence[str]) -> None:
        """Keep what every rank has found in this part and in those before."""
        self.table = with_nodes(pa.concat_tables(one.fabric for one in reports), nodes)
        if self._folder is None:
            self._folder = _made_anew(self._whole)
        self._keep(self._folder, self.table)
        self.parts.append(part)

    def finish(self) -> Path:
        """Put it where a whole calibration is looked for, and return its file."""
        assert self._folder is not None
        assert self.table is not None
        self._keep(self._whole, self.table)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None
        return self._whole / fabric.FILE

    def told(self) -> str:
        """What is kept, what it is good for and what to do, in words; empty where nothing is."""
        if self._folder is None or not self.parts:
            return ""
        file, whole = self._folder / fabric.FILE, self._whole / fabric.FILE
        before = f"; {whole}, made before, stays" if whole.is_file() else ""
        return (
            f"What was measured before is kept: {file}, {_use(self.parts)}{before}. Run the "
            "command again to measure everything"
        )

    def _keep(self, folder: Path, table: pa.Table) -> None:
        """Write it; the error of one that cannot be says what is kept."""
        try:
            _write(folder, table)
        except OSError as error:
            said = _not_written(folder, error), self.told()
            raise UserError(". ".join(filter(None, said))) from error

    @property
    def _whole(self) -> Path:
        """The folder of the whole calibration."""
        assert self.table is not None
        return self.out or fabric.folder(host=self.table.column("host")[0].as_py())


def _use(parts: Sequence[str]) -> str:
    """What some parts of a calibration are good for."""
    if not set(ON_ONE_DEVICE) <= set(parts):
        return "too little to predict with"
    more = "".join(f", with {part}" for part in parts[len(ON_ONE_DEVICE) :])
    return f"which `--fabric` takes for ceilings and predictions of one device{more}"


def with_nodes(table: pa.Table, nodes: Sequence[str]) -> pa.Table:
    """The measurements, each with the number of nodes that its ranks are on. nodes: rank -> its
    node."""
    rows = FABRIC.rows(table)
    spans = [len({nodes[rank] for rank in one.group or (one.rank,)}) for one in rows]
    return FABRIC.make([replace(one, nodes=n) for one, n in zip(rows, spans, strict=True)])


def _made_anew(root: Path) -> Path:
    """A folder for a calibration that is not whole, which no other one has."""
    for number in itertools.count(1):
        try:
            (folder := root / f"{PARTIAL}-{number}").mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(_not_written(folder, error)) from error
        break
    return folder


def _write(folder: Path, table: pa.Table) -> None:
    """The measurements into `folder`, and the lines fitted to them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_part(folder / fabric.FILE, table)
    write_part(folder / fabric.FITS_FILE, fabric.FITS.make(fabric.fits(table)))


def _not_written(folder: Path, error: OSError) -> str:
    return f"{folder / fabric.FILE} cannot be written: {error.strerror}; give another --out"
