"""Write docs/commands.md, docs/config.md and docs/metrics.md anew from the code:
`python scripts/reference_pages.py`. A test compares the pages with what this makes.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from orchestrator.cli import main
from orchestrator.experiment import Experiment
from workers.probes.gauges import METRICS, TAGS

DOCS = Path(__file__).resolve().parents[1] / "docs"
WIDTH = 118
ASKING, FEW = "submit", 20  # a command that lacks so few of its options names these and its own
TYPES = {
    "array": "list",
    "boolean": "true or false",
    "integer": "whole number",
    "number": "number",
    "object": "mapping",
    "string": "text",
}
BOUNDS = {
    "exclusiveMinimum": "over",
    "minimum": "from",
    "exclusiveMaximum": "under",
    "maximum": "to",
}


# -- commands


def commands_page() -> str:
    """Every command and its options, as `--help` has them."""
    return _page(
        "# Commands",
        "Every command with its arguments and options, as `orchestrator COMMAND --help` prints "
        "them, or `-h`. In brackets is what holds where an option is not given. "
        "[usage.md](usage.md) says what the commands are for, and [config.md](config.md) how the "
        "options of `submit` are written in a file.",
        *(part for name in sorted(main.commands) for part in _command(name, main.commands[name])),
    )


def _command(name: str, command: click.Command) -> Iterator[str]:
    pieces = command.collect_usage_pieces(_context(name, command))
    records, known = _options(name, command), _options(ASKING, main.commands[ASKING])
    missing = [one.split()[0] for one in known if one not in records]
    yield f"## {name}"
    yield f"```\norchestrator {name} {' '.join(pieces)}\n```"
    yield inspect.cleandoc(command.help or "").replace("\n", " ")
    if name != ASKING and len(missing) < FEW:
        yield f"It has the options of [{ASKING}](#{ASKING}), but for {', '.join(missing)}, and:"
        records = {one: said for one, said in records.items() if known.get(one) != said}
    yield table(["option", "meaning"], [[f"`{one}`", said] for one, said in records.items()])


def _context(name: str, command: click.Command) -> click.Context:
    return click.Context(command, info_name=name, parent=click.Context(main, info_name=None))


def _options(name: str, command: click.Command) -> dict[str, str]:
    """Names of each option -> what `--help` says of it."""
    context = _context(name, command)
    found = (one.get_help_record(context) for one in command.get_params(context))
    return {names: said for names, said in filter(None, found) if not names.endswith("--help")}


# -- fields of an experiment


def config_page() -> str:
    """Every field of a file for `--config`, in the order of their options."""
    fields = Experiment.model_json_schema()["properties"]
    order = list(options())
    named = sorted(fields.items(), key=lambda item: order.index(item[0]))
    rows = [[f"`{name}`", _type(one), _default(one), meaning(name)] for name, one in named]
    return _page(
        "# Fields of an experiment",
        "A file for `orchestrator submit --config FILE` is YAML and holds these fields. Each is "
        "an option of [submit](commands.md#submit) too, or of [ablate](commands.md#ablate), with "
        "`-` in place of `_`; an option that is given wins over the file. `orchestrator init` "
        "writes such a file for a machine, with comments.",
        "A relative path is seen from the folder of the file. A field that is not here, and a "
        "value out of bounds, is refused with one line that names it.",
        table(["field", "takes", "default", "meaning"], rows),
    )


def meaning(field: str) -> str:
    """What the command line says of a field. Raises KeyError for one that no option fills."""
    return options()[field]


def options() -> dict[str, str]:
    """The options of submit, then those of ablate: name -> help."""
    given = (one for name in ("submit", "ablate") for one in main.commands[name].params)
    told = {one.name: one.help for one in given if isinstance(one, click.Option)}
    return {name: text for name, text in told.items() if name and text}


def _type(schema: Mapping[str, Any]) -> str:
    kinds = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    return ", or ".join(map(_one_type, kinds))


def _one_type(schema: Mapping[str, Any]) -> str:
    choices = schema.get("enum") or [schema[key] for key in ("const",) if key in schema]
    if choices:
        return ", ".join(f"`{one}`" for one in choices)
    if schema.get("format") == "path":
        return "path"
    text = TYPES[schema["type"]]
    if schema["type"] == "array":
        return f"{text} of: {_one_type(schema['items'])}"
    bounds = [f"{word} {number(schema[key])}" for key, word in BOUNDS.items() if key in schema]
    return " ".join([text, *bounds])


def number(value: float) -> str:
    """A bound as people write it."""
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _default(schema: Mapping[str, Any]) -> str:
    value = schema.get("default")
    if value is None or value == []:
        return ""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"`{text.lower() if isinstance(value, bool) else text}`"


# -- metrics


def metrics_page() -> str:
    """What a rank reports while it runs."""
    rows = [
        [", ".join(f"`{name}`" for name in one.exported), one.kind.lower(), one.description + ".",
         ", ".join(tag for tag in one.tags if tag not in TAGS)]
        for one in METRICS
    ]  # fmt: skip
    return _page(
        "# Metrics of a run",
        "What each rank reports to Ray once a second while it runs, under the names that "
        "Prometheus sees. [dashboard.md](dashboard.md) says where to look at them, and what they "
        "are not for. The figures of results are in [columns.md](columns.md).",
        f"All have the tags {', '.join(f'`{tag}`' for tag in TAGS)}; some have one more.",
        table(["metric", "kind", "what it says", "one more tag"], rows),
    )


# -- pages


def _page(*parts: str) -> str:
    made = "This page is generated: `python scripts/reference_pages.py` writes it from the code."
    return (
        "\n\n".join([parts[0], *map(_said, parts[1:2]), _said(made), *map(_said, parts[2:])]) + "\n"
    )


def _said(text: str) -> str:
    """Prose, wrapped; a table, a heading or code as it is."""
    if text.startswith(("|", "#", "```")):
        return text
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(map(_cell, line))} |" for line in (titles, *rows)]
    return "\n".join([lines[0], "|---" * len(titles) + "|", *lines[1:]])


def _cell(text: str) -> str:
    """Text that a table can hold: no ends of lines, and no bar that is not meant."""
    return " ".join(text.split()).replace("|", "\\|")


PAGES = {
    DOCS / "commands.md": commands_page,
    DOCS / "config.md": config_page,
    DOCS / "metrics.md": metrics_page,
}

if __name__ == "__main__":
    for path, made in PAGES.items():
        path.write_text(made(), encoding="utf-8")
