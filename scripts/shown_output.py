"""Write anew what the pages show of commands: `python scripts/shown_output.py [--measured]`.

A block of the language `console` begins with `$` and a command; below it is what that prints. A
comment above it, as <!-- lines 1-7,12 -->, says which lines of it are shown. The commands of a page
run in its order, in a folder that sees examples/ and docs/. What `submit` prints is measured, so
that it differs from time to time: it is only written anew with --measured.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    page
    for page in sorted((ROOT / "docs").glob("*.md"))
    if "```console\n$ " in page.read_text(encoding="utf-8")
]
BLOCK = re.compile(
    r"(?:<!-- lines (?P<lines>[\d,-]+) -->\n\n)?```console\n\$ (?P<command>(?:[^\n]*\\\n)*[^\n]*\n)"
    r"(?P<shown>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
COLUMNS = 100
GAP = "..."


def workplace(folder: Path) -> Path:
    """The folder, with what the commands of the pages read in it."""
    for name in ("docs", "examples"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def environment() -> dict[str, str]:
    """In which `orchestrator` is this one, and prints lines of one width."""
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": programs, "COLUMNS": str(COLUMNS), "PYTHONPATH": str(ROOT)}


def printed(command: str, folder: Path) -> str:
    """What a command prints on stdout. Raises CalledProcessError where it fails."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder, env=environment(), check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()) + "\n"


def is_measured(command: str) -> bool:
    """Whether it prints something else each time: it runs a model, or reads what did."""
    runs = command.startswith("orchestrator submit") and "--dry-run" not in command
    return runs or bool(re.search(r"(?<!docs/)results/", command))


def chosen(output: str, lines: str | None) -> str:
    """The lines that a page shows, with a gap where some are left out."""
    if lines is None:
        return output
    every, parts = output.splitlines(), []
    for part in lines.split(","):
        first, _, last = part.partition("-")
        parts.append("\n".join(every[int(first) - 1 : int(last or first)]))
    end = [] if int(last or first) >= len(every) else [GAP]
    return "\n".join([f"\n{GAP}\n".join(parts), *end]) + "\n"


def page(text: str, print_: Callable[[str], str]) -> str:
    """A page with what its commands print written anew."""

    def block(found: re.Match[str]) -> str:
        command, lines = found["command"], found["lines"]
        comment = f"<!-- lines {lines} -->\n\n" if lines else ""
        output = print_(command)
        shown = chosen(output, lines) if output else found["shown"]
        return f"{comment}```console\n$ {command}{shown}```"

    return BLOCK.sub(block, text)


def rewritten(text: str, with_measured: bool) -> str:
    """A page with its commands run; those that measure are only run where it is asked for."""
    with tempfile.TemporaryDirectory() as folder:
        place = workplace(Path(folder))

        def print_(command: str) -> str:
            return printed(command, place) if with_measured or not is_measured(command) else ""

        return page(text, print_)


def main() -> int:
    """Rewrite the pages."""
    for one in PAGES:
        text = rewritten(one.read_text(encoding="utf-8"), "--measured" in sys.argv)
        one.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
