"""Write the table "against concurrency" of docs/predictions.md again, from the published results
and from what `orchestrator plan` says: `python scripts/curves_page.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import readme_results
from both_engines import OURS, layouts_of
from figures_elsewhere import few_rows
from published import RESULTS, Published, model_of, table

from orchestrator.commands.predicting import predicted
from orchestrator.experiment import Experiment
from orchestrator.predict.plan import Machines, as_data

PAGE = RESULTS.parent / "predictions.md"
TABLE = re.compile("(?<=<!-- curves: begin -->\n).*?(?=<!-- curves: end -->)", re.DOTALL)
FIELDS = ("within, %", "knee", "best point", "decay, %")
TITLES = ("layout", "measured, tokens/s", *FIELDS, "predicted, tokens/s", *FIELDS)

Line = Mapping[str, Any]  # the fields of a `Degradation`


def page() -> str:
    """The page with the table of now."""
    found = readme_results.both_engines(readme_results.FOUR)
    made = table(TITLES, [row for each in found for row in _rows(each)])
    return TABLE.sub(lambda _: f"\n{made}\n\n", PAGE.read_text(encoding="utf-8"))


def _rows(found: Published) -> Iterator[list[str]]:
    curves = (one for one in found.findings.curves if one.engine == OURS)
    measured = {one.strategy: asdict(one.fitted) for one in curves}
    model = model_of(found)
    for layout in layouts_of(found):
        name = f"{model.rpartition('-')[2].upper()}, {layout}"
        planned = _predicted({"model": model, **few_rows(found, layout)}, layout, found.started)
        yield [name, *_shown(measured[layout]), *_shown(planned)]


def _predicted(asked: Mapping[str, str], layout: str, started: str) -> Line:
    experiment = Experiment.model_validate({"max_concurrency": "1,32,100", **asked})
    by = predicted(experiment, Machines("h200", 4), [layout], started=started)
    (plan,) = as_data(by)["plans"]
    (found,) = plan["against_concurrency"]
    line: Line = found["fitted"]
    return line


def _shown(line: Line) -> list[str]:
    """The formula and what follows from it."""
    formula = line["formula"].removeprefix("tok/s = ").partition(", TPOT")[0]
    rest = [f"{line[name]:.0f}" for name in ("knee", "best_point", "decay_pct")]
    return [formula, f"{line['error_pct']:.1f}", *rest]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
