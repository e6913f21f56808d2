"""Whether layouts made the same tokens: a digest of a run's outputs, and which layouts agree with
which."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DIGITS = 16
# sums in another order seldom turn its greedy tokens; in the narrower types they often do
EXACT = "float32"
EXPECTED = (
    "differences are expected: each layout sums in another order, and {dtype} rounds each sum"
)
UNEXPECTED = "this is not expected in float32 with the same weights, prompts and seed"


def output_digest(requests: pa.Table) -> str | None:
    """16 hex digits of SHA-256 over (request_index, number of tokens, tokens), by request; None
    where the tokens are unknown.

    requests: in the schema REQUESTS, in any order.
    """
    if "output_token_ids" not in requests.column_names:
        return None
    rows = requests.select(["request_index", "output_token_ids"]).to_pylist()
    if not rows or any(row["output_token_ids"] is None for row in rows):
        return None
    sha = hashlib.sha256()
    for row in sorted(rows, key=lambda row: row["request_index"]):
        tokens = row["output_token_ids"]
        sha.update(np.array([row["request_index"], len(tokens), *tokens], dtype="<i8").tobytes())
    return sha.hexdigest()[:DIGITS]


def agreement(digests: Mapping[str, str | None]) -> list[list[str]]:
    """Names that share a digest, in alphabetical order, the largest group first; a name without a
    digest is left out."""
    groups: dict[str, list[str]] = {}
    for name in sorted(digests):
        digest = digests[name]
        if digest is not None:
            groups.setdefault(digest, []).append(name)
    return sorted(groups.values(), key=lambda names: (-len(names), names))


def sentence(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str | None:
    """One line on the outputs of the cells of a comparison that did the same work; None where there
    is nothing to compare.

    names: what each of `rows` is called. rows: with `output_digest`, `distinct_outputs` and
    `dtype`.
    """
    groups = agreement({name: row["output_digest"] for name, row in zip(names, rows, strict=True)})
    restless = [
        name for name, row in zip(names, rows, strict=True) if (row["distinct_outputs"] or 0) > 1
    ]
    if sum(map(len, groups)) < 2 and not restless:
        return None
    shared = [f"the same under {', '.join(group)}" for group in groups if len(group) > 1]
    alone = [group[0] for group in groups if len(group) == 1]
    parts = shared + (
        [f"different under {'' if shared or len(alone) == 1 else 'each of '}{', '.join(alone)}"]
        if alone
        else []
    )
    parts += [f"not the same in every run of {', '.join(restless)}"] if restless else []
    if len(shared) == len(parts) == 1:
        return f"Output tokens: {parts[0]}."
    dtypes = sorted({row["dtype"] for row in rows} - {EXACT})
    reason = EXPECTED.format(dtype=" and ".join(dtypes)) if dtypes else UNEXPECTED
    return f"Output tokens: {'; '.join(parts)} ({reason})."


def samples(requests: pa.Table | None, index: int = 0) -> Iterator[str]:
    """One line for each text that was made for request `index`, with the layouts that made it;
    nothing without texts."""
    if requests is None or "output_text" not in requests.column_names:
        return
    made: dict[str, list[str]] = {}
    for row in requests.filter(pc.equal(requests["request_index"], index)).to_pylist():
        if row["output_text"] is not None and row["strategy"] not in made.setdefault(
            row["output_text"], []
        ):
            made[row["output_text"]].append(row["strategy"])
    for text, layouts in made.items():
        yield f"Request {index} under {', '.join(sorted(layouts))}: {' '.join(text.split())!r}"
