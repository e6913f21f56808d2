"""Write the worked example of docs/recommend.md again: `python scripts/recommend_page.py`."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from orchestrator import cli
from orchestrator.report import output

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recommend.md"
ASKED = (
    "recommend --model llama-70b --slo ttft:2000 tpot:25 --concurrency 50",
    "--gpu h200,h100,l40s --gpu-hour-cost h200=4.0,h100=2.5",
)
WIDTH = 100
EXAMPLE = re.compile("(?<=<!-- example: begin -->\n).*?(?=<!-- example: end -->)", re.DOTALL)


def page() -> str:
    """The page with what the command says."""
    before, output.PLAIN_WIDTH = output.PLAIN_WIDTH, WIDTH
    try:
        done = CliRunner().invoke(cli.main, " ".join(ASKED).split(), catch_exceptions=False)
    finally:
        output.PLAIN_WIDTH = before
    said = "\n".join(line.rstrip() for line in done.stdout.splitlines())
    asked = " \\\n      ".join(ASKED)
    example = f"```\n$ orchestrator {asked}\n{said}\n```\n"
    return EXAMPLE.sub(lambda _: example, PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
