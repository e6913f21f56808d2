"""Write docs/results.md, and the headline in README.md, anew from the packed tables:
`python scripts/readme_results.py`.

Every figure is worked out here, and so is every sentence: a statement that the tables do not bear
out raises AssertionError instead of being written. A test compares the pages with what this makes.
"""

from __future__ import annotations

import results_checks
import results_engines
import results_four_gpus
import results_headline
import results_two_gpus
from published import RESULTS, Published

README = RESULTS.parents[1] / "README.md"
PAGE = RESULTS.parent / "results.md"
FOUR = RESULTS / "4xh200"
FOUR_H100 = RESULTS / "4xh100"
TWO = RESULTS / "2xh100"
BEGIN, END = "<!-- begin: scripts/readme_results.py -->", "<!-- end: scripts/readme_results.py -->"


def headline() -> str:
    """What is between the marks in README.md."""
    return "\n\n".join(results_headline.section(_both_engines()))


def section() -> str:
    """What is between the marks in docs/results.md."""
    models = [Published(FOUR / name) for name in results_four_gpus.LAYOUTS]
    return "\n\n".join(
        [
            *results_four_gpus.section(models),
            *results_two_gpus.section(Published(TWO / "qwen2.5-32b")),
            *results_engines.section(_both_engines()),
            *results_checks.without(Published(FOUR / "ablation-comm-qwen2.5-32b")),
            *results_checks.swapped(
                TWO / "swap-qwen2.5-32b" / "inorder", TWO / "swap-qwen2.5-32b" / "swapped"
            ),
        ]
    )


def _both_engines() -> list[Published]:
    return [Published(FOUR_H100 / f"engines-{name}") for name in results_four_gpus.LAYOUTS]


def page(text: str, made: str) -> str:
    """A page with what is between its marks written anew."""
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n{made}\n{END}{tail}"


if __name__ == "__main__":
    for path, made in ((README, headline()), (PAGE, section())):
        path.write_text(page(path.read_text(encoding="utf-8"), made), encoding="utf-8")
