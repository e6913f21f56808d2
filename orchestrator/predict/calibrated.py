"""What `orchestrator calibrate` measured, as figures of a prediction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from orchestrator.analysis.roofline import CALIBRATED
from orchestrator.errors import UserError
from orchestrator.node import fabric
from orchestrator.node.datasheet import name_of
from orchestrator.predict.hardware import Calibration, Curve
from strategies.traffic import FLAGGED, ONE_SHOT, TWO_SHOT

OPERATIONS = ("all_reduce", ONE_SHOT, TWO_SHOT, FLAGGED, "all_gather", "send_recv")


def calibration(path: Path, gpu: str | None = None) -> tuple[str, Calibration]:
    """The name of a kind of GPU in the table of data sheets, and the calibration of it at `path`.

    gpu: the kind that is wanted; None: whichever was measured. Raises UserError where it is of
    others.
    """
    table = fabric.load(path)
    names = (gpu,) if gpu else tuple(map(name_of, fabric.devices(table)))
    for name in names:
        found = of_table(table, name) if name else None
        if name and found:
            return name, replace(found, source=f"measured: {path.name}")
    measured = ", ".join(fabric.devices(table))
    raise UserError(f"{path} is a calibration of {measured}; asked for is {gpu or 'a GPU'}")


def of_table(table: pa.Table, gpu: str) -> Calibration | None:
    """The calibration of one kind of GPU; None where it is of others."""
    device = next((one for one in fabric.devices(table) if name_of(one) == gpu), None)
    ceilings = fabric.ceilings(table, device) if device else None
    if device is None or ceilings is None or ceilings.source != CALIBRATED:
        return None
    curves = tuple(
        Curve(op, ranks, mode, points)
        for (op, ranks, mode), points in fabric.times(table).items()
        if op in OPERATIONS
    )
    return Calibration(ceilings, curves, "measured", fabric.fp8_stream(table, device))
