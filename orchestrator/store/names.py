"""Names on their way out. A model, a dataset or a folder may be called anything; each place that
shows a name, or makes a file of it, has one function here. On a page, Jinja escapes what it is
given and `report.output.inline_json` the data."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError

LONGEST_NAME = 200  # of a file, in characters
LONGEST_PATH = 4095  # bytes that the system takes
LONGEST_LINE = 600  # characters of a line that says what is wrong
# C0 and C1 controls, what reverses the direction of text, line separators, halves of characters.
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def safe_name(name: str) -> str:
    """`name` as a file name.

    One that had to be changed, or is too long, ends in a digest, so that no two become one.
    """
    safe = re.sub(r"[^A-Za-z0-9._=+-]", "_", name)
    if safe == name and len(name) <= LONGEST_NAME and safe not in (".", ".."):
        return safe
    return f"{safe[: LONGEST_NAME - 20]}-{digest(name)}"


def names_in(texts: Iterable[str]) -> list[str]:
    """The names in values of a flag that may be repeated; commas separate those of one."""
    return [word for text in texts for name in text.split(",") if (word := name.strip())]


def as_path(text: str) -> Path:
    """A path as a user writes it, `~` being a home. Raises UserError where no file can have it."""
    if "\0" in text:
        raise UserError(f"the path '{shown(text)}' holds a NUL byte; leave it out")
    if len(text.encode(errors="surrogateescape")) > LONGEST_PATH:
        raise UserError(
            f"the path '{shortened(text, 60)}' is too long: a path has at most {LONGEST_PATH} bytes"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"'{shown(text)}' names the home of a user that is not known") from error


def shown(text: object, keep: str = "") -> str:
    """`text` for a terminal: what would move its cursor, colour it or break the line is written
    out, as \\x1b. keep: control characters to be left as they are."""

    def written(found: re.Match[str]) -> str:
        one = found.group()
        return one if one in keep else one.encode("unicode_escape").decode()

    return UNSEEN.sub(written, str(text))


def broken(line: str, width: int | None) -> str:
    """`line` in lines of a terminal, broken between its words; None: nobody looks, and it stays
    one."""
    if width is None:
        return line
    return textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)


def width_of_stderr() -> int | None:
    """Columns of the terminal that stderr is; None where it is something else."""
    return shutil.get_terminal_size().columns if sys.stderr.isatty() else None


def shortened(text: str, most: int = LONGEST_LINE) -> str:
    """`text` for a terminal, its middle left out where it is longer than `most` characters."""
    whole = shown(text)
    if len(whole) <= most:
        return whole
    half = most // 2
    return f"{whole[:half]} ... {whole[-half:]}"


def cell(text: str) -> str:
    """`text` as a cell of CSV: a spreadsheet computes what begins like a formula, so that gets an
    apostrophe in front."""
    return f"'{text}" if text.startswith(FORMULA) else text


def digest(value: Any) -> str:
    """Ten hex digits of a JSON value: a name for what is too long to be one."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:10]
