"""Whether layouts made the same tokens: a digest of a run's outputs, and which layouts agree with
which."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.store.schema import RunKey
from workers.records import RequestRow
from workers.rows import Table, column, grouped, row

DIGITS = 16
# Sums in another order seldom turn its greedy tokens; in the narrower types they often do.
EXACT = "float32"
EXPECTED = (
    "differences are expected: each layout sums in another order, and {dtype} rounds each sum"
)
UNEXPECTED = "this is not expected in float32 with the same weights, prompts and seed"


@row
class KeptRequest(RequestRow, RunKey):
    """A row of the table `requests`, as it is kept: tokens and text for a detailed run alone."""

    output_text: str | None = column("the tokens as text, where there is a tokenizer")


KEPT_REQUESTS = Table("requests", KeptRequest)


@dataclass(frozen=True, slots=True)
class CellOutput:
    """What one of the cells that did the same work made.

    digest: of every run; None where they differ or are unknown. distinct: different outputs that
    its runs made.
    """

    name: str
    dtype: str
    digest: str | None
    distinct: int


def kept_requests(
    requests: pa.Table, detailed: bool, decode: Callable[[Sequence[int]], str] | None
) -> pa.Table:
    """The requests of a run as they are kept (without their keys): tokens, and their text where
    there is a tokenizer, only if `detailed`."""
    if not detailed:
        return requests.drop_columns(["output_token_ids"])
    if decode is None:
        return requests
    tokens = requests.column("output_token_ids").to_pylist()
    texts = [None if ids is None else decode(ids) for ids in tokens]
    return requests.append_column("output_text", pa.array(texts, type=pa.string()))


def output_digest(requests: pa.Table) -> str | None:
    """16 hex digits of SHA-256 over (request_index, number of tokens, tokens), by request; None
    where the tokens are unknown.

    requests: table REQUESTS, in any order.
    """
    if "output_token_ids" not in requests.column_names:
        return None
    ordered = requests.select(["request_index", "output_token_ids"]).sort_by("request_index")
    indices, outputs = (column.to_pylist() for column in ordered.columns)
    if not outputs or any(tokens is None for tokens in outputs):
        return None
    sha = hashlib.sha256()
    for index, tokens in zip(indices, outputs, strict=True):
        sha.update(np.array([index, len(tokens), *tokens], dtype="<i8").tobytes())
    return sha.hexdigest()[:DIGITS]


def agreement(digests: Mapping[str, str | None]) -> list[list[str]]:
    """Names that share a digest, in alphabetical order, the largest group first; a name without a
    digest is left out."""
    known = sorted(name for name, digest in digests.items() if digest is not None)
    groups = grouped(known, digests.__getitem__)
    return sorted(groups.values(), key=lambda names: (-len(names), names))


def sentence(cells: Sequence[CellOutput]) -> str | None:
    """One line on the outputs of cells that did the same work; None where there is nothing to
    compare."""
    groups = agreement({cell.name: cell.digest for cell in cells})
    unstable = [cell.name for cell in cells if cell.distinct > 1]
    if sum(map(len, groups)) < 2 and not unstable:
        return None
    parts = [f"the same under {', '.join(group)}" for group in groups if len(group) > 1]
    if len(parts) == 1 and all(len(group) > 1 for group in groups) and not unstable:
        return f"Output tokens: {parts[0]}."
    alone = [group[0] for group in groups if len(group) == 1]
    each = "" if parts or len(alone) == 1 else "each of "
    parts += [f"different under {each}{', '.join(alone)}"] if alone else []
    parts += [f"not the same in every run of {', '.join(unstable)}"] if unstable else []
    return f"Output tokens: {'; '.join(parts)} ({_reason(cells)})."


def _reason(cells: Sequence[CellOutput]) -> str:
    dtypes = sorted({cell.dtype for cell in cells} - {EXACT})
    return EXPECTED.format(dtype=" and ".join(dtypes)) if dtypes else UNEXPECTED


def samples(requests: pa.Table | None, index: int = 0) -> Iterator[str]:
    """One line for each text that was made for request `index`, with the layouts that made it;
    nothing without texts."""
    if requests is None or "output_text" not in requests.column_names:
        return
    mine = requests.filter(pc.equal(requests["request_index"], index))
    made: dict[str, set[str]] = {}
    texts, layouts = (mine.column(name).to_pylist() for name in ("output_text", "strategy"))
    for text, layout in zip(texts, layouts, strict=True):
        if text is not None:
            made.setdefault(text, set()).add(layout)
    for text, found in made.items():
        yield f"Request {index} under {', '.join(sorted(found))}: {' '.join(text.split())!r}"
