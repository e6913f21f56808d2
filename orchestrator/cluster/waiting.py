"""Waiting for the ranks of a group: all of them answer, or the first failure is told at once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from orchestrator.cluster.failures import RunFailed, explain

POLL_S = 0.5
GRACE_S = 1.0  # after a first failure, for the other ranks to say more


def gather(refs: Sequence[Any], what: str, timeout_s: float) -> list[Any]:
    """Answers in the order of `refs`, one for each rank. Raises RunFailed at the first failure, or
    when `timeout_s` is over; `what` says in it what was waited for."""
    answers: dict[int, Any] = {}
    pending = {ref: rank for rank, ref in enumerate(refs)}
    deadline = time.monotonic() + timeout_s
    while pending:
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=POLL_S)
        for ref in ready:
            rank = pending.pop(ref)
            answers[rank] = _answer(ref, rank, pending)
        if pending and time.monotonic() > deadline:
            ranks = ", ".join(map(str, sorted(pending.values())))
            raise RunFailed(
                f"timeout: {what} took longer than {timeout_s:g} s (waiting for rank {ranks})"
            )
    return [answers[rank] for rank in range(len(refs))]


def _answer(ref: Any, rank: int, pending: Mapping[Any, int]) -> Any:
    try:
        return ray.get(ref)
    except RayError as error:
        raise explain([(rank, error), *_other_failures(pending)]) from None


def _other_failures(pending: Mapping[Any, int]) -> list[tuple[int, RayError]]:
    """What the other ranks have to say soon after the first failure: it may be the cause of it."""
    if not pending:
        return []
    ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=GRACE_S)
    failures = []
    for ref in ready:
        try:
            ray.get(ref)
        except RayError as error:
            failures.append((pending[ref], error))
    return failures
