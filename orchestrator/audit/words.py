"""The arithmetic of a verdict, in words."""

from __future__ import annotations

import math

from orchestrator.audit.claims import Claim
from orchestrator.audit.limits import Deployed
from strategies.memory import RESERVE_BYTES
from workers.units import format_bytes, significant

UNLIMITED = "nothing limits the rate"


def memory(on: Deployed) -> str:
    """What the fullest GPU holds, and what it has."""
    card, (weights, kv_bytes) = on.card.memory, on.fullest
    has = "memory that is not known" if card is None else format_bytes(card)
    kv = ""
    if on.held:
        kv = f"; KV of one request of {on.held} tokens: {format_bytes(kv_bytes)}"
    total = f"{format_bytes(on.needed + RESERVE_BYTES)} of {has}"
    alone = ""
    if card is not None and on.needed <= card < on.needed + RESERVE_BYTES:
        alone = ", and it would fit without that reserve"
    return (
        f"Memory of the fullest GPU under {on.placed.layout.name}: weights of {on.bits:g} bits "
        f"{format_bytes(weights)}{kv}; in reserve {format_bytes(RESERVE_BYTES)}; together "
        f"{total}{alone}."
    )


def token(on: Deployed, concurrency: int) -> str:
    """How fast one request gets its tokens."""
    seconds, most = on.token_s(concurrency), on.speed(concurrency)
    every = f"a request gets a token every {_ms(seconds)} at least, {_rate(most)} at most"
    return f"{_pass(on, concurrency)}: {every if seconds else UNLIMITED}."


def throughput(on: Deployed, concurrency: int) -> str:
    """How fast all requests together get theirs."""
    most = on.throughput(concurrency)
    reached = f"{_rate(most)} in all at most" if math.isfinite(most) else UNLIMITED
    return f"{_pass(on, concurrency)}: {reached}."


def first_token(on: Deployed, _: int) -> str:
    """How soon the first token of a request can come."""
    hits = f", {on.cached} of them in a cache" if on.cached else ""
    sent = on.sent_s(on.computed, 1)
    links = f", and sending takes {_ms(sent)}" if sent else ""
    computed = f"{on.computed} {'token is' if on.computed == 1 else 'tokens are'} computed"
    return (
        f"A prompt of {on.computed + on.cached} tokens{hits}: weights are read in "
        f"{_ms(sum(stage.weights_s(on.rates) for stage in on.stages))}, {computed} in "
        f"{_ms(on.prompt_s(1))}{links}; the longest counts, {_ms(on.first_token_s())}."
    )


def memory_used(on: Deployed, _: int) -> str:
    """The least memory that serving takes."""
    gib = on.needed / (1 << 30)
    return (
        f"Without the reserve that is {format_bytes(on.needed)} at least, or {gib:.1f} GiB, as "
        "which the claim is read."
    )


def aggregate(on: Deployed, requests: int, figure: float) -> str:
    """With how many requests a figure is their sum."""
    fewer = ""
    if requests > 1:
        fewer = f", {requests - 1} make {_rate(on.throughput(requests - 1))}"
    return (
        f"{requests} requests at once make {_rate(on.throughput(requests))} in all at most"
        f"{fewer}; so {significant(figure, 6)} tok/s is of no fewer."
    )


def with_bits(bits: float, other: str) -> str:
    """The limit in fewer bits."""
    return f"In weights of {bits:g} bits: {other[0].lower()}{other[1:]}"


def too_few_bits(claim: Claim, least: float) -> str:
    """That no number of bits is small enough."""
    return f"{claim.said} is out of reach even in weights of {least:g} bit."


def to_fit(claim: Claim, bits: float | None) -> str:
    """What would fit."""
    judged = claim.figure is not None and not claim.kind.needs
    reached = f" and {claim.said} is not out of reach" if judged else ""
    if bits is None:
        return f"There is no number of bits a weight with which it fits{reached}."
    return f"From {bits:g} bits a weight down it fits{reached}."


def from_the_host(on: Deployed) -> tuple[str, ...]:
    """What it costs a pass to read from main memory what does not fit; nothing where that is not
    known."""
    card = on.card
    if card.memory is None or not card.host_link:
        return ()
    missing = on.needed + RESERVE_BYTES - card.memory
    return (
        f"Read from main memory, at {card.host_link / 1e9:g} GB/s, the {format_bytes(missing)} "
        f"that do not fit take {_ms(missing / card.host_link)} of each pass.",
    )


def beyond_the_card(on: Deployed) -> str:
    """That more memory is claimed than there is."""
    return f"The {on.card.name} has no more than {format_bytes(on.card.memory or 0)}."


def _pass(on: Deployed, concurrency: int) -> str:
    """What a decode pass with these requests reads."""
    requests = min(max(concurrency // on.replicas, 1), on.seats)
    load = on.load(requests)
    stage = max(on.stages, key=lambda one: one.decode_bytes(requests, one.context(load)))
    context = stage.context(load)
    kv = requests * context * stage.kv_bytes
    name = f"each of {len(on.stages)} stages in turn" if len(on.stages) > 1 else "each GPU"
    cache = format_bytes(on.rates.cache_bytes)
    return (
        f"With {_at_once(on, concurrency)}, {name} reads "
        f"{format_bytes(stage.weight_bytes)} of weights"
        f"{f' and {format_bytes(round(kv))} of KV' if kv else ''} a pass, less {cache} that a "
        f"cache may hold, at {on.rates.memory / 1e9:g} GB/s"
        f"{_arithmetic(on, requests, context)}{_links(on, requests)}"
    )


def _at_once(on: Deployed, concurrency: int) -> str:
    """How many requests each replica serves; they are dealt out one by one."""
    share, more = divmod(concurrency, on.replicas)
    if share >= on.seats:
        share, more = on.seats, 0
    count = _requests(share or 1)
    if share and more:
        count = f"{share} or {share + 1} requests"
    used = f"{more} of {on.replicas}" if not share else str(on.replicas)
    return f"{count} at once" + (f" in each of {used} replicas" if on.replicas > 1 else "")


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"


def _arithmetic(on: Deployed, requests: int, context: float) -> str:
    seconds = max(stage.decode_flops(requests, context) / on.rates.flops for stage in on.stages)
    return f", computes for {_ms(seconds)}" if seconds else ""


def _links(on: Deployed, requests: int) -> str:
    seconds = on.sent_s(requests, requests)
    return f", sends for {_ms(seconds)}" if seconds else ""


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _rate(tokens: float) -> str:
    return f"{tokens:.1f} tok/s" if tokens < 1000 else f"{tokens:,.0f} tok/s"
