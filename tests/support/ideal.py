"""An engine that reaches what the hardware allows: its times are the roofline's."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.predict import factors

IDEAL = replace(
    factors.load().of("torch"),
    stream=1.0,
    math=1.0,
    kv=1.0,
    overlap=64.0,
    layer_s=0.0,
    gap_s=0.0,
    eager_gap_s=0.0,
    collective=0.0,
    skew_s=0.0,
    turn_s=0.0,
    start_s=0.0,
    few=None,
)
