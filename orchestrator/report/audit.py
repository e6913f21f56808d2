"""Claims with their verdicts, as a table and as data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.audit.verdicts import (
    AGGREGATE,
    BITS,
    IMPOSSIBLE,
    NO_FIT,
    ORDER,
    POSSIBLE,
    Audited,
)
from orchestrator.report.text import plural, three_digits

COLOURS = {POSSIBLE: "green", AGGREGATE: "yellow", BITS: "yellow", NO_FIT: "red", IMPOSSIBLE: "red"}
TITLES = ("", "claim", "of", "limit", "verdict")


def render(found: Sequence[Audited], console: Console) -> None:
    """Print a row a claim, the arithmetic of each below, and how many there are of each verdict."""
    table = Table(box=SIMPLE_HEAD)
    for title in TITLES:
        table.add_column(title, overflow="fold", justify="right" if title == "limit" else "left")
    for number, one in enumerate(found, 1):
        verdict = Text(one.sentence, style=COLOURS.get(one.verdict, ""))
        table.add_row(str(number), one.claim.said, deployed(one), limit(one), verdict)
    console.print(table)
    for number, one in enumerate(found, 1):
        _explain(number, one, console)
    counts = Counter(one.verdict for one in found)
    told = ", ".join(f"{kind} {counts[kind]}" for kind in ORDER if counts[kind])
    console.print(f"{plural(len(found), 'claim')}: {told}.", highlight=False)


def as_data(found: Sequence[Audited]) -> list[dict[str, object]]:
    """A mapping a claim: the fields that it says, and what is said of it."""
    return [
        {
            "claim": one.claim.model_dump(exclude_defaults=True),
            "verdict": one.verdict,
            "sentence": one.sentence,
            "strategy": one.layout,
            "gpu": one.gpu,
            "limit": one.limit,
            "unit": None if one.limit is None else one.claim.kind.says,
            "requests": one.requests,
            "bits": one.bits,
            "arithmetic": one.arithmetic,
        }
        for one in found
    ]


def deployed(one: Audited) -> str:
    """What a claim is about, as it was judged."""
    claim = one.claim
    lengths = claim.scenario or (claim.lengths and "{}/{}".format(*claim.lengths))
    parts = (
        claim.model,
        one.layout,
        one.gpu or ", ".join(claim.gpu),
        f"{claim.weight_bits:g} bits" if one.layout else None,
        f"{claim.concurrency} concurrent" if claim.concurrency else None,
        lengths,
        f"{claim.prefix_hits:.0%} prefix hits" if claim.prefix_hits else None,
        f"{claim.tokens_per_pass:g} tokens a pass" if claim.tokens_per_pass > 1 else None,
    )
    return ", ".join(part for part in parts if part) or "-"


def limit(one: Audited) -> str:
    """The best figure that the arithmetic leaves; "-" where there is none."""
    return three_digits(one.limit)


def _explain(number: int, one: Audited, console: Console) -> None:
    """Print what was said, and the arithmetic of the verdict."""
    claim = one.claim
    heading = Text.assemble((f"{number}. {claim.said}: ", "bold"), one.sentence)
    console.print(heading)
    said = ", ".join(part for part in (claim.quote and f'"{claim.quote}"', claim.source) if part)
    for line in (said, *one.arithmetic):
        if line:
            console.print(Text(f"   {line}"))
