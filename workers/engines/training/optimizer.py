"""AdamW that keeps its state, and a copy of the weights, in float32."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY = 3e-4, (0.9, 0.95), 1e-8, 0.1
# What is kept of a parameter to go on from, each in float32, by what torch's AdamW calls it.
WEIGHT, MOMENTS = "weight", ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class _Entry:
    """A parameter, its copy in float32 (itself where it is float32 and not offloaded) and what
    steps that. keeps: whether its gradient stays where it is."""

    parameter: Tensor
    master: Tensor
    adam: torch.optim.AdamW
    keeps: bool

    @property
    def is_copied(self) -> bool:
        return self.master is not self.parameter

    def step(self, scale: float) -> None:
        """Update the parameter by its gradient, which is `scale` times the loss's."""
        gradient = self.parameter.grad
        if gradient is None:
            return
        self.master.grad = gradient.to(device=self.master.device, dtype=torch.float32)
        if scale != 1.0:
            self.master.grad /= scale
        self.adam.step()
        if self.is_copied:
            self.master.grad = None
        self.drop()
        self.round()

    def drop(self) -> None:
        """Forget the gradient."""
        if self.keeps and self.parameter.grad is not None:
            self.parameter.grad.zero_()
        else:
            self.parameter.grad = None

    def round(self) -> None:
        """Give the parameter the value of its copy."""
        if self.is_copied:
            with torch.no_grad():
                self.parameter.copy_(self.master)

    def begin_after(self, steps: int, fused: bool) -> None:
        """Have moments, as after so many steps, to be filled."""
        taken = torch.tensor(float(steps), device=self.master.device if fused else "cpu")
        moments = {name: torch.zeros_like(self.master.detach()) for name in MOMENTS}
        self.adam.state[self.master] = {"step": taken, **moments}


class Optimizer:
    """One AdamW a parameter, so that gradients in float32 exist one at a time.

    fused: whether an update is one kernel. keeps: whether gradients stay where they are, as in the
    buckets of DDP, and are set to zero. offloads: whether copies and moments are in main memory and
    stepped there (Ren et al., arXiv:2101.06840). Weights that are not float32 are rounded from
    their copy after each update (Micikevicius et al., arXiv:1710.03740, section 3.1).
    """

    def __init__(
        self, modules: Iterable[nn.Module], fused: bool, keeps: bool = False, offloads: bool = False
    ) -> None:
        found = dict.fromkeys(one for module in modules for one in module.parameters())
        self._fused = fused
        self._entries = [_entry(one, fused, keeps, offloads) for one in found]

    def step(self, scale: float = 1.0) -> None:
        """Update every parameter that has a gradient, and drop the gradients. scale: what the
        loss was multiplied by."""
        for one in self._entries:
            one.step(scale)

    def drop(self) -> None:
        """Forget the gradients."""
        for one in self._entries:
            one.drop()

    def reset(self) -> None:
        """Begin with the weights as they are."""
        self.drop()
        for one in self._entries:
            one.adam.state.clear()
            if one.is_copied:
                with torch.no_grad():
                    one.master.copy_(one.parameter)

    def begin_after(self, steps: int) -> None:
        """Have moments, as after so many steps, for what `state` names to be filled; then
        `round`."""
        for one in self._entries:
            one.begin_after(steps, self._fused)

    def state(self) -> dict[Tensor, dict[str, Tensor]]:
        """Parameter -> its weight in float32 and its moments: the tensors that are stepped, this
        rank's part of each. Moments are zero before the first update, as after steps that
        overflowed."""
        for one in self._entries:
            if one.master not in one.adam.state:
                one.begin_after(0, self._fused)
        return {
            one.parameter: {
                WEIGHT: one.master.detach(),
                **{name: one.adam.state[one.master][name] for name in MOMENTS},
            }
            for one in self._entries
        }

    def round(self) -> None:
        """Give every parameter the value of its copy."""
        for one in self._entries:
            one.round()

    @property
    def state_bytes(self) -> int:
        """Bytes of this rank's moments and copies."""
        moments = (
            value
            for one in self._entries
            for state in one.adam.state.values()
            for value in state.values()
        )
        copies = (one.master for one in self._entries if one.is_copied)
        return sum(map(bytes_of, (*moments, *copies)))


def bytes_of(tensor: object) -> int:
    """Bytes that this rank keeps of a tensor; 0 of what is none."""
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.numel() * local.element_size() if isinstance(local, Tensor) else 0


def _entry(parameter: Tensor, fused: bool, keeps: bool, offloads: bool) -> _Entry:
    master = parameter
    if offloads or parameter.dtype != torch.float32:
        device = torch.device("cpu") if offloads else parameter.device
        master = nn.Parameter(parameter.detach().to(device, torch.float32, copy=True))
    adam = torch.optim.AdamW(
        [master],
        lr=LEARNING_RATE,
        betas=BETAS,
        eps=EPSILON,
        weight_decay=WEIGHT_DECAY,
        fused=fused,
        foreach=False,
    )
    return _Entry(parameter, master, adam, keeps)
