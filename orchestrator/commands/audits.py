"""Claims held against what the hardware can do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.report.output import Output

if TYPE_CHECKING:
    from orchestrator.audit.claims import Claim
    from orchestrator.audit.limits import Card, Deployed, Placed
    from orchestrator.audit.verdicts import Audited


def audit(
    file: Path | None, phrases: Sequence[str], defaults: Mapping[str, Any], as_json: bool
) -> None:
    """Print the verdict on each claim of a file, or on those in words. defaults: fields that hold
    where a claim says nothing of them."""
    from orchestrator.report import audit as report

    found = audited(_claims(file, phrases, defaults))
    Output(as_json).show(
        lambda: report.as_data(found), lambda console: report.render(found, console)
    )


def audited(claims: Sequence[Claim]) -> list[Audited]:
    """The verdict on each claim. Raises UserError for a model, a GPU or a layout that is not known,
    with the place of the claim."""
    from orchestrator.errors import Refused, UserError

    placed, found = functools.cache(_placed), []
    for number, claim in enumerate(claims, 1):
        try:
            found.append(_judged(claim, placed))
        except Refused as error:
            where = f"claim {number}: " if len(claims) > 1 else ""
            raise UserError(f"{where}{error}") from error
    return found


def _judged(claim: Claim, placed: Callable[..., list[Placed]]) -> Audited:
    from orchestrator.audit.verdicts import cannot_be, judge
    from strategies import LayoutError
    from strategies.registry import discover, known_parts

    if claim.strategy is not None:
        known_parts(claim.strategy, discover())
    try:
        return judge(claim, _candidates(claim, placed))
    except LayoutError as error:
        return cannot_be(claim, f"{error}.")


def _claims(
    file: Path | None, phrases: Sequence[str], defaults: Mapping[str, Any]
) -> Sequence[Claim]:
    from orchestrator.audit.claims import load_claims
    from orchestrator.audit.phrases import parse

    if (file is None) == (not phrases):
        raise click.UsageError("give a file of claims, or --claim with one in words")
    if file is not None:
        return load_claims(file, defaults)
    return [parse(phrase, defaults) for phrase in phrases]


def _candidates(claim: Claim, placed: Callable[..., list[Placed]]) -> list[Deployed]:
    """Every layout on every card that the claim may mean; none where it names no model or GPU."""
    from orchestrator.audit.limits import Deployed

    if claim.model is None or not claim.gpu:
        return []
    cards = [_card(name) for name in claim.gpu]
    layouts = placed(claim.model, claim.strategy, claim.gpus, claim.compute_dtype)
    return [Deployed.of(claim, layout, card) for layout in layouts for card in cards]


def _placed(model: str, strategy: str | None, gpus: int | None, dtype: str) -> list[Placed]:
    """The layouts that a claim may mean."""
    from orchestrator.audit.limits import Placed
    from orchestrator.plan import models
    from orchestrator.plan.layouts import layouts_of

    shape = models.resolve(model, "dummy").shape
    return [Placed(layout, shape, dtype) for layout in layouts_of(shape, strategy, gpus)]


def _card(name: str) -> Card:
    from orchestrator.audit.limits import Card
    from orchestrator.errors import UserError
    from orchestrator.node import datasheet

    words, sheet = datasheet.entry(name) or ("", None)
    ceilings = datasheet.ceilings(name)
    if sheet is None or ceilings is None:
        known = ", ".join(words for words, one in datasheet.SHEETS.items() if one.hbm and one.l2)
        raise UserError(f"there is no data sheet of the GPU '{name[:60]}'; known are {known}")
    return Card(words, ceilings, sheet.memory_bytes, sheet.link, sheet.host_link, sheet.bridge)
