"""The commands that pages show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for place in ("*.md", "docs/*.md")
    for page in ROOT.glob(place)
    if page.name != "commands.md"  # generated: its lines of usage are no commands
)
FENCED = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
# At the start of a line, behind a prompt, variables or what a workflow has; or quoted, for another
# program to run.
GIVEN = re.compile(
    r"^\s*(?:\$ |(?:- )?run: )?(?:[A-Z_]+=\S* )*orchestrator (.+)$|'orchestrator ([^']+)'"
)


def commands(text: str) -> Iterator[str]:
    """What is given to `orchestrator` on a page, a line each."""
    for block in FENCED.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if found := GIVEN.search(line):
                yield found[1] or found[2]
    for span in SPAN.findall(FENCED.sub("", text)):
        words = " ".join(span.split()).removeprefix("orchestrator ")
        if re.match(r"orchestrator [a-z]+ ", span) and "..." not in words:
            yield re.sub(r"\bN\b", "4", words)


def options(text: str) -> Iterator[str]:
    """Options with values that a sentence of a page names without their command."""
    for span in SPAN.findall(FENCED.sub("", text)):
        if re.match(r"--[a-z-]+ [^A-Z]", span) and "..." not in span:
            yield " ".join(span.split())
