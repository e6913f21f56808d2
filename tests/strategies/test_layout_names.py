"""Names of layouts: what they mean, and what is refused and how."""

from __future__ import annotations

import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from layouts_inputs import INSTALLED, LOAD, planned, shape

from strategies import Installed, LayoutError, Placement, Topology, discover, parse, plan_layout
from strategies.registry import GROUP, spelled


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("tp4", "tp4"),
        ("TP4", "tp4"),
        ("pp2tp2", "tp2pp2"),
        ("3d", "tp2pp2"),
        ("tp2pp2dp1", "tp2pp2"),
        ("dp2pp3tp2", "tp2pp3dp2"),
        ("tp1", "tp1"),
        ("pp1dp1", "tp1"),
        ("zero3dp4", "dp4zero3"),
    ],
)
def test_a_layout_has_one_canonical_name(name: str, canonical: str) -> None:
    assert plan_layout(name, shape(), LOAD, Topology.uniform(12), INSTALLED).name == canonical
    assert spelled(name) == canonical


def test_a_name_is_keys_with_numbers() -> None:
    assert parse("tp2pp16") == (("tp", 2), ("pp", 16))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("four", "'four' is not a layout; write strategy and number, as in tp4"),
        ("", "'' is not a layout"),
        ("tp", "not a layout"),
        ("4tp", "not a layout"),
        ("tp-2", "not a layout"),
        ("xx3", "there is no strategy 'xx'\\. Installed: dp"),
        ("tp2pq2", "did you mean 'tp2pp2'\\?"),
        ("tq4", "there is no strategy 'tq'; did you mean 'tp4'\\? Installed: dp, .*pp, tp, zero"),
        ("tp0", "tp0 makes no sense; numbers go from 1 to 4096"),
        ("dp999999999", "dp999999999 makes no sense"),
        ("tp2tp2", "a strategy is named twice"),
        ("tp3", "8 heads of m do not divide over tp=3; use 1, 2, 4, 8"),
        ("pp7", "pp=7 is more stages than m has layers; use 1 to 6"),
        ("zero2dp2", "zero2 cuts nothing that inference holds .* use zero3"),
        (
            "zero3",
            "zero3 cuts parameters over data-parallel replicas; name them too, as in dp4zero3",
        ),
        ("tp2dp2zero3", "zero3 is run beside dp alone"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        planned(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_heads": 6, "num_kv_heads": 6},
            "6 heads of m do not divide over tp=4; use 1, 2, 3, 6",
        ),
        ({"num_heads": 12, "num_kv_heads": 6}, "6 KV heads of m do not divide over tp=4"),
        ({"intermediate_size": 50}, "50 MLP columns of m do not divide over tp=4; use 1, 2"),
    ],
)
def test_tensor_parallelism_says_what_does_not_divide(
    changes: dict[str, int], message: str
) -> None:
    with pytest.raises(LayoutError, match=message):
        planned("tp4", shape(**changes))


def test_a_broken_strategy_is_named_and_the_others_work() -> None:
    installed = {
        **INSTALLED,
        "bad": Installed("bad", "bad-package", None, "ImportError: no such thing"),
    }
    assert plan_layout("tp2", shape(), LOAD, Topology.uniform(2), installed).name == "tp2"
    with pytest.raises(
        LayoutError, match="'bad' from bad-package could not be loaded: ImportError: no such thing"
    ):
        plan_layout("bad2", shape(), LOAD, Topology.uniform(2), installed)


def fails(*_: Any) -> Placement:
    raise ZeroDivisionError("by zero")


@pytest.mark.parametrize(
    ("refine", "why"),
    [
        (lambda *_: None, "it returned NoneType, not a Placement"),
        (fails, "ZeroDivisionError: by zero"),
        (3, "TypeError: 'int'"),
    ],
)
def test_a_strategy_that_fails_is_a_refusal(refine: Any, why: str) -> None:
    installed = {**INSTALLED, "bad": Installed("bad", "bad-package", refine)}
    with pytest.raises(
        LayoutError, match=f"tp2bad2: the strategy 'bad' from bad-package failed: {why}"
    ):
        plan_layout("tp2bad2", shape(), LOAD, Topology.uniform(4), installed)


def test_two_strategies_of_one_name_are_refused_and_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = [
        EntryPoint("dp", "strategies.data:dp", GROUP),
        EntryPoint("tp", "strategies.tensor:tp", GROUP),
    ]
    points.append(EntryPoint("tp", "strategies.pipeline:pp", GROUP))
    monkeypatch.setattr("strategies.registry.entry_points", lambda group: points)
    found = discover()
    assert found["dp"].error is None
    sources = "strategies.tensor:tp and strategies.pipeline:pp"
    assert (
        found["tp"].error == f"{sources} both bring a strategy of this name; uninstall one of them"
    )
    with pytest.raises(
        LayoutError, match=f"tp2: the strategy 'tp' from {sources} could not be loaded"
    ):
        plan_layout("tp2", shape(), LOAD, Topology.uniform(4), found)


def a_plug_in(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> EntryPoint:
    """The entry point of a module `lately_made` with this text."""
    (folder / "lately_made.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "lately_made", raising=False)
    point = EntryPoint("bad", "lately_made:bad", GROUP)
    monkeypatch.setattr("strategies.registry.entry_points", lambda group: [point])
    return point


@pytest.mark.parametrize(
    ("body", "why", "line"),
    [
        ("    return helper()\ndef helper():\n    return {}['gone']\n", "KeyError: 'gone'", 4),
        ("    return placement.with_params(3)\n", "AttributeError: 'int' .*", 2),
        ("    import json\n    json.loads('nothing')\n", "JSONDecodeError: .*", 3),
    ],
)
def test_an_exception_is_told_with_its_place_in_the_plug_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, why: str, line: int
) -> None:
    """Also where the plug-in's call into another package is what raised."""
    a_plug_in(tmp_path, f"def bad(placement, *rest):\n{body}", monkeypatch)
    file = re.escape(str(tmp_path / "lately_made.py"))
    with pytest.raises(LayoutError, match=rf"'bad' from .* failed: {why} \({file}:{line}\)$"):
        plan_layout("bad2", shape(), LOAD, Topology.uniform(2))


def test_an_exception_on_import_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_plug_in(tmp_path, "\nimport no_such_package\n", monkeypatch)
    place = f"{tmp_path / 'lately_made.py'}:2"
    error = discover()["bad"].error
    assert error == f"ModuleNotFoundError: No module named 'no_such_package' ({place})"


def test_a_refusal_of_a_plug_in_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "from strategies import LayoutError\ndef bad(*rest):\n    raise LayoutError('use 3')\n"
    a_plug_in(tmp_path, text, monkeypatch)
    with pytest.raises(LayoutError, match=r"^use 3$"):
        plan_layout("bad2", shape(), LOAD, Topology.uniform(2))


@pytest.mark.parametrize("key", ["mlp_tp", "TP", "tp2", "tp-x"])
def test_a_key_that_no_layout_can_name_is_reported(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = EntryPoint(key, "strategies.tensor:tp", GROUP)
    monkeypatch.setattr("strategies.registry.entry_points", lambda group: [point])
    assert discover()[key].error == "no layout can name it; a key is letters from a to z"
