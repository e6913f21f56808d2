"""What was found of two layouts, in words."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from orchestrator.analysis.comparing.confidence import Ratio
from orchestrator.analysis.comparing.contests import Contest
from orchestrator.analysis.comparing.significance import DIFFERENT, EQUIVALENT, Decision

MORE = "--num-starts 5"
NARROW = 0.02  # an interval below this width is written with a digit more


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a contest came to. decision: None where it could not be tested. difference: the smallest
    that matters. to_differ, to_equal: starts that would show either; None where that is unknown."""

    contest: Contest
    ratio: Ratio | None
    decision: Decision | None
    difference: float
    to_differ: int | None = None
    to_equal: int | None = None

    @property
    def rounds(self) -> int:
        """The pairs that it is of."""
        return len(self.contest.pair.over)


def sentence(found: Outcome) -> str:
    """The verdict on two layouts. What is not shown is said first to be that."""
    if found.ratio is None:
        return _without_ratio(found)
    if found.decision is None:
        return f"{_not_shown(found)} {written(found.ratio)} with {why_untested(found)}"
    verdict = found.decision.verdict
    if verdict == DIFFERENT:
        return _different(found, found.ratio)
    if verdict == EQUIVALENT:
        return _equivalent(found, found.ratio)
    return f"{_not_shown(found)} {times(found.ratio)} ({_starts(found)}){_needed(found)}"


def why_untested(found: Outcome) -> str:
    """Why a contest could not be tested, and what to do about it."""
    mine, theirs = (len(side.starts) for side in (found.contest.better, found.contest.other))
    if found.rounds > 1:
        return "every start of both has 0"
    if mine == theirs == found.rounds == 1:
        return f"one start each: no interval ({MORE} gives one)"
    rounds = "one round" if found.rounds else "no rounds"
    return f"{rounds} in common: run both layouts in one command, with {MORE}"


def times(found: Ratio) -> str:
    """A ratio with its interval: `2.31x [2.24, 2.38]`."""
    return written(found) + interval(found)


def written(found: Ratio) -> str:
    """A ratio alone: `2.31x`."""
    return f"{found.value:.{_digits(found)}f}x"


def interval(found: Ratio) -> str:
    """` [low, high]`, nothing where there is none."""
    if found.low is None or found.high is None:
        return ""
    digits = _digits(found)
    return f" [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def _digits(found: Ratio) -> int:
    if found.low is None or found.high is None:
        return 2
    return 3 if found.high - found.low < NARROW else 2


def _different(found: Outcome, ratio: Ratio) -> str:
    contest = found.contest
    said = contest.metric.says.format(ratio=written(ratio), other=contest.other.name)
    return f"{contest.better.name} {said}{interval(ratio)} {_where(found)} ({_starts(found)})"


def _equivalent(found: Outcome, ratio: Ratio) -> str:
    contest = found.contest
    both = f"{contest.better.name} and {contest.other.name}"
    within = f"within {_percent(found.difference)}{contest.metric.subject} {_where(found)}"
    less = found.decision is not None and found.decision.is_different
    though = "; they differ, by less than that" if less else ""
    return f"{both} are equivalent {within}: {times(ratio)} ({_starts(found)}){though}"


def _not_shown(found: Outcome) -> str:
    contest = found.contest
    both = f"{contest.better.name} against {contest.other.name}"
    return f"not shown: {both}{contest.metric.subject} {_where(found)},"


def _needed(found: Outcome) -> str:
    """How many starts would show something, as far as that is known."""
    said = [
        f"{starts} starts would show {what}"
        for starts, what in (
            (found.to_differ, f"a difference of {_percent(found.difference)}"),
            (found.to_equal, "that there is none"),
        )
        if starts is not None
    ]
    return f"; {', '.join(said)}" if said else ""


def _without_ratio(found: Outcome) -> str:
    contest = found.contest
    sides = (contest.better, contest.other)
    zeros = [side.name for side in sides if not statistics.fmean(side.starts.values())]
    both = f"{contest.better.name} against {contest.other.name}"
    shown = found.decision is not None and found.decision.verdict == DIFFERENT
    verdict = "different" if shown else "not shown"
    has = "has" if len(zeros) == 1 else "have"
    because = f"{' and '.join(zeros)} {has} 0" if zeros else "one has 0 in the rounds of both"
    return f"{verdict}: {both}{contest.metric.subject} {_where(found)}, no ratio, as {because}"


def _where(found: Outcome) -> str:
    at = found.contest.metric.at.format(found.contest.load.max_concurrency)
    return f"{at}{_per_gpu(found)}"


def _per_gpu(found: Outcome) -> str:
    """What a difference in throughput is worth where one side has more GPUs."""
    contest, ratio = found.contest, found.ratio
    mine, theirs = contest.better.num_gpus, contest.other.num_gpus
    is_throughput = contest.metric.objective == "throughput"
    if not is_throughput or not (ratio and mine and theirs) or mine == theirs:
        return ""
    return f" ({mine} GPUs against {theirs}: {ratio.value * theirs / mine:.2f}x per GPU)"


def _starts(found: Outcome) -> str:
    return f"{found.rounds} starts"


def _percent(share: float) -> str:
    return f"{100 * share:g}%"
