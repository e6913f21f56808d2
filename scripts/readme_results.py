"""Write docs/results.md, and the headline in README.md, anew from the packed tables:
`python scripts/readme_results.py`.

Every figure is worked out here, and so is every sentence: a statement that the tables do not bear
out raises AssertionError instead of being written. A test compares the pages with what this makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import results_checks
import results_costs
import results_engines
import results_headline
import results_two_gpus
from published import RESULTS, Published

README = RESULTS.parents[1] / "README.md"
PAGE = RESULTS.parent / "results.md"
FOUR = RESULTS / "4xh200"
FOUR_H100 = RESULTS / "4xh100"
TWO = RESULTS / "2xh100"
TWO_H200 = RESULTS / "2xh200"
MODELS = ("llama-70b", "qwen2.5-32b")
SMALLER = ("qwen2.5-32b", "llama-8b")  # on two GPUs, where one holds either
BEGIN, END = "<!-- begin: scripts/readme_results.py -->", "<!-- end: scripts/readme_results.py -->"


def both_engines(node: Path, models: Sequence[str] = MODELS) -> list[Published]:
    """A result of each model under both engines."""
    return [Published(node / f"engines-{name}") for name in models]


def headline() -> str:
    """What is between the marks in README.md."""
    others = [both_engines(FOUR_H100), both_engines(TWO_H200, SMALLER)]
    newer = [Published(TWO_H200 / "placed" / name) for name in SMALLER]
    return "\n\n".join(results_headline.section(both_engines(FOUR), others, newer))


def section() -> str:
    """What is between the marks in docs/results.md."""
    return "\n\n".join(
        [
            *results_engines.section(both_engines(FOUR)),
            *results_costs.section(both_engines(FOUR)),
            *results_two_gpus.section(Published(TWO / "qwen2.5-32b")),
            *results_engines.section(both_engines(FOUR_H100)),
            *results_engines.section(both_engines(TWO_H200, SMALLER)),
            *results_costs.section(both_engines(TWO_H200, SMALLER)),
            *results_checks.without(Published(FOUR / "ablation-comm-qwen2.5-32b")),
            *results_checks.swapped(
                TWO / "swap-qwen2.5-32b" / "inorder", TWO / "swap-qwen2.5-32b" / "swapped"
            ),
        ]
    )


def page(text: str, made: str) -> str:
    """A page with what is between its marks written anew."""
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n{made}\n{END}{tail}"


if __name__ == "__main__":
    for path, made in ((README, headline()), (PAGE, section())):
        path.write_text(page(path.read_text(encoding="utf-8"), made), encoding="utf-8")
