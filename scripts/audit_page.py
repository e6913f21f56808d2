"""Write the verdicts of docs/audit.md anew: `python scripts/audit_page.py`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.audit.claims import load_claims
from orchestrator.audit.verdicts import Audited
from orchestrator.commands.audits import audited
from orchestrator.report.audit import deployed, limit

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "audit.md"
CLAIMS = ROOT / "examples" / "article-claims.yaml"
BEGIN, END = "<!-- verdicts -->\n", "<!-- end of verdicts -->"
WIDTH = 118


def page(text: str) -> str:
    """`text` with the verdicts in their place."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    found = audited(load_claims(CLAIMS, {}))
    lines = (*_table(found), "", *_arithmetic(found))
    return f"{before}{BEGIN}\n{chr(10).join(lines)}\n\n{END}{after}"


def _table(found: Sequence[Audited]) -> Iterator[str]:
    yield "| | claim | of | limit | verdict |"
    yield "|---:|---|---|---:|---|"
    for number, one in enumerate(found, 1):
        cells = (str(number), one.claim.said, deployed(one), limit(one), one.sentence)
        yield f"| {' | '.join(cells)} |"


def _arithmetic(found: Sequence[Audited]) -> Iterator[str]:
    """A paragraph a claim."""
    for number, one in enumerate(found, 1):
        heading = f"**{number}. {one.claim.said}**: {one.sentence} ({one.claim.source})."
        text = " ".join((heading, *one.arithmetic))
        yield from textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
        yield ""


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
