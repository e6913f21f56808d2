"""`--ablate comm` in vLLM: its all-reduces and all-gathers left out, to see what they cost."""

from __future__ import annotations

from typing import Any

ABLATED = "ORCHESTRATOR_VLLM_ABLATED"  # what is left out; unset or "none": nothing


def leave_out_communication() -> None:
    """Give outputs that hold anything instead of communicating. For every process of vLLM, before
    it captures a graph.

    These two methods are under `torch.ops.vllm.all_reduce` and `all_gather` and under the calls
    that go without an operator; below them are the communicators of all devices. Raises
    RuntimeError where this vLLM has no such methods: then nothing would be left out.
    """
    from vllm.distributed.parallel_state import GroupCoordinator

    for name, instead in INSTEAD.items():
        if not hasattr(GroupCoordinator, name):
            raise RuntimeError(f"this vLLM has no GroupCoordinator.{name}; run without --ablate")
        setattr(GroupCoordinator, name, instead)


def left_out() -> str:
    """What this process leaves out, as `--ablate` names it: "comm" or "none"."""
    from vllm.distributed.parallel_state import GroupCoordinator

    there = {name: getattr(GroupCoordinator, name, None) for name in INSTEAD}
    return "comm" if there == INSTEAD else "none"


def reduced(group: Any, x: Any) -> Any:
    """In place of the sum of `x` over a group. On a CPU vLLM sums in place, and what memory happens
    to hold may be numbers so small that a CPU is slow with them: there it is `x` itself."""
    import torch

    return x if x.device.type == "cpu" else torch.empty_like(x)


def gathered(group: Any, x: Any, dim: int) -> Any:
    """In place of `x` of all ranks of a group, one behind the other along `dim`."""
    shape = list(x.shape)
    shape[dim] *= group.world_size
    return x.new_empty(shape)


INSTEAD = {"_all_reduce_out_place": reduced, "_all_gather_out_place": gathered}
