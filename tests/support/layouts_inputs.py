"""Small models and layouts of them, for tests of what every placement is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from strategies import (
    Installed,
    Layout,
    LayoutError,
    Load,
    ModelShape,
    Placement,
    Topology,
    discover,
    plan_layout,
)

LOAD = Load(16, 16, 8)
INSTALLED = discover()
PROPERTY = settings(deadline=None, max_examples=60)  # the machine may be busy with other tests
Make = Callable[[Placement], Placement]
DEGREES = st.sampled_from([1, 2, 3, 4, 6, 8])


def shape(**changes: int | bool) -> ModelShape:
    base = ModelShape(
        "m",
        "qwen3",
        32,
        6,
        8,
        4,
        4,
        48,
        101,
        64,
        1e-6,
        1e4,
        qkv_bias=True,
        output_bias=True,
        qk_norm=True,
    )
    return replace(base, **changes)


def planned(name: str, model: ModelShape | None = None) -> Placement:
    return plan_layout(name, model or shape(), LOAD, Topology.uniform(64), INSTALLED).placement


@st.composite
def models(draw: st.DrawFn) -> ModelShape:
    kv_heads, group = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from([1, 2, 3]))
    return shape(
        num_layers=draw(st.integers(1, 13)),
        num_kv_heads=kv_heads,
        num_heads=kv_heads * group,
        intermediate_size=draw(st.sampled_from([24, 48, 96])),
        vocab_size=draw(st.integers(8, 200)),
        tie_embeddings=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
    )


@st.composite
def layouts(draw: st.DrawFn) -> tuple[ModelShape, str, Placement]:
    """A model and a layout that it can have."""
    model = draw(models())
    if draw(st.integers(0, 4)) == 0:
        name = f"dp{draw(st.integers(2, 5))}zero3"
    else:
        parts = [
            f"tp{draw(DEGREES)}",
            f"pp{draw(st.integers(1, 5))}",
            f"dp{draw(st.integers(1, 3))}",
        ]
        name = "".join(draw(st.permutations(parts)))
    try:
        return model, name, planned(name, model)
    except LayoutError:
        return model, "tp1", Placement.single(model)


def planned_with(make: Make, name: str = "x2", model: ModelShape | None = None) -> Layout:
    """A layout with the strategy `x`, which makes what `make` makes."""

    def x(placement: Placement, *_: Any) -> Placement:
        return make(placement)

    installed = {**INSTALLED, "x": Installed("x", "x-package", x)}
    return plan_layout(name, model or shape(), LOAD, Topology.uniform(8), installed)


def refused(make: Make, message: str, name: str = "x2") -> None:
    """`make` is refused with exactly `message`, behind the strategy's name and package."""
    blame = f"{name}: the strategy 'x' from x-package made a placement that cannot run: "
    with pytest.raises(LayoutError, match=f"^{re.escape(blame + message)}$"):
        planned_with(make, name)
