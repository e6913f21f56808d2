"""How often the verdicts are wrong, how often intervals hold what they claim, and what it takes to
show a difference: measured by simulation over the functions that judge results.

    python benchmarks/verdict_rates.py --experiments 2000 --out docs/results/verdict_rates.arrow

A figure is drawn as truth x round x drift x start x run: noise that a round shares, a drift of the
machine during it, noise between starts, and noise of the runs inside, which are averaged. Layouts
take turns as they do in `orchestrator submit`. Prints its tables as Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from simulated_starts import HOLDS, Design, Noise, holds, is_wrong, judged, rows, starts_of, stopped

from orchestrator.analysis.comparing.best import best
from orchestrator.analysis.comparing.confidence import spread
from orchestrator.analysis.comparing.significance import ALPHA, DIFFERENT, EQUIVALENT, Pair, decide
from orchestrator.analysis.comparing.verdicts import rulings
from orchestrator.experiment import DIFFERENCE
from orchestrator.store.arrow_files import read_part, write_part
from workers.rows import Table, column, grouped, row

INTERVALS = 10  # a coverage is of as many times more trials than a rate of experiments
THROUGH_ROWS = 5  # and what goes through rows of runs of as many times fewer
RATES = {
    "false_different": "experiments that call equal layouts different, or the wrong one better",
    "false_equivalent": "experiments that call layouts equivalent which differ by 2%",
    "best_left_out": "experiments in which a best set lacks the layout that is best in truth",
    "mean": "intervals of a mean that hold it",
    "paired_ratio": "intervals of a ratio of pairs that hold it",
    "ratio": "intervals of a ratio of two results that hold it",
    "ratio_uneven": "the same, where one has half the starts at three times the noise",
    "until_ci": "intervals of a mean that hold it, where starts were added until it was narrow",
    "power_different": "pairs that differ by 2% and are shown to",
    "power_equivalent": "equal pairs that are shown to be equivalent within 2%",
}


@row
class Rate:
    """How often something happened in one design."""

    question: str = column("what was counted: a key of RATES")
    through: str = column("the function that was asked")
    within: float = column("noise of runs inside a start, as a share", "1")
    between: float = column("noise of starts", "1")
    shared: float = column("noise that a round shares", "1")
    drift: float = column("loss from a round to the next", "1")
    slow: float = column("share of starts that are 3% slower", "1")
    layouts: int = column("layouts", "1")
    cells: int = column("cells of a layout, all of them in one family", "1")
    starts: int = column("starts of a layout; under --until-ci the most", "1")
    runs: int = column("runs of a start", "1")
    furthest: float = column("the best layout over the worst one, in truth", "1")
    until_ci: float | None = column("width that was asked for; null where starts are fixed", "1")
    trials: int = column("experiments, intervals or pairs", "1")
    share: float = column("of the trials in which it happened", "1")
    error: float = column("standard error of that share, of experiments", "1")
    least: float | None = column("what the share should be at least", "1")
    most: float | None = column("what it should be at most", "1")

    @property
    def holds(self) -> bool:
        """Whether the share is where it should be, or within three standard errors of it."""
        low, high = self.share - 3 * self.error, self.share + 3 * self.error
        return low <= (1.0 if self.most is None else self.most) and high >= (self.least or 0.0)


VERDICT_RATES = Table("verdict_rates", Rate)


@dataclass(frozen=True)
class Counter:
    """Counts over experiments that are drawn anew. Each rate has a stream of its own, so that none
    depends on which others are measured."""

    experiments: int
    seed: int = 0

    def rate(
        self,
        question: str,
        design: Design,
        happens: Callable[[np.ndarray], Sequence[bool]],
        draws: int,
        *,
        through: str = "decide",
        least: float | None = None,
        most: float | None = None,
        until_ci: float | None = None,
    ) -> Rate:
        """happens: of what is drawn, whether it happened, in one trial or several. The error is
        that of draws, as the trials of one draw may go together."""
        name = repr((question, through, design, until_ci))
        random = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        found = [happens(design.draw(random)) for _ in range(draws)]
        shares = [statistics.fmean(one) for one in found]
        return Rate(
            question=question,
            through=through,
            **asdict(design.noise),
            layouts=len(design.truths),
            cells=design.cells,
            starts=design.starts,
            runs=design.runs,
            furthest=max(design.truths) / min(design.truths),
            until_ci=until_ci,
            trials=sum(map(len, found)),
            share=statistics.fmean(shares),
            error=statistics.stdev(shares) / math.sqrt(draws),
            least=least,
            most=most,
        )

    # -- wrong verdicts

    def false_different(self, design: Design, most: float | None = 0.05) -> Rate:
        """Experiments with a wrong "different"."""
        return self.rate(
            "false_different",
            design,
            lambda drawn: [any(map(is_wrong, *judged(drawn, design)))],
            self.experiments,
            most=most,
        )

    def false_equivalent(self, design: Design) -> Rate:
        """Experiments with a wrong "equivalent"; every pair of the design differs by 2% or more."""

        def happens(drawn: np.ndarray) -> list[bool]:
            _, decisions, _ = judged(drawn, design)
            return [any(one.verdict == EQUIVALENT for one in decisions)]

        return self.rate("false_equivalent", design, happens, self.experiments, most=0.05)

    def through_rows(self, design: Design) -> Iterator[Rate]:
        """The same of `rulings`, from rows of runs, and whether the best set has the best."""
        truths = {f"l{i}": truth for i, truth in enumerate(design.truths)}
        top = max(design.truths)

        def wrong(runs: np.ndarray) -> list[bool]:
            found = [v for one in rulings(rows(runs)) for v in one.verdicts]
            shown = [v for v in found if v.p_different is not None and v.p_different < ALPHA]
            return [any(truths[v.better] <= truths[v.other] for v in shown)]

        def left_out(runs: np.ndarray) -> list[bool]:
            sets = [one.layouts or () for one in best(rulings(rows(runs)))]
            return [any(not any(truths[name] == top for name in names) for names in sets)]

        draws = max(2, self.experiments // THROUGH_ROWS)
        for question, happens in (("false_different", wrong), ("best_left_out", left_out)):
            yield self.rate(question, design, happens, draws, through="rulings", most=0.05)

    # -- intervals

    def coverage(
        self, question: str, design: Design, least: float | None = 0.94, most: float | None = None
    ) -> Rate:
        """Intervals that hold the truth."""
        holds_truth = HOLDS[question]
        return self.rate(
            question,
            design,
            lambda drawn: [holds_truth(cell) for cell in starts_of(drawn)],
            math.ceil(INTERVALS * self.experiments / design.cells),
            through="spread" if question == "mean" else question.removesuffix("_uneven"),
            least=least,
            most=most,
        )

    def until_ci(self, design: Design, until_ci: float) -> Rate:
        """Intervals that hold the truth where starts are added until `is_narrow`."""

        def happens(drawn: np.ndarray) -> list[bool]:
            kept = (stopped(cell, until_ci) for cell in starts_of(drawn))
            return [holds(spread(values), 1.0) for (values,) in kept]

        draws = math.ceil(INTERVALS * self.experiments / design.cells)
        return self.rate(
            "until_ci", design, happens, draws, through="is_narrow", least=0.94, until_ci=until_ci
        )

    def different_until_ci(self, design: Design, until_ci: float) -> Rate:
        """Experiments with a wrong "different" where starts are added to each cell until every
        layout is narrow in it."""

        def happens(drawn: np.ndarray) -> list[bool]:
            pairs = [Pair(*stopped(cell, until_ci)) for cell in starts_of(drawn)]
            return [any(one.is_different for one in decide(pairs, DIFFERENCE))]

        return self.rate(
            "false_different", design, happens, self.experiments, most=0.05, until_ci=until_ci
        )

    # -- power

    def power(self, design: Design, verdict: str) -> Rate:
        """Pairs of which `verdict` is shown, one pair a cell."""

        def happens(drawn: np.ndarray) -> list[bool]:
            return [one.verdict == verdict for one in judged(drawn, design)[1]]

        return self.rate(f"power_{verdict}", design, happens, self.experiments)


# -- the designs

QUIET, USUAL, LOUD = Noise(0.001, 0.005), Noise(0.002, 0.01), Noise(0.004, 0.015)
SHARED, DRIFTING = Noise(0.002, 0.005, shared=0.01), Noise(0.002, 0.005, drift=0.005)
NOISES = (QUIET, USUAL, LOUD, SHARED, DRIFTING)
SLOW = Noise(0.002, 0.005, slow=0.1)
EQUAL = {n: (1.0,) * n for n in (2, 3, 6)}
APART = (1.0, 1.0, 1.0, 1.01, 1.03, 1.03)


def measure(counter: Counter) -> Iterator[Rate]:
    """Every rate, in the order of the tables."""
    for noise, truths, starts in itertools.product(NOISES, EQUAL.values(), (3, 5, 10)):
        yield counter.false_different(Design(noise, starts, truths))
    for starts in (3, 5, 10):
        yield counter.false_different(Design(SLOW, starts, EQUAL[3]))
        yield counter.false_different(Design(USUAL, starts, APART))
        yield counter.false_equivalent(Design(Noise(0.001, 0.002), starts, (1.0, 1 + DIFFERENCE)))
        steps = (1.0, 1 + DIFFERENCE, (1 + DIFFERENCE) ** 2)
        yield counter.false_equivalent(Design(Noise(0.001, 0.002), starts, steps))
        yield from counter.through_rows(Design(USUAL, starts, (1.0, 1.0, 1.01), runs=2))
    for until_ci in (0.005, 0.01, 0.02):
        yield counter.different_until_ci(Design(USUAL, 20, EQUAL[2]), until_ci)
    yield from _coverages(counter)
    yield from _powers(counter)


def _coverages(counter: Counter) -> Iterator[Rate]:
    counts = range(3, 11)
    for noise, starts in itertools.product((QUIET, USUAL, LOUD), counts):
        yield counter.coverage("mean", Design(noise, starts, (1.0,)), most=0.96)
    for noise, starts in itertools.product(NOISES, counts):
        most = None if noise.drift else 0.96  # a drift adds to the scatter that it makes
        yield counter.coverage("paired_ratio", Design(noise, starts), most=most)
    for question, starts in itertools.product(("mean", "paired_ratio"), counts):
        yield counter.coverage(question, Design(SLOW, starts), least=None)
    for starts in counts:
        yield counter.coverage("ratio", Design(USUAL, starts))
    for starts in counts:
        yield counter.coverage("ratio_uneven", Design(USUAL, starts), least=None)
    widths = (0.005, 0.01, 0.02, 0.05)
    for most, between, until_ci in itertools.product((10, 20), widths, widths):
        noise = Noise(0.002, between)
        yield counter.until_ci(Design(noise, most, (1.0,)), until_ci)


def _powers(counter: Counter) -> Iterator[Rate]:
    truths = {DIFFERENT: (1.0, 1 + DIFFERENCE), EQUIVALENT: EQUAL[2]}
    betweens, counts = (0.0025, 0.005, 0.01, 0.015), (3, 4, 5, 6, 8, 10, 15, 20)
    for verdict, cells, between in itertools.product(truths, (1, 18), betweens):
        noise = Noise(0.002, between)
        for starts in counts:
            yield counter.power(Design(noise, starts, truths[verdict], cells), verdict)


# -- the tables


def markdown(found: Iterable[Rate]) -> str:
    """A table a question: a line for each design, a column for each number of starts."""
    blocks = [
        _table(question, mine) for question, mine in grouped(found, lambda r: r.question).items()
    ]
    return "\n\n".join(blocks)


def _table(question: str, found: Sequence[Rate]) -> str:
    counts = sorted({one.starts for one in found})
    lines = grouped(found, _design_of)
    trials = sorted({one.trials for one in found})
    error = max(one.error for one in found)
    heads = ["", *(f"{n} starts" for n in counts)]
    body = [[name, *_shares(mine, counts)] for name, mine in lines.items()]
    table = [heads, ["---", *["---:"] * len(counts)], *body]
    said = f"{RATES[question]} (of {' or '.join(f'{n:,}' for n in trials)}; ± {error:.1%} at most):"
    return "\n".join([f"Share of {said}", "", *(f"| {' | '.join(line)} |" for line in table)])


def _shares(found: Sequence[Rate], counts: Sequence[int]) -> list[str]:
    of = {one.starts: f"{one.share:.1%}" for one in found}
    return [of.get(n, "") for n in counts]


def _design_of(one: Rate) -> str:
    """What tells the lines of a table apart, in words."""
    parts = [f"noise {100 * one.between:g}%"]
    parts += [f"a round shares {100 * one.shared:g}%"] if one.shared else []
    parts += [f"drift {100 * one.drift:g}% a round"] if one.drift else []
    parts += [f"{100 * one.slow:g}% of starts 3% slow"] if one.slow else []
    parts += [f"{one.layouts} layouts"] if one.layouts > 1 else []
    cells = f"{one.cells} cell{'s' if one.cells > 1 else ''}"
    parts += [cells] if one.question.startswith("power") else []
    parts += [f"up to {100 * (one.furthest - 1):.2g}% apart"] if one.furthest > 1 else []
    parts += [f"until ±{100 * one.until_ci:g}%"] if one.until_ci else []
    return ", ".join([*parts, *(["from rows"] if one.through == "rulings" else [])])


def main() -> None:
    """Measure, print, and keep what was measured; or print what was kept."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--experiments", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="an Arrow file")
    parser.add_argument("--show", type=Path, help="print this file instead of measuring")
    asked = parser.parse_args()
    if asked.show:
        print(markdown(VERDICT_RATES.rows(read_part(asked.show))))
        return
    found = list(measure(Counter(asked.experiments, asked.seed)))
    if asked.out:
        write_part(asked.out, VERDICT_RATES.make(found))
    print(markdown(found))
    missed = [one for one in found if not one.holds]
    for one in missed:
        print(f"\nnot where it should be: {one.question}, {_design_of(one)}: {one.share:.2%}")
    raise SystemExit(bool(missed))


if __name__ == "__main__":
    main()
