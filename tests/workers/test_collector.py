"""Python's collector stays out of runs."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import pytest

from workers.actor import Worker
from workers.messages import RankReport, Work
from workers.probes.collector import uncollected
from workers.progress import ranges_for


class Ring:
    """Reaches itself, so only the collector can free it."""

    def __init__(self) -> None:
        self.me = self


def test_what_is_there_is_not_looked_through_inside_and_is_free_again_outside() -> None:
    old = weakref.ref(Ring())
    assert old() is not None
    with uncollected():
        new = weakref.ref(Ring())
        gc.collect()
        assert old() is not None
        assert new() is None
    gc.collect()
    assert old() is None


def test_a_worker_serves_without_and_looks_again_when_a_run_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []

    def run(work: Work) -> RankReport:
        seen.append(gc.get_freeze_count())
        raise RuntimeError("the run failed")

    before = gc.get_freeze_count()
    worker = Worker()
    monkeypatch.setattr(worker, "_engine", SimpleNamespace(run=run))
    monkeypatch.setattr(worker, "_context", SimpleNamespace(ranges=ranges_for(False)))
    with pytest.raises(RuntimeError, match="the run failed"):
        worker.run(Work((), 1))
    worker.telemetry()
    assert seen[0] > before
    assert gc.get_freeze_count() == 0
