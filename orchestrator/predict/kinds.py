"""Which kinds of GPU come into question, and which do not for want of figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.errors import UserError
from orchestrator.node.datasheet import SHEETS, capability
from orchestrator.plan.precision import lacks_fp8
from orchestrator.predict.hardware import Hardware, find
from orchestrator.predict.plan import Machines
from strategies.precision import PHASES, Precision

MOST_PRICE = 1e6


@dataclass(frozen=True, slots=True)
class Kinds:
    """hardware: of which enough is known. left_out: name -> why, of the others."""

    hardware: tuple[Hardware, ...]
    left_out: Mapping[str, str]


def kinds(
    names: Sequence[str], precision: Precision, gpus_per_node: int | None, network: float | None
) -> Kinds:
    """Those of `names`; none: all that have a data sheet and whose GPUs are joined by a link that
    is known, as without it no layout that communicates can be looked at. Raises UserError for one
    that is named and of which too little is known."""
    found, left_out = [], {}
    for name in dict.fromkeys(find(one)[0] for one in names) if names else SHEETS:
        try:
            one = Machines(name, 1, gpus_per_node, network).hardware()
            why = _missing(one, precision) or (None if names else _unjoined(one))
        except UserError as error:
            why = str(error)
        if why is None:
            found.append(one)
        elif names:
            raise UserError(why)
        else:
            left_out[name] = why
    return Kinds(tuple(found), left_out)


def _missing(hardware: Hardware, precision: Precision) -> str | None:
    """What it has not, or is not known, and is needed."""
    if hardware.memory_bytes is None:
        return f"how much memory {hardware.name} has is not known; use another --gpu"
    if why := lacks_fp8(precision.name, hardware.name, capability(hardware.name)):
        return f"{why}; use another --gpu"
    wanted = ["float8_e4m3fn" if precision.is_fp8(p) else precision.dtype for p in PHASES]
    lacking = [dtype for dtype in wanted if dtype not in hardware.ceilings.flops]
    if lacking:
        return f"no rate of {hardware.name} in {lacking[0]} is known; use another --gpu"
    return None


def _unjoined(hardware: Hardware) -> str | None:
    if hardware.fabric.link is None:
        return f"what joins the GPUs of {hardware.name} is not known"
    return None


def unlooked(hardware: Iterable[Hardware], gpus: int) -> tuple[str, ...]:
    """Which layouts of so many GPUs have no prediction, as a link is not known."""
    return tuple(
        f"of {one.name} layouts that send between {where}, as that link is not known"
        for one in hardware
        if (where := _unknown_link(one, gpus)) is not None
    )


def _unknown_link(hardware: Hardware, gpus: int) -> str | None:
    """What it would join."""
    fabric = hardware.fabric
    if gpus > 1 and fabric.link is None and not fabric.curves:
        return "GPUs"
    return "nodes" if gpus > hardware.gpus_per_node and fabric.network is None else None


def prices(texts: Iterable[str], hardware: Sequence[Hardware]) -> dict[str, float]:
    """`h200=4.0,h100=2.5` by the kinds' names. Raises UserError for another form, and for a kind
    that is not among `hardware`."""
    found: dict[str, float] = {}
    for word in (word.strip() for text in texts for word in text.split(",")):
        name, separator, price = word.partition("=")
        if not (name and separator and _is_price(price)):
            raise UserError(f"--gpu-hour-cost is NAME=X, as in h200=4.0; found '{word}'")
        kind = find(name)[0]
        if kind not in [one.name for one in hardware]:
            known = ", ".join(one.name for one in hardware)
            raise UserError(f"--gpu-hour-cost {word}: {kind} is not looked at; these are: {known}")
        if found.setdefault(kind, float(price)) != float(price):
            raise UserError(f"--gpu-hour-cost has two prices of {kind}; give one")
    return found


def _is_price(text: str) -> bool:
    try:
        return 0 <= float(text) <= MOST_PRICE
    except ValueError:
        return False


def counts(most: int) -> tuple[int, ...]:
    """Numbers of GPUs as they are rented: 1, 2, 4 ... and `most`."""
    powers = (1 << exponent for exponent in range(most.bit_length()))
    return (*(one for one in powers if one < most), most)
