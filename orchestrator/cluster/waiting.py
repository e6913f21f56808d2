"""Ask the ranks of a group and wait until all have answered. The first failure is raised at
once, and so is the death of the cluster, which is looked at all the while."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray
from ray.exceptions import RayError

from orchestrator.cluster.failures import RunFailed, explain
from workers.actor import Worker

P = ParamSpec("P")
T = TypeVar("T")
Check = Callable[[], None]  # raises ClusterLost

POLL_S = 0.5
TOGETHER_S = 0.02  # to wait for more answers after the first one
GRACE_S = 1.0  # to wait for failures of other ranks after the first one


def ask(
    actors: Sequence[Any],
    method: Callable[Concatenate[Worker, P], object],
    *args: P.args,
    **options: P.kwargs,
) -> list[Any]:
    """Call a method of `Worker` in every actor. Returns the references to the answers."""
    return [getattr(actor, method.__name__).remote(*args, **options) for actor in actors]


def gather(
    refs: Sequence[Any],
    what: str,
    timeout_s: float,
    check: Check,
    hanging: Callable[[Sequence[int]], str] = str,
    step: int = 1,
) -> list[Any]:
    """Answers in the order of `refs`, one for each process.

    Raises RunFailed at the first failure, or when `timeout_s` is over, and whatever `check` raises.
    what: names in the message what was waited for. hanging: says of the ranks that have not
    answered which of them the others wait for. step: ranks of a process, the first of which names
    it.
    """
    answers: dict[int, Any] = {}
    pending = {ref: step * number for number, ref in enumerate(refs)}
    deadline = time.monotonic() + timeout_s
    while pending:
        with _unless_lost(check):
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=POLL_S)
            if ready:  # others are about to answer: each wait costs as much as there are ranks
                ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=TOGETHER_S)
        for ref in ready:
            rank = pending.pop(ref)
            with _unless_lost(check):
                answers[rank] = _answer(ref, rank, pending)
        check()
        if pending and time.monotonic() > deadline:
            raise RunFailed(
                f"timeout: {what} took longer than {timeout_s:g} s "
                f"({hanging(sorted(pending.values()))})"
            )
    return [answer for _, answer in sorted(answers.items(), key=lambda one: one[0])]


def patiently(call: Callable[[], T], check: Check) -> T:
    """What `call` returns. Meanwhile the cluster is looked at: a call to a GCS that is gone does
    not return. Raises what `check` raises, and then leaves the call to itself."""
    future: Future[T] = Future()

    def answer() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=answer, name="patiently", daemon=True).start()
    while not wait([future], timeout=POLL_S).done:
        check()
    with _unless_lost(check):
        return future.result()


@contextlib.contextmanager
def _unless_lost(check: Check) -> Iterator[None]:
    """If something fails inside because the cluster is gone, that it is gone is what is raised."""
    try:
        yield
    except (RunFailed, RayError, OSError):
        check()
        raise


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
