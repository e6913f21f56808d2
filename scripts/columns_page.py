"""Write docs/columns.md anew from the row types: `python scripts/columns_page.py`."""

from __future__ import annotations

from pathlib import Path

from orchestrator.report.columns_page import page

PAGE = Path(__file__).resolve().parents[1] / "docs" / "columns.md"

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
