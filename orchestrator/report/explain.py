"""A placement in words and numbers: what each rank holds, what fits beside it, what one decode step
sends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from orchestrator.experiment import SCENARIOS
from orchestrator.plan.planning import default_prefill_tokens
from orchestrator.units import format_bytes
from strategies import Layout, ModelShape, Placement, memory, traffic
from strategies.shapes import DTYPE_BYTES

# Rows of a table of ranks; more of them repeat the pattern.
MOST_ROWS = 16
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

    sizes: the whole of what each slice is a part of. batch: requests in the decode step whose
    collectives are listed.
    gathered_bytes: parameters that a rank uses and does not store, brought in at every forward pass
    (ZeRO).
    budget: bytes on the fullest rank, None where the memory of a device is unknown. requests:
    scenario -> how many fit at once.
    """

    model: str
    layout: str
    dtype: str
    engine: str | None
    replicas: int
    batch: int
    sizes: dict[str, int]
    ranks: tuple[RankShare, ...]
    budget: memory.Budget | None
    requests: dict[str, int]
    gathered_bytes: int


def explain(
    layout: Layout,
    model: ModelShape,
    dtype: str,
    memory_bytes: int = 0,
    batch: int = 1,
    prefill_tokens: int | None = None,
) -> Explanation:
    """Work out `layout` of `model` on devices of `memory_bytes` (0 = unknown); `batch` requests
    decode together in one replica."""
    prefill_tokens = prefill_tokens or default_prefill_tokens(layout.placement)
    placement, size = layout.placement, DTYPE_BYTES[dtype]
    budget = (
        memory.budget(placement, model, size, memory_bytes, prefill_tokens)
        if memory_bytes
        else None
    )
    replicas = placement.degree("dp")
    fits = (
        {name: budget.kv_tokens // sum(lengths) * replicas for name, lengths in SCENARIOS.items()}
        if budget
        else {}
    )
    sizes = {
        "heads": model.num_heads,
        "KV heads": model.num_kv_heads,
        "MLP columns": model.intermediate_size,
    }
    return Explanation(
        model.name,
        layout.name,
        dtype,
        layout.engine,
        replicas,
        batch,
        {**sizes, "vocabulary": model.vocab_size},
        tuple(
            _rank_share(placement, model, rank, size, batch) for rank in range(placement.num_ranks)
        ),
        budget,
        fits,
        _fetched_bytes(placement, model, size),
    )


def as_data(explanation: Explanation) -> dict[str, Any]:
    """Plain data for `json.dumps`."""
    return asdict(explanation)


def render(explanation: Explanation, console: Console) -> None:
    """Print the placement, what fits and the collectives of a decode step."""
    title = (
        f"[bold]{explanation.model}[/bold] under [bold]{explanation.layout}[/bold] in "
        f"{explanation.dtype}"
    )
    console.print(f"{title}: {_summary(explanation)}")
    console.print(ranks_table(explanation))
    for line in _fit_lines(explanation):
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
    for title in ("rank", "device", *axes, "layers"):
        table.add_column(title, justify="right")
    for title, whole in explanation.sizes.items():
        table.add_column(f"{title}\nof {whole}", justify="right")
    for title in ("weights", "KV a token"):
        table.add_column(title, justify="right")
    for share in explanation.ranks[:MOST_ROWS]:
        table.add_row(
            str(share.rank),
            str(share.device),
            *(str(share.coordinates[axis]) for axis in axes),
            ", ".join(_span(*layers) for layers in share.layers) or "none",
            *(_part(share.slices.get(title), whole) for title, whole in explanation.sizes.items()),
            format_bytes(share.weight_bytes),
            format_bytes(share.kv_bytes_per_token),
        )
    hidden = len(explanation.ranks) - MOST_ROWS
    if hidden > 0:
        table.caption = f"and {hidden} more ranks in the same pattern"
    return table


def _rank_share(
    placement: Placement, model: ModelShape, rank: int, size: int, batch: int
) -> RankShare:
    return RankShare(
        rank=rank,
        device=placement.devices[rank],
        coordinates=placement.coordinates(rank),
        layers=tuple(
            (stage.layers.start, stage.layers.stop)
            for stage in placement.stages_of(rank)
            if stage.layers
        ),
        slices=dict(_slices(placement, model, rank)),
        weight_bytes=memory.weight_bytes(placement, model, rank, size),
        kv_bytes_per_token=memory.kv_bytes_per_token(placement, model, rank, size),
        collectives=traffic.decode_step(placement, model, rank, batch, size),
    )


def _fetched_bytes(placement: Placement, model: ModelShape, size: int) -> int:
    """Bytes of parameters that rank 0 gets from other replicas in a forward pass."""
    return memory.weight_bytes(placement, model, 0, size, stored=False) - memory.weight_bytes(
        placement, model, 0, size
    )


def _slices(
    placement: Placement, model: ModelShape, rank: int
) -> Iterator[tuple[str, tuple[int, int]]]:
    """What `rank` computes with, in units of heads, columns and vocabulary rows; what it does not
    hold is left out."""
    layers = [stage.layers for stage in placement.stages_of(rank) if stage.layers]
    shapes = dict(model.layer_parameters())
    for title, parameter in SLICES if layers else ():
        suffix = f"{parameter}.weight"
        rows = placement.shard(
            f"model.layers.{layers[0].start}.{suffix}", shapes[suffix], rank, stored=False
        )[0]
        unit = model.head_dim if "heads" in title else 1
        yield title, (rows.start // unit, -(-rows.stop // unit))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if placement.holds(name, rank, model) and not (
            name == "lm_head.weight" and model.tie_embeddings
        ):
            rows = placement.shard(name, (model.vocab_size, model.hidden_size), rank, stored=False)[
                0
            ]
            yield "vocabulary", (rows.start, rows.stop)


def _summary(explanation: Explanation) -> str:
    ranks, replicas = len(explanation.ranks), explanation.replicas
    text = f"{ranks} rank{'s' if ranks > 1 else ''}"
    if replicas > 1:
        text += f", {replicas} replicas"
    return text + (f", runs on the engine {explanation.engine} alone" if explanation.engine else "")


def _fit_lines(explanation: Explanation) -> Iterator[str]:
    budget = explanation.budget
    if budget is None:
        yield "What fits: unknown without the memory of a device; give it as --memory 141GB"
        return
    usable = max(int(budget.available * memory.UTILIZATION) - memory.RESERVE_BYTES, 0)
    yield (
        f"Of {format_bytes(budget.available)} a device, {format_bytes(usable)} can be used "
        f"({memory.UTILIZATION:.0%}, less "
        f"{format_bytes(memory.RESERVE_BYTES)} in reserve); the fullest rank takes "
        f"{format_bytes(budget.weights)} for weights and "
        f"{format_bytes(budget.workspace)} for activations."
    )
    if budget.kv_tokens <= 0:
        yield "What fits: nothing, there is no room for KV."
        return
    requests = ", ".join(
        f"{count} requests of {name} ({sum(SCENARIOS[name])} tokens)"
        for name, count in explanation.requests.items()
    )
    replica = "a replica" if explanation.replicas > 1 else "in all"
    yield f"What fits: {budget.kv_tokens} tokens of KV {replica}; at once, {requests}."


def _collectives_table(explanation: Explanation) -> Table | str:
    groups: dict[tuple[traffic.Traffic, ...], list[int]] = {}
    for share in explanation.ranks:
        if share.collectives:
            groups.setdefault(share.collectives, []).append(share.rank)
    if not groups:
        return (
            "A decode step needs no other collective."
            if explanation.gathered_bytes
            else "A decode step needs no collective."
        )
    batch = f"{explanation.batch} request{'s' if explanation.batch > 1 else ''}"
    table = Table(
        box=SIMPLE_HEAD,
        title=f"collectives of one decode step of {batch}, per rank",
        title_justify="left",
    )
    table.add_column("ranks")
    table.add_column("operation")
    table.add_column("axis")
    for title in ("calls", "bytes a call", "bytes"):
        table.add_column(title, justify="right")
    for collectives, alike in groups.items():
        ranks = _ranks(alike)
        for one in collectives:
            table.add_row(
                ranks,
                one.op,
                one.axis,
                str(one.calls),
                format_bytes(one.bytes // one.calls),
                format_bytes(one.bytes),
            )
            ranks = ""
    return table


def _ranks(ranks: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> '0-2, 5'."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][1] == rank:
            spans[-1][1] = rank + 1
        else:
            spans.append([rank, rank + 1])
    return ", ".join(_span(start, stop) for start, stop in spans)


def _span(start: int, stop: int) -> str:
    return str(start) if stop - start == 1 else f"{start}-{stop - 1}"


def _part(bounds: tuple[int, int] | None, whole: int) -> str:
    if bounds is None:
        return "-"
    return "all" if bounds == (0, whole) else _span(*bounds)
