"""What torch takes while a model of Transformers is trained, counted on tensors without memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from torch.utils.weak import WeakIdKeyDictionary

from strategies import ModelShape, TrainingLoad
from workers.engines.training.fp8 import use_fp8
from workers.engines.training.model import attention_of, compiled, kept_by
from workers.engines.training.optimizer import Optimizer
from workers.engines.transformers_config import shape_to_config

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
PRODUCTS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)


class Unlisted(WeakIdKeyDictionary):
    """What a tracker notes of each module. Nobody here asks for it, and a tracker that finds none
    of it listed does not look through it after every operation, which is half of its time."""

    def values(self) -> Iterator[Any]:
        return iter(())


def taken(model: ModelShape, load: TrainingLoad) -> tuple[int, int, int]:
    """Bytes of one micro-batch: of activations after the forward pass, with logits; of gradients at
    the end; and of everything at the peak."""
    with FakeTensorMode():
        made, tracker = _made(model, load), _tracker()
        tracker.track_external(made)
        with tracker:
            logits, labels = _forward(made, model, load)
            after = _now(tracker)["Activation"]
            loss = cross_entropy(logits.flatten(0, 1).float(), labels, reduction="sum")
            del logits
            loss.backward()
            gradients = _now(tracker)["Gradient"]
        return after, gradients, _now(tracker, "peak")["Total"]


def taken_by_a_step(model: ModelShape, load: TrainingLoad, count: int) -> int:
    """Bytes of everything at the peak of an optimizer step of one rank: `count` micro-batches, and
    the update of our optimizer."""
    with FakeTensorMode():
        made = _made(model, load)
        optimizer, tracker = Optimizer([made], fused=load.fuses_updates), _tracker()
        tracker.track_external(made)
        for state in optimizer.state().values():
            tracker.track_external(*state.values())
        with tracker:
            _accumulate(tracker, partial(_forward, made, model, load), count)
            optimizer.step()
        return _now(tracker, "peak")["Total"]


def taken_over_replicas(model: ModelShape, load: TrainingLoad, count: int, ranks: int) -> int:
    """Bytes of everything but the optimizer's state at the peak of `count` micro-batches of a rank,
    whose layers and the rest FSDP2 cuts over `ranks`, as ours does."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        mesh = init_device_mesh("cpu", (ranks,))
        with FakeTensorMode():
            made = _made(model, load)
            # What is called is what gathers the parameters.
            made.forward = lambda: _forward(made, model, load)
            for module in (*made.model.layers, made):
                fully_shard(module, mesh=mesh)
            tracker = FSDPMemTracker(made)
            with tracker:
                _accumulate(tracker, made, count)
            return _now(tracker, "peak")["Total"]
    finally:
        dist.destroy_process_group()


def _tracker() -> MemTracker:
    """Of the whole, and of no module by itself."""
    tracker = MemTracker()
    tracker.memory_tracking = Unlisted()
    return tracker


def _made(model: ModelShape, load: TrainingLoad) -> Any:
    dtype = DTYPES[load.precision]
    made: Any = transformers.AutoModelForCausalLM.from_config(
        shape_to_config(model), dtype=dtype, attn_implementation=attention_of(dtype)
    )
    made.train()
    return made


def _accumulate(
    tracker: MemTracker, forward: Callable[[], tuple[Tensor, Tensor]], count: int
) -> None:
    """The gradients of `count` micro-batches."""
    for _ in range(count):
        tracker.reset_mod_stats()
        logits, labels = forward()
        loss = cross_entropy(logits.flatten(0, 1).float(), labels, reduction="sum")
        del logits
        loss.backward()
        del loss


def kept_compiled(model: ModelShape, load: TrainingLoad) -> int:
    """Bytes that a compiled layer keeps of one micro-batch, the rotation of all layers left out:
    each memory once, whatever is packed of it."""
    torch._dynamo.reset()
    dtype = DTYPES.get(load.precision, torch.bfloat16)
    made: Any = transformers.AutoModelForCausalLM.from_config(
        shape_to_config(model), dtype=dtype, attn_implementation=attention_of(dtype)
    )
    made.train()
    if load.is_fp8:
        use_fp8(made, emulate=False)  # as on GPUs
    size = load.micro_batch_size, load.seq_len, model.hidden_size
    hidden = torch.zeros(size, dtype=dtype, requires_grad=True).clone()
    positions = torch.arange(load.seq_len)[None]
    rotation = made.model.rotary_emb(hidden, positions)
    apart = {_memory(one) for one in (*made.parameters(), *rotation, positions)}
    kept: dict[int, int] = {}
    hold: list[Tensor] = []  # no memory is used twice meanwhile

    def pack(one: Tensor) -> Tensor:
        hold.append(one)
        if _memory(one) not in apart:
            kept[_memory(one)] = one.untyped_storage().nbytes()
        return one

    call = compiled(kept_by(load.activation_checkpointing)(made.model.layers[0].forward))
    with saved_tensors_hooks(pack, lambda one: one):
        call(hidden, attention_mask=None, position_ids=positions, position_embeddings=rotation)
    return sum(kept.values())


def _memory(one: Tensor) -> int:
    return one.untyped_storage().data_ptr()


def _forward(made: Any, model: ModelShape, load: TrainingLoad) -> tuple[Tensor, Tensor]:
    size = (load.micro_batch_size, load.seq_len)
    tokens = torch.zeros(size, dtype=torch.int64)
    positions = torch.arange(load.seq_len)[None]
    hidden = made.model.embed_tokens(tokens)
    rotation = made.model.rotary_emb(hidden, positions)
    layer_call = _call_of(load.activation_checkpointing)
    for layer in made.model.layers:
        hidden = layer_call(
            layer, hidden, attention_mask=None, position_ids=positions, position_embeddings=rotation
        )
    return made.lm_head(made.model.norm(hidden)), tokens.flatten()


def _call_of(mode: str) -> Callable[..., Tensor]:
    if mode == "off":
        return lambda layer, *args, **kwargs: layer(*args, **kwargs)
    if mode == "full":
        return partial(checkpoint, use_reentrant=False)
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return partial(checkpoint, use_reentrant=False, context_fn=contexts)


def _policy(_: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = op in PRODUCTS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _now(tracker: MemTracker, when: str = "current") -> dict[str, int]:
    """Kind of memory -> bytes."""
    found = tracker.get_tracker_snapshot(when)[torch.device("cpu")]
    return {str(getattr(kind, "value", kind)): size for kind, size in found.items()}
