"""Which layouts DeepSpeed can run, and how AutoTP cuts a parameter: pure, for the driver to ask."""

from __future__ import annotations

from strategies.placement import Of
from strategies.tensor import COLUMN_PARALLEL, ROW_PARALLEL
from workers.messages import EnginePlan

ZERO_OPTION = "zero_stage"  # the placement's option that the strategy `zero` sets
OPTIONS = {"engine", ZERO_OPTION}
STAGES = ("1", "2", "3")
# What each stage cuts beside that of the stages before.
CUT_BY_ZERO: tuple[tuple[Of, str], ...] = (
    ("optimizer", "the optimizer's state"),
    ("grads", "gradients"),
    ("params", "parameters"),
)


def communication_axis(plan: EnginePlan) -> str | None:
    """The mesh axis that DeepSpeed communicates over, None where it does not."""
    if plan.placement.degree("tp") > 1:
        return "tp"
    return "dp" if plan.placement.option(ZERO_OPTION) else None


def refusal(plan: EnginePlan) -> str | None:
    """None, or why DeepSpeed cannot run a plan, as a clause."""
    axes = {axis for axis, degree in plan.placement.mesh if degree > 1}
    reason = _refused_axes(axes) or _refused_options(plan, axes) or _uneven(plan)
    if reason is None and plan.placement.option(ZERO_OPTION) is None:
        reason = _cut_otherwise(plan)
    return reason


def trained_refusal(plan: EnginePlan) -> str | None:
    """None, or what of a placement DeepSpeed would train in another way, as a clause: it has
    replicas, and cuts over them what a stage of ZeRO cuts."""
    placement = plan.placement
    others = [axis for axis, degree in placement.mesh if axis != "dp" and degree > 1]
    if others:
        return f"here it trains replicas (dp) alone, and the layout has {others[0]}"
    if unknown := {key for key, _ in placement.options} - OPTIONS:
        return f"it has no option {min(unknown)}"
    stage = placement.option(ZERO_OPTION) or "0"
    if stage not in ("0", *STAGES):
        return f"its {ZERO_OPTION} is {', '.join(STAGES)} or left out, not {stage}"
    if placement.degree("dp") == 1:
        return None
    if placement.num_replicas == 1:
        return "it shares out the batch over dp, and the layout does not"
    for first, (of, what) in enumerate(CUT_BY_ZERO, start=1):
        cut = [0] if int(stage) >= first else []
        for name, _ in plan.model.parameters():
            if [split.dim for split in placement.splits(name, of)] != cut:
                how = "by rows, once" if cut else "into no parts"
                return (
                    f"under {ZERO_OPTION} {stage} it cuts {what} {how}, and the layout does not "
                    f"cut {name} so"
                )
    return None


def part_of(whole: tuple[int, ...], part: tuple[int, ...], index: int) -> tuple[slice, ...]:
    """Where part `index`, of the shape `part`, lies in a tensor of the shape `whole` that is cut
    evenly."""
    return tuple(
        slice(0, w) if w == p else slice(index * p, (index + 1) * p)
        for w, p in zip(whole, part, strict=True)
    )


def _refused_axes(axes: set[str]) -> str | None:
    if "pp" in axes:
        return "it does not run pipeline stages (pp) in inference"
    if axes - {"tp", "dp"}:
        return f"it does not know the axis {min(axes - {'tp', 'dp'})}"
    if axes == {"tp", "dp"}:
        return "it does not combine tensor parallelism with replicas (tp with dp)"
    return None


def _refused_options(plan: EnginePlan, axes: set[str]) -> str | None:
    unknown = {key for key, _ in plan.placement.options} - OPTIONS
    if unknown:
        return f"it has no option {min(unknown)}"
    stage = plan.placement.option(ZERO_OPTION)
    if stage is None or (stage == "3" and axes == {"dp"}):
        return None
    return (
        f"it runs zero3 over dp and nothing else, not zero{stage} over "
        f"{'+'.join(axes) or 'one rank'}"
    )


def _uneven(plan: EnginePlan) -> str | None:
    model, degree = plan.model, plan.placement.degree("tp")
    if model.num_kv_heads % degree:
        return (
            f"its AutoTP cannot share a KV head between ranks: {model.num_kv_heads} KV heads over "
            f"tp={degree}"
        )
    if model.hidden_size % degree:
        return (
            f"its AutoTP cuts the head by its {model.hidden_size} inputs, which do not divide "
            f"over tp={degree}"
        )
    return None


def _cut_otherwise(plan: EnginePlan) -> str | None:
    """Why DeepSpeed cannot run the plan, where the layout cuts a layer in another way than AutoTP
    does. Embedding and head are left out: AutoTP replicates the one and cuts the other by its
    inputs."""
    degree = plan.placement.degree("tp")
    for name, shape in plan.model.parameters():
        if not name.startswith("model.layers."):
            continue
        part = _auto_tp_part(name, shape, degree)
        if any(
            plan.placement.shard(name, shape, rank) != part_of(shape, part, rank)
            for rank in range(degree)
        ):
            return f"it makes its own cuts, and this layout cuts {name} otherwise"
    return None


def _auto_tp_part(name: str, shape: tuple[int, ...], degree: int) -> tuple[int, ...]:
    """The shape of one rank's part of a layer's parameter, as AutoTP cuts it."""
    module, kind = name.split(".")[-2:]
    if module in COLUMN_PARALLEL:
        return (shape[0] // degree, *shape[1:])
    if module in ROW_PARALLEL and kind == "weight":
        return (shape[0], shape[1] // degree)
    return shape
