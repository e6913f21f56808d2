"""What `orchestrator calibrate` measured, as figures of a prediction."""

from __future__ import annotations

from pathlib import Path

from orchestrator.analysis.roofline import CALIBRATED
from orchestrator.errors import UserError
from orchestrator.node import fabric
from orchestrator.node.datasheet import name_of
from orchestrator.predict.hardware import Calibration, Curve

OPERATIONS = ("all_reduce", "all_gather", "send_recv")


def calibration(path: Path, gpu: str | None = None) -> tuple[str, Calibration]:
    """The name of a kind of GPU in the table of data sheets, and the calibration of it at `path`.

    gpu: the kind that is wanted; None: whichever was measured. Raises UserError where it is of
    others.
    """
    table = fabric.load(path)
    found = {name: one for one in fabric.devices(table) if (name := name_of(one)) is not None}
    name = next(iter(found), None) if gpu is None else gpu
    ceilings = fabric.ceilings(table, found.get(name)) if name else None
    if name is None or name not in found or ceilings is None or ceilings.source != CALIBRATED:
        measured = ", ".join(fabric.devices(table))
        raise UserError(f"{path} is a calibration of {measured}; asked for is {gpu or 'a GPU'}")
    curves = tuple(
        Curve(op, ranks, mode, points)
        for (op, ranks, mode), points in fabric.times(table).items()
        if op in OPERATIONS
    )
    return name, Calibration(ceilings, curves, f"measured: {path.name}")
