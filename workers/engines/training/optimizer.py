"""AdamW that keeps its state, and a copy of the weights, in float32."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY = 3e-4, (0.9, 0.95), 1e-8, 0.1


@dataclass(frozen=True, slots=True)
class _Entry:
    """A parameter, its copy in float32 (itself where it is float32) and what steps that."""

    parameter: Tensor
    master: Tensor
    adam: torch.optim.AdamW


class Optimizer:
    """One AdamW a parameter, so that gradients in float32 exist one at a time.

    fused: whether an update is one kernel. keeps: whether gradients stay where they are, as in the
    buckets of DDP, and are set to zero. Weights that are not float32 are rounded from their copy
    after each update (Micikevicius et al., arXiv:1710.03740, section 3.1).
    """

    def __init__(self, modules: Iterable[nn.Module], fused: bool, keeps: bool = False) -> None:
        self._keeps = keeps
        found = dict.fromkeys(one for module in modules for one in module.parameters())
        self._entries = [_entry(one, fused) for one in found]

    def step(self) -> None:
        """Update every parameter that has a gradient, and drop the gradients."""
        for one in self._entries:
            if one.parameter.grad is None:
                continue
            if one.master is not one.parameter:
                one.master.grad = one.parameter.grad.float()
            one.adam.step()
            self._drop(one)
            if one.master is not one.parameter:
                with torch.no_grad():
                    one.parameter.copy_(one.master)

    def reset(self) -> None:
        """Begin with the weights as they are."""
        for one in self._entries:
            one.adam.state.clear()
            self._drop(one)
            if one.master is not one.parameter:
                with torch.no_grad():
                    one.master.copy_(one.parameter)

    def _drop(self, one: _Entry) -> None:
        """Forget a gradient."""
        if one.master is not one.parameter:
            one.master.grad = None
        if self._keeps and one.parameter.grad is not None:
            one.parameter.grad.zero_()
        else:
            one.parameter.grad = None

    @property
    def state_bytes(self) -> int:
        """Bytes of this rank's moments and copies."""
        moments = (
            value
            for one in self._entries
            for state in one.adam.state.values()
            for value in state.values()
        )
        copies = (one.master for one in self._entries if one.master is not one.parameter)
        return sum(map(bytes_of, (*moments, *copies)))


def bytes_of(tensor: object) -> int:
    """Bytes that this rank keeps of a tensor; 0 of what is none."""
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.numel() * local.element_size() if isinstance(local, Tensor) else 0


def _entry(parameter: Tensor, fused: bool) -> _Entry:
    master = parameter
    if parameter.dtype != torch.float32:
        master = nn.Parameter(parameter.detach().float().clone())
    adam = torch.optim.AdamW(
        [master],
        lr=LEARNING_RATE,
        betas=BETAS,
        eps=EPSILON,
        weight_decay=WEIGHT_DECAY,
        fused=fused,
        foreach=False,
    )
    return _Entry(parameter, master, adam)
