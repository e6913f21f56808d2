"""A placement in words and numbers: what each rank holds, what fits beside it, what one decode step
sends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.experiment import SCENARIOS
from orchestrator.plan.attention import Attention
from orchestrator.plan.planning import PREFILL_TOKENS
from orchestrator.report.text import collectives_table, part, plural, stretch
from strategies import Layout, ModelShape, Placement, memory, traffic
from strategies.precision import PHASES, Precision
from workers.units import format_bytes

# Rows of a table of ranks; more of them repeat the pattern.
MOST_ROWS = 16
UNKNOWN = "What fits: unknown without the memory of a device; give it as --memory 141GB."
# Slices a reader looks for: title, the parameter of a layer that shows it, what one unit of it is.
SLICES = (
    ("heads", "self_attn.q_proj"),
    ("KV heads", "self_attn.k_proj"),
    ("MLP columns", "mlp.gate_proj"),
)


@dataclass(frozen=True, slots=True)
class RankShare:
    """What one rank holds. Ranges are [start, stop); bytes are of weights, and of keys and values
    per token."""

    rank: int
    device: int
    coordinates: dict[str, int]
    layers: tuple[tuple[int, int], ...]
    slices: dict[str, tuple[int, int]]
    weight_bytes: int
    kv_bytes_per_token: int
    collectives: tuple[traffic.Traffic, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A layout of one model, worked out.

    sizes: the full size of what each slice is a part of. batch: requests in the decode step whose
    collectives are listed. gathered_bytes: parameters that a rank uses and does not store, brought
    in at every forward pass (ZeRO). budget: bytes on the fullest rank, None where the memory of a
    device is unknown. requests: scenario -> how many fit at once. quantization: what is FP8.
    phase_bytes: phase -> weights of the fullest rank in the form that it reads; what the two do not
    have in common is held twice. nodes: rank -> its node, () where there is one.
    """

    model: str
    attention: Attention
    layout: str
    dtype: str
    quantization: str
    engine: str | None
    replicas: int
    batch: int
    sizes: dict[str, int]
    ranks: tuple[RankShare, ...]
    budget: memory.Budget | None
    requests: dict[str, int]
    gathered_bytes: int
    phase_bytes: dict[str, int]
    nodes: tuple[str, ...] = ()


def explain(
    layout: Layout,
    model: ModelShape,
    precision: Precision,
    memory_bytes: int = 0,
    batch: int = 1,
    prefill_tokens: int | None = None,
    nodes: tuple[str, ...] = (),
) -> Explanation:
    """Work out `layout` of `model` on devices of `memory_bytes` (0 = unknown); `batch` requests
    decode together in one replica. nodes: see `Explanation`."""
    placement = layout.placement
    prefill = prefill_tokens or PREFILL_TOKENS
    known = bool(memory_bytes)
    budget = memory.budget(placement, model, precision, memory_bytes, prefill) if known else None
    ranks = range(placement.num_ranks)
    return Explanation(
        model=model.name,
        attention=Attention.of(model),
        layout=layout.name,
        dtype=precision.dtype,
        quantization=precision.name,
        engine=layout.engine,
        replicas=placement.degree("dp"),
        batch=batch,
        sizes=_sizes(model),
        ranks=tuple(_rank_share(placement, model, rank, precision, batch) for rank in ranks),
        budget=budget,
        requests=_requests(budget, placement.degree("dp")),
        gathered_bytes=_gathered_bytes(placement, model, precision),
        phase_bytes=_phase_bytes(placement, model, precision),
        nodes=nodes,
    )


def as_data(explanation: Explanation) -> dict[str, object]:
    """Plain data for `json.dumps`."""
    return asdict(explanation)


