"""Give the links of docs/architecture.md the lines on which the functions now are.

    python scripts/link_lines.py

A link is written [`name`](../path/file.py#L1) or [`Class.name`](...); a test fails where a line is
wrong.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
LINK = re.compile(r"\[`([\w.]+)`\]\(([^)#\s]+)#L\d+\)")


def line_of(name: str, path: Path) -> int:
    """The line on which `name`, of a class or of the module, is defined. Raises LookupError."""
    body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    for part in name.split("."):
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == part:
                body, line = node.body, node.lineno
                break
        else:
            raise LookupError(f"{path} defines no {name}")
    return line


def refreshed(text: str, folder: Path) -> str:
    """The page with the right line in every link."""

    def link(found: re.Match[str]) -> str:
        name, path = found.groups()
        return f"[`{name}`]({path}#L{line_of(name, folder / path)})"

    return LINK.sub(link, text)


def main() -> int:
    """Rewrite the page where a line has changed."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(refreshed(text, PAGE.parent), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
