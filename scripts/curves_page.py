"""Write the table "against concurrency" of docs/predictions.md again, from the published results
and from what `orchestrator plan` says: `python scripts/curves_page.py`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from orchestrator import cli

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "predictions.md"
NODE = ROOT / "docs" / "results" / "4xh200"
MODELS = {"llama-70b": "70B", "qwen2.5-32b": "32B"}
LAYOUTS = ("tp4", "tp2pp2", "dp4", "pp4")
GPUS = ("--gpu", "h200", "--gpus", "4", "--scenario", "short", "--max-concurrency", "1,32,100")
TABLE = re.compile("(?<=<!-- curves: begin -->\n).*?(?=<!-- curves: end -->)", re.DOTALL)
FIELDS = ("within, %", "knee", "best point", "decay, %")
HEADS = ("layout", "measured, tokens/s", *FIELDS, "predicted, tokens/s", *FIELDS)

Curve = Mapping[str, Any]


def page() -> str:
    """The page with the table of now."""
    rows = [HEADS, ["---:" if head in FIELDS else "---" for head in HEADS], *_rows()]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return TABLE.sub(lambda _: f"\n{table}\n", PAGE.read_text(encoding="utf-8"))


def _rows() -> Iterator[list[str]]:
    for model, name in MODELS.items():
        found = _said("compare", str(NODE / f"engines-{model}"))["curves"]
        measured = {one["strategy"]: one for one in found if one["engine"] == "torch"}
        layouts = [layout for layout in LAYOUTS if layout in measured]
        asked = ("--model", model, "--strategy", ",".join(layouts), *GPUS)
        (plan,) = _said("plan", *asked)["plans"]
        predicted = {
            one["layout"]: {f"fitted_{name}": value for name, value in one["fitted"].items()}
            for one in plan["against_concurrency"]
        }
        for layout in layouts:
            yield [f"{name}, {layout}", *_shown(measured[layout]), *_shown(predicted[layout])]


def _said(*arguments: str) -> Any:
    done = CliRunner().invoke(cli.main, [*arguments, "--json"], catch_exceptions=False)
    return json.loads(done.stdout)


def _shown(curve: Curve) -> list[str]:
    """The line and what follows from it."""
    formula = curve["fitted_formula"].removeprefix("tok/s = ").partition(", TPOT")[0]
    names = ("fitted_knee", "fitted_best_point", "fitted_decay_pct")
    rest = [f"{curve[name]:.0f}" for name in names]
    return [formula, f"{curve['fitted_error_pct']:.1f}", *rest]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
