"""Which FP8 our engine can run. Asked in the driver, so it imports without torch."""

from __future__ import annotations

from collections.abc import Iterator

from workers.messages import EnginePlan

# Field of a layer -> the projections that are one matrix there.
MATRICES = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
# Of the GPU kernels.
BLOCK = (128, 128)
DTYPE = "bfloat16"


def refusal(plan: EnginePlan) -> str | None:
    """None, or the first reason why this engine cannot run the FP8 of a plan, as a clause."""
    if plan.quantization == "none":
        return None
    found = (check(plan) for check in (_on_gpu, _mixed, _cut_blocks))
    return next((reason for reason in found if reason is not None), None)


def _on_gpu(plan: EnginePlan) -> str | None:
    if plan.device != "cuda":
        return None
    if plan.dtype != DTYPE:
        return f"its FP8 products on a GPU make {DTYPE}, and the dtype is {plan.dtype}"
    if plan.switches.fusion == "off":
        return "on a GPU its FP8 products come with the kernels that quantise; use --fusion on"
    block = plan.model.fp8.block if plan.model.fp8 else None
    if block not in (None, BLOCK):
        return (
            f"its GPU kernels need FP8 blocks of {list(BLOCK)}, not {list(block)}; use "
            "--quantization none"
        )
    return None


def _mixed(plan: EnginePlan) -> str | None:
    """Matrices that read one input are one matrix here."""
    for names in _matrices(plan):
        covered = [plan.model.fp8_of(name) is not None for name in names]
        if len(set(covered)) > 1:
            fp8, other = names[covered.index(True)], names[covered.index(False)]
            return (
                f"it keeps them as one matrix, and {fp8} is FP8 and {other} is not; use "
                "--quantization none"
            )
    return None


def _cut_blocks(plan: EnginePlan) -> str | None:
    """A part of a rank begins where a block does, and so does what lies below another part."""
    form = plan.model.fp8
    if form is None or form.block is None:
        return None
    shapes = dict(plan.model.parameters())
    for names in _matrices(plan):
        for name in (name for name in names if plan.model.fp8_of(name) is not None):
            if name != names[-1] and shapes[name][0] % form.block[0]:
                return _within(name, shapes[name], form.block, "puts another matrix below")
            for index in range(plan.placement.degree("tp")):
                rank = plan.placement.rank_at({"tp": index})
                box = plan.placement.shard(name, shapes[name], rank)
                starts = [side.start for side in box]
                starts.append(0 if name == names[-1] else box[0].stop - box[0].start)
                heights = (*form.block, form.block[0])
                if any(at % size for at, size in zip(starts, heights, strict=True)):
                    return _within(name, shapes[name], form.block, "cuts")
    return None


def _within(name: str, shape: tuple[int, ...], block: tuple[int, int], what: str) -> str:
    fewer = "fewer ranks of tp, or " if what == "cuts" else ""
    return (
        f"it {what} {name} of shape {list(shape)} within a block of {list(block)} that has one "
        f"scale; use {fewer}--quantization none"
    )


def _matrices(plan: EnginePlan) -> Iterator[list[str]]:
    """The parameters of each matrix of each layer."""
    for layer in range(plan.model.num_layers):
        for names in MATRICES.values():
            yield [f"model.layers.{layer}.{name}.weight" for name in names]
