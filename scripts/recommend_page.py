"""Write the worked example of docs/recommend.md again: `python scripts/recommend_page.py`."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from click.testing import CliRunner

from orchestrator import cli

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recommend.md"
ASKED = (
    "recommend --model llama-70b --slo ttft:2000 tpot:25 --concurrency 50",
    "--gpu h200,h100,l40s --gpu-hour-cost h200=4.0,h100=2.5",
)
WIDTH = 100
EXAMPLE = re.compile("(?<=<!-- example: begin -->\n).*?(?=<!-- example: end -->)", re.DOTALL)


def page() -> str:
    """The page with what the command says."""
    done = CliRunner().invoke(
        cli.main, " ".join(ASKED).split(), env={"COLUMNS": str(WIDTH)}, catch_exceptions=False
    )
    said = "\n".join(map(folded, done.stdout.splitlines()))
    asked = " \\\n      ".join(ASKED)
    example = f"```\n$ orchestrator {asked}\n{said}\n```\n"
    return EXAMPLE.sub(lambda _: example, PAGE.read_text(encoding="utf-8"))


def folded(line: str) -> str:
    """A sentence in lines of the page; a row of a table as it is."""
    indent = " " * (len(line) - len(line.lstrip()))
    is_row = line.startswith("  ") and "   " in line.strip()
    return line.rstrip() if is_row else textwrap.fill(line, WIDTH, subsequent_indent=indent)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
