"""Will this node give good numbers? Pure checks over the facts that `orchestrator.node.facts`
gathers.

fail: results would be wrong, or nothing will run. warn: results may be slower or less steady than
the hardware allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.node.checks import FAIL, PASS, WARN, Check
from orchestrator.node.facts import Facts
from orchestrator.node.gpu_checks import GPU_CHECKS, no_gpus
from orchestrator.node.machine_checks import CHECKS

__all__ = ["FAIL", "PASS", "WARN", "Check", "counts", "examine", "verdict"]


def examine(facts: Facts) -> list[Check]:
    """Every check that can be made here, in the order they are read."""
    of_gpus = GPU_CHECKS if facts.gpus else (no_gpus,)
    return [check(facts) for check in (*of_gpus, *CHECKS)]


def verdict(checks: Sequence[Check]) -> str:
    """What all checks together say, in one sentence."""
    worst = {check.status for check in checks}
    if FAIL in worst:
        return "This node will not give figures to be trusted: see what fails."
    if WARN in worst:
        return (
            "This node gives figures, but lower or less steady ones than it could: see the "
            "warnings."
        )
    return "This node will give good figures."


def counts(checks: Sequence[Check]) -> Iterator[tuple[str, int]]:
    """(status, how many) of every status that there is, the worst first."""
    for status in (FAIL, WARN, PASS):
        number = sum(check.status == status for check in checks)
        if number:
            yield status, number
