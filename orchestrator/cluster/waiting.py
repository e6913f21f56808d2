"""Ask the ranks of a group and wait until all have answered. The first failure is raised at
once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec

import ray
from ray.exceptions import RayError

from orchestrator.cluster.failures import RunFailed, explain
from workers.actor import Worker

P = ParamSpec("P")

POLL_S = 0.5
GRACE_S = 1.0  # to wait for failures of other ranks after the first one


def ask(
    actors: Sequence[Any],
    method: Callable[Concatenate[Worker, P], object],
    *args: P.args,
    **options: P.kwargs,
) -> list[Any]:
    """Call a method of `Worker` in every actor. Returns the references to the answers."""
    return [getattr(actor, method.__name__).remote(*args, **options) for actor in actors]


def gather(refs: Sequence[Any], what: str, timeout_s: float, step: int = 1) -> list[Any]:
    """Answers in the order of `refs`, one for each process. Raises RunFailed at the first failure,
    or when `timeout_s` is over; `what` names in the message what was waited for. step: ranks of a
    process, the first of which names it."""
    answers: dict[int, Any] = {}
    pending = {ref: step * number for number, ref in enumerate(refs)}
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
    return [answer for _, answer in sorted(answers.items(), key=lambda one: one[0])]


def _answer(ref: Any, rank: int, pending: Mapping[Any, int]) -> Any:
    try:
        return ray.get(ref)
    except RayError as error:
        raise explain([(rank, error), *_other_failures(pending)]) from None


def _other_failures(pending: Mapping[Any, int]) -> list[tuple[int, RayError]]:
    """Failures of other ranks soon after the first one. One of them may be its cause."""
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
