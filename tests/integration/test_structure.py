"""`scripts/structure.py`: what it counts as a ternary that a reader has to untangle."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "structure.py"


@pytest.fixture
def structure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("structure", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "structure", module)  # where dataclasses look names up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("x = 1 if a else 2", []),
        ("x = f(1 if a else 2), 3 if b else 4", []),
        ("f() if a else g()", [1]),
        ("x = 1\ny = 1 if a else 2 if b else 3", [2]),
        ("x = (1 if b else 2) if a else 3", [1]),
        ("x = 1 if (a if b else c) else 2", [1]),
        ("x = 1 if a else f(2 if b else 3)", [1]),
    ],
)
def test_ternaries_are_counted_as_statements_and_where_they_nest(
    structure: ModuleType, code: str, lines: list[int]
) -> None:
    assert structure.ternaries(ast.parse(code)) == lines


def test_one_of_them_in_a_package_is_too_many(
    structure: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for package in structure.PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text('"""A package."""\n')
    module = tmp_path / "workers" / "bad.py"
    module.write_text('"""Bad."""\n\n\ndef f(a):\n    """F."""\n    f(1) if a else f(2)\n')
    monkeypatch.setattr(structure, "ROOT", tmp_path)
    assert structure.main() == 1
    printed = capsys.readouterr().out
    assert "ternaries as statements or nested       1 of 0  <- too many" in printed
    assert "ternary: workers.bad:6" in printed
