"""Tables in a terminal, a pipe or a file: nothing of them is cut."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest
from click.testing import CliRunner
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from orchestrator import cli
from orchestrator.report.output import UNLIMITED, console_of, fitted

LONG = "/very/long/path/of/somebody/that/no/terminal/of/eighty/columns/has/room/for/in/one/line"


def table(*columns: tuple[str, list[str]], right: tuple[str, ...] = ()) -> Table:
    made = Table(box=SIMPLE_HEAD, title="all", title_justify="left")
    for title, _ in columns:
        made.add_column(title, justify="right" if title in right else "left")
    for row in zip(*(cells for _, cells in columns), strict=True):
        made.add_row(*row)
    return made


def printed(made: Table, width: int) -> list[str]:
    console = console_of(file=io.StringIO(), width=width)
    console.print(made)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined,no-any-return]


FIGURES = table(
    *(("rank", ["0", "1"]), *((f"figure {n}", ["1282.5 MB", "7"]) for n in range(9))),
    right=tuple(f"figure {n}" for n in range(9)),
)


@pytest.mark.parametrize("width", [40, 80, 120, UNLIMITED])
def test_every_figure_is_whole_and_in_its_row_however_narrow_the_terminal(width: int) -> None:
    lines = printed(FIGURES, width)
    assert max(len(line.rstrip()) for line in lines) <= width
    assert " ".join(lines).count("1282.5 MB") == 9
    assert all(line.split()[0] == "0" for line in lines if "1282.5 MB" in line)
    assert sum("all" in line for line in lines) == 1


def test_rows_are_told_apart_by_as_many_columns_as_that_takes() -> None:
    twice = table(
        ("layout", ["tp4", "tp4"]), ("engine", ["torch", "vllm"]), ("a", ["1" * 30] * 2),
        ("b", ["2" * 30] * 2),
    )  # fmt: skip
    assert sum("vllm" in line for line in printed(twice, 60)) == 2
    assert sum("vllm" in line for line in printed(twice, 120)) == 1


def test_a_row_of_several_loads_is_told_by_its_load() -> None:
    loads = table(
        ("layout", ["tp2"] * 2), ("engine", ["torch"] * 2), ("scenario", ["short"] * 2),
        ("load", ["c1", "c8"]), ("a", ["1" * 30] * 2), ("b", ["2" * 30] * 2),
    )  # fmt: skip
    assert sum("c8" in line for line in printed(loads, 70)) == 2


def test_a_mark_in_front_of_the_names_does_not_stand_for_them() -> None:
    """With two rows a mark tells them apart, and says nothing."""
    rows = (("", ["*", ""]), ("layout", ["tp8", "pp5"]))
    for number in (1, 2):
        marked = table(
            *((title, cells[:number]) for title, cells in rows),
            ("a", ["1" * 30] * number),
            ("b", ["2" * 30] * number),
        )
        assert sum("tp8" in line for line in printed(marked, 60)) == 2


def test_a_row_that_leaves_out_what_the_one_above_it_has_is_told_by_more_columns() -> None:
    below = table(
        ("ranks", ["0-1", ""]), ("operation", ["all_gather", "all_reduce"]), ("a", ["1" * 30] * 2),
        ("b", ["2" * 30] * 2),
    )  # fmt: skip
    assert sum("all_reduce" in line for line in printed(below, 60)) == 2


@pytest.mark.parametrize("width", [40, 80])
def test_a_title_is_as_wide_as_the_console_and_not_as_its_table(width: int) -> None:
    lines = printed(table(("a", ["1"]), ("b", ["2"])), width)
    made = table(("a", ["1"]), ("b", ["2"]))
    made.title = "short (256 tokens in, 128 out)"
    assert [one.rstrip() for one in printed(made, width)] == [
        made.title, *(one.rstrip() for one in lines[1:])
    ]  # fmt: skip


def test_rows_of_styled_text_are_told_apart_too() -> None:
    made = Table(box=SIMPLE_HEAD)
    for title in ("what", "base", "new"):
        made.add_column(title)
    for name in ("torch", "ray"):
        made.add_row(Text(name, style="bold"), "1" * 30, "2" * 30)
    lines = printed(made, 50)
    assert sum("torch" in line for line in lines) == 2


def test_prose_is_broken_between_words_and_a_path_never_is() -> None:
    words = "the quick brown fox jumps over the lazy dog and goes home to its family of foxes"
    lines = printed(table(("what", ["a"]), ("advice", [words])), 60)
    assert max(map(len, lines)) <= 60
    assert " ".join(" ".join(lines[4:]).split()) == f"a {words}"
    assert any(LONG in line for line in printed(table(("x", ["1"]), ("folder", [LONG])), 40))


def test_a_table_that_fits_stays_one() -> None:
    (whole,) = fitted(FIGURES, console_of(file=io.StringIO(), width=UNLIMITED))
    assert whole is FIGURES


def test_a_pipe_gets_whole_sentences_and_tables_as_wide_as_columns_says() -> None:
    asked = ("explain", "tp2pp2", "--model", "llama-70b", "--memory", "141GB")
    wide = CliRunner().invoke(cli.main, asked).stdout
    narrow = CliRunner().invoke(cli.main, asked, env={"COLUMNS": "80"}).stdout

    def sentences(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith(("Of ", "What "))]

    assert sentences(narrow) == sentences(wide)
    assert max(map(len, sentences(wide))) > 100
    tables = [line for line in narrow.splitlines() if line.startswith("  ")]
    assert max(map(len, tables)) <= 80
    assert "\u2026" not in narrow


def test_a_refusal_is_broken_between_words_in_a_terminal_alone() -> None:
    command = [sys.executable, "-m", "orchestrator", "submit", "--max-starts", "3"]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
    variables = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    with os.fdopen(ours, "rb") as seen, os.fdopen(theirs, "wb") as terminal:
        there = subprocess.run(
            command, stdin=terminal, stdout=terminal, stderr=terminal, check=False, env=variables
        )
        lines = os.read(seen.fileno(), 10_000).decode().splitlines()
    piped = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert there.returncode == piped.returncode == 2
    assert len(piped.stderr.splitlines()) == 1
    assert len(lines) > 1
    assert max(map(len, lines)) <= 50
    assert " ".join(lines) == piped.stderr.strip()