def render(explanation: Explanation, console: Console) -> None:
    """Print the placement, what fits and the collectives of a decode step."""
    model, layout, fp8 = explanation.model, explanation.layout, explanation.quantization
    kept = explanation.dtype if fp8 == "none" else f"{explanation.dtype}, {fp8}"
    title = Text.assemble((model, "bold"), " under ", (layout, "bold"), f" in {kept}: ")
    console.print(title.append(_summary(explanation)))
    console.print(ranks_table(explanation))
    console.print(explanation.attention.sentence, highlight=False)
    for line in (*phase_lines(explanation), *_fit_lines(explanation)):
        console.print(line, highlight=False)
    if explanation.gathered_bytes:
        gathered = format_bytes(explanation.gathered_bytes)
        console.print(
            f"Stored in parts: {gathered} of parameters come from other replicas in every forward "
            "pass.",
            highlight=False,
        )
    console.print(_collectives_table(explanation))


def ranks_table(explanation: Explanation) -> Table:
    """One row a rank: where it is and what it holds."""
    table = Table(box=SIMPLE_HEAD)
    axes = list(reversed(explanation.ranks[0].coordinates))  # outermost first
    wholes = [f"{title}\nof {whole}" for title, whole in explanation.sizes.items()]
    where = ("node",) if explanation.nodes else ()
    for title in ("rank", *where, "device", *axes, "layers", *wholes, "weights", "KV a token"):
        table.add_column(title, justify="right")
    for share in explanation.ranks[:MOST_ROWS]:
        table.add_row(
            str(share.rank),
            *explanation.nodes[share.rank : share.rank + 1],
            str(share.device),
            *(str(share.coordinates[axis]) for axis in axes),
            ", ".join(stretch(layers) for layers in share.layers) or "none",
            *(part(share.slices.get(title), whole) for title, whole in explanation.sizes.items()),
            format_bytes(share.weight_bytes),
            format_bytes(share.kv_bytes_per_token),
        )
    hidden = len(explanation.ranks) - MOST_ROWS
    if hidden > 0:
        table.caption = f"and {hidden} more ranks in the same pattern"
    return table


# -- what is worked out


def _sizes(model: ModelShape) -> dict[str, int]:
    return {
        "heads": model.num_heads,
        "KV heads": model.num_kv_heads,
        "MLP columns": model.intermediate_size,
        "vocabulary": model.vocab_size,
    }


