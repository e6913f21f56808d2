"""Scripts of benchmarks/ as modules."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def loaded(name: str, patch: pytest.MonkeyPatch) -> ModuleType:
    """One as a module, known under its name for as long as `patch` lasts: its row types are looked
    up there."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def ended(path: Path, *arguments: str, patch: pytest.MonkeyPatch) -> object:
    """The status or last words of a program that is started with `arguments` and ends by itself. In
    this process: its imports take seconds in one of its own."""
    patch.setattr(sys, "argv", [str(path), *arguments])
    patch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ending:
        runpy.run_path(str(path), run_name="__main__")
    return ending.value.code
