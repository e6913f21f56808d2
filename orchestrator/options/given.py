"""Options that were given, as fields of an experiment."""

from __future__ import annotations

from typing import Any

import click


def given(
    metadata: tuple[str, ...] = (), engine_arg: tuple[str, ...] = (), **options: Any
) -> dict[str, object]:
    """Those that are not None and not (), with pairs KEY=VALUE as mappings. Raises UsageError for
    a text that is no pair."""
    fields = {name: value for name, value in options.items() if value is not None and value != ()}
    for name, texts in (("metadata", metadata), ("engine_arg", engine_arg)):
        if texts:
            fields[name] = dict(_pair(name, text) for text in texts)
    return fields


def _pair(name: str, text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise click.UsageError(f"--{name.replace('_', '-')} '{text}' is not KEY=VALUE")
    return key, value