def _requests(budget: memory.Budget | None, replicas: int) -> dict[str, int]:
    """Scenario -> requests that fit at once, in all replicas."""
    if budget is None:
        return {}
    tokens = budget.kv_tokens
    return {name: tokens // sum(lengths) * replicas for name, lengths in SCENARIOS.items()}


def _rank_share(
    placement: Placement, model: ModelShape, rank: int, precision: Precision, batch: int
) -> RankShare:
    layers = [stage.layers for stage in placement.stages_of(rank) if stage.layers]
    return RankShare(
        rank=rank,
        device=placement.devices[rank],
        coordinates=placement.coordinates(rank),
        layers=tuple((one.start, one.stop) for one in layers),
        slices={**_layer_slices(placement, model, rank), **_vocabulary(placement, model, rank)},
        weight_bytes=memory.weight_bytes(placement, model, rank, precision),
        kv_bytes_per_token=memory.kv_bytes_per_token(placement, model, rank, precision),
        collectives=traffic.decode_step(placement, model, rank, batch, precision.dtype_bytes),
    )


def _gathered_bytes(placement: Placement, model: ModelShape, precision: Precision) -> int:
    """Bytes of parameters that rank 0 gets from other replicas in a forward pass."""
    used = memory.weight_bytes(placement, model, 0, precision, stored=False)
    return used - memory.weight_bytes(placement, model, 0, precision)


def _phase_bytes(placement: Placement, model: ModelShape, precision: Precision) -> dict[str, int]:
    """Phase -> the most bytes of weights that a rank has in the form that the phase reads."""
    ranks = range(placement.num_ranks)
    return {
        phase: max(
            memory.weight_bytes(placement, model, rank, precision, phase=phase) for rank in ranks
        )
        for phase in PHASES
    }


def _layer_slices(
    placement: Placement, model: ModelShape, rank: int
) -> Mapping[str, tuple[int, int]]:
    """The slices of a layer that `rank` computes with, in units of heads and columns. Empty for a
    rank without layers."""
    layers = [stage.layers for stage in placement.stages_of(rank) if stage.layers]
    shapes = dict(model.layer_parameters())
    found = {}
    for title, parameter in SLICES if layers else ():
        suffix = f"{parameter}.weight"
        name = f"model.layers.{layers[0].start}.{suffix}"
        rows = placement.shard(name, shapes[suffix], rank, stored=False)[0]
        unit = model.head_dim if "heads" in title else 1
        found[title] = (rows.start // unit, -(-rows.stop // unit))
    return found


def _vocabulary(
    placement: Placement, model: ModelShape, rank: int
) -> Mapping[str, tuple[int, int]]:
    """The rows of the vocabulary that `rank` holds: those of the head if it holds the head, else
    those of the embedding. Empty if it holds neither."""
    found, shape = {}, (model.vocab_size, model.hidden_size)
    heads = () if model.tie_embeddings else ("lm_head.weight",)
    for name in ("model.embed_tokens.weight", *heads):
        if placement.holds(name, rank, model):
            rows = placement.shard(name, shape, rank, stored=False)[0]
            found["vocabulary"] = (rows.start, rows.stop)
    return found


# -- how it is said


def _summary(explanation: Explanation) -> str:
    replicas, engine = explanation.replicas, explanation.engine
    parts = [plural(len(explanation.ranks), "rank")]
    parts += [plural(replicas, "replica")] if replicas > 1 else []
    parts += [f"runs on the engine {engine} alone"] if engine else []
    return ", ".join(parts)


def phase_lines(explanation: Explanation) -> Iterator[str]:
    """What it costs that the phases do not read the same weights."""
    prefill, decode = (explanation.phase_bytes[phase] for phase in PHASES)
    if prefill != decode:
        held = max(share.weight_bytes for share in explanation.ranks)
        yield (
            f"Precision by phase: prefill reads {format_bytes(prefill)} of weights and decode "
            f"{format_bytes(decode)}; the fullest rank holds {format_bytes(held)}, "
            f"{format_bytes(held - max(prefill, decode))} more than with the larger of the two."
        )


def _fit_lines(explanation: Explanation) -> Iterator[str]:
    budget = explanation.budget
    if budget is None:
        yield UNKNOWN
        return
    yield from _taken(budget)
    if budget.kv_tokens <= 0:
        yield "What fits: nothing, there is no room for KV."
        return
    requests = ", ".join(
        f"{count} requests of {name} ({sum(SCENARIOS[name])} tokens)"
        for name, count in explanation.requests.items()
    )
    replica = "a replica" if explanation.replicas > 1 else "in all"
    yield f"What fits: {budget.kv_tokens} tokens of KV {replica}; at once, {requests}."


def _taken(budget: memory.Budget) -> Iterator[str]:
    usable = max(int(budget.available * memory.UTILIZATION) - memory.RESERVE_BYTES, 0)
    yield (
        f"Of {format_bytes(budget.available)} a device, {format_bytes(usable)} can be used "
        f"({memory.UTILIZATION:.0%}, less {format_bytes(memory.RESERVE_BYTES)} in reserve)."
    )
    yield (
        f"The fullest rank takes {format_bytes(budget.weights)} for weights and "
        f"{format_bytes(budget.workspace)} for activations."
    )


def _collectives_table(explanation: Explanation) -> Table | str:
    batch = plural(explanation.batch, "request")
    other = " other" if explanation.gathered_bytes else ""
    return (
        collectives_table(
            f"collectives of one decode step of {batch}, per rank",
            ((share.rank, share.collectives) for share in explanation.ranks),
            {
                "calls": lambda one: str(one.calls),
                "bytes a call": lambda one: format_bytes(one.bytes // one.calls),
                "bytes": lambda one: format_bytes(one.bytes),
            },
        )
        or f"A decode step needs no{other} collective."
    )
