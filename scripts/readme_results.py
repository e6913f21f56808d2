"""Write the results in README.md anew from the packed tables: `python scripts/readme_results.py`.

Every figure between the two marks is worked out here, and so is every sentence: a statement that
the tables do not bear out raises AssertionError instead of being written. A test compares the page
with what this makes.
"""

from __future__ import annotations

import results_checks
import results_engines
import results_four_gpus
import results_two_gpus
from published import RESULTS, Published

README = RESULTS.parents[1] / "README.md"
FOUR = RESULTS / "4xh200"
FOUR_H100 = RESULTS / "4xh100"
TWO = RESULTS / "2xh100"
BEGIN, END = "<!-- begin: scripts/readme_results.py -->", "<!-- end: scripts/readme_results.py -->"


def section() -> str:
    """What is between the marks."""
    models = [Published(FOUR / name) for name in results_four_gpus.LAYOUTS]
    return "\n\n".join(
        [
            *results_four_gpus.section(models),
            *results_two_gpus.section(Published(TWO / "qwen2.5-32b")),
            *results_engines.section(
                [Published(FOUR_H100 / f"engines-{name}") for name in results_four_gpus.LAYOUTS]
            ),
            *results_checks.without(Published(FOUR / "ablation-comm-qwen2.5-32b")),
            *results_checks.swapped(
                TWO / "swap-qwen2.5-32b" / "inorder", TWO / "swap-qwen2.5-32b" / "swapped"
            ),
        ]
    )


def page(text: str) -> str:
    """A README with the results written anew."""
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n{section()}\n{END}{tail}"


if __name__ == "__main__":
    README.write_text(page(README.read_text(encoding="utf-8")), encoding="utf-8")
