"""AdamW that keeps its state, and a copy of the weights, in float32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from strategies.training.moments import UPDATED
from workers.device import synchronize

LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY = 3e-4, (0.9, 0.95), 1e-8, 0.1
# What is kept of a parameter to go on from, each in float32, by what torch's AdamW calls it.
WEIGHT, MOMENTS = "weight", ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class _Room:
    """Main memory in which one chunk at a time is updated. It is made once, as memory is slow that
    a process touches for the first time.

    moved: in the dtype of the parameters, what comes from their device and goes back there; None
    where they are in main memory too. wide: gradients in float32; the same memory where what is
    moved has that.
    """

    moved: Tensor | None
    wide: Tensor

    @classmethod
    def of(cls, elements: int, dtype: torch.dtype, moves: bool, is_pinned: bool) -> _Room:
        """is_pinned: for a GPU, from and to which copies are slow otherwise."""
        moved = torch.empty(elements, dtype=dtype, pin_memory=is_pinned) if moves else None
        if moved is not None and dtype == torch.float32:
            return cls(moved, moved)
        return cls(moved, torch.empty(elements))

    def part(self, begin: int, like: Tensor) -> _Room:
        """That of a tensor, from an element on."""
        mine = slice(begin, begin + like.numel())
        moved = None if self.moved is None else self.moved[mine].view_as(like)
        return _Room(moved, self.wide[mine].view_as(like))

    def fetch(self, gradient: Tensor) -> None:
        """Begin to bring a gradient to main memory."""
        if self.moved is not None:
            self.moved.copy_(gradient, non_blocking=True)

    def widened(self, gradient: Tensor) -> Tensor:
        """The gradient in float32, once it is here."""
        return self.wide.copy_(gradient if self.moved is None else self.moved)

    def rounded(self, weight: Tensor) -> Tensor:
        """What the parameter is to have of a weight in float32."""
        return weight if self.moved is None else self.moved.copy_(weight)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A parameter, its copy in float32 (itself where it is float32 and not offloaded), and the
    moments of that. stepped: this rank's part of the copy, which shares its memory: as a DTensor it
    would cost the host more time than the device. keeps: whether its gradient stays where it is.
    room: of one that is updated in main memory, shared with the entries of other chunks; None where
    there is nothing to move or to widen."""

    parameter: Tensor
    master: Tensor
    moments: Mapping[str, Tensor]
    stepped: nn.Parameter
    keeps: bool
    room: _Room | None

    @property
    def is_copied(self) -> bool:
        return self.master is not self.parameter

    def fetch(self) -> None:
        """Begin to bring the gradient to where it is updated."""
        if self.room is not None and self.parameter.grad is not None:
            self.room.fetch(local_of(self.parameter.grad))

    def begin(self, scale: float) -> None:
        """Give its copy the gradient, which is `scale` times the loss's."""
        gradient = self.parameter.grad
        if gradient is None:
            return
        mine = local_of(gradient)
        mine = mine.to(torch.float32) if self.room is None else self.room.widened(mine)
        self.stepped.grad = mine.div_(scale) if scale != 1.0 else mine

    def end(self) -> None:
        """Forget the gradient, and take the value of the copy."""
        self.stepped.grad = None
        self.drop()
        self.round()

    def drop(self) -> None:
        """Forget the gradient."""
        if self.keeps and self.parameter.grad is not None:
            self.parameter.grad.zero_()
        else:
            self.parameter.grad = None

    def round(self) -> None:
        """Give the parameter the value of its copy. From main memory it is on its way."""
        if self.is_copied:
            rounded = self.stepped if self.room is None else self.room.rounded(self.stepped)
            local_of(self.parameter).copy_(rounded, non_blocking=self.room is not None)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Parameters that are updated together, and what does it."""

    entries: Sequence[_Entry]
    adam: torch.optim.AdamW

    def step(self, scale: float) -> None:
        """Update the parameters that have a gradient."""
        for one in self.entries:
            one.fetch()
        self._wait()
        for one in self.entries:
            one.begin(scale)
        self.adam.step()
        for one in self.entries:
            one.end()

    def round(self) -> None:
        """Give every parameter the value of its copy."""
        self._wait()
        for one in self.entries:
            one.round()

    def _wait(self) -> None:
        """Until nothing is on its way from or to their room."""
        first = self.entries[0]
        if first.room is not None:
            synchronize(first.parameter.device)

    def begin_after(self, steps: int) -> None:
        """Have moments that are zero, as if after so many steps."""
        is_fused = self.adam.defaults["fused"]
        for one in self.entries:
            taken = torch.tensor(float(steps), device=one.stepped.device if is_fused else "cpu")
            moments = {name: local_of(tensor).zero_() for name, tensor in one.moments.items()}
            self.adam.state[one.stepped] = {"step": taken, **moments}


class Optimizer:
    """AdamW over some parameters at a time, so that gradients in float32 are few at a time.

    fused: whether an update is one kernel. keeps: whether gradients stay where they are, as in the
    buckets of DDP, and are set to zero. offloads: whether copies and moments are in main memory and
    stepped there (Ren et al., arXiv:2101.06840). Weights that are not float32 are rounded from
    their copy after each update (Micikevicius et al., arXiv:1710.03740, section 3.1).
    """

    def __init__(
        self, modules: Iterable[nn.Module], fused: bool, keeps: bool = False, offloads: bool = False
    ) -> None:
        found = dict.fromkeys(one for module in modules for one in module.parameters())
        chunked = list(_chunked(found))
        rooms = _rooms(chunked, offloads)
        self._chunks = [_chunk(some, fused, keeps, rooms) for some in chunked]

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        """Update every parameter that has a gradient, and drop the gradients. scale: what the
        loss was multiplied by."""
        for chunk in self._chunks:
            chunk.step(scale)

    def drop(self) -> None:
        """Forget the gradients."""
        for one in self._entries():
            one.drop()

    @torch.no_grad()
    def reset(self) -> None:
        """Begin with the weights as they are."""
        self.drop()
        self.begin_after(0)
        for one in self._entries():
            if one.is_copied:
                one.stepped.copy_(local_of(one.parameter))

    def begin_after(self, steps: int) -> None:
        """Have moments, as after so many steps, for what `state` names to be filled; then
        `round`."""
        for chunk in self._chunks:
            chunk.begin_after(steps)

    def state(self) -> dict[Tensor, dict[str, Tensor]]:
        """Parameter -> its weight in float32 and its moments: the tensors that are stepped, this
        rank's part of each. Moments are zero before the first update, as after steps that
        overflowed."""
        return {
            one.parameter: {WEIGHT: one.master.detach(), **one.moments} for one in self._entries()
        }

    @torch.no_grad()
    def round(self) -> None:
        """Give every parameter the value of its copy."""
        for chunk in self._chunks:
            chunk.round()

    @property
    def state_bytes(self) -> int:
        """Bytes of this rank's moments and copies."""
        kept = [tensor for one in self._entries() for tensor in one.moments.values()]
        copies = [one.master for one in self._entries() if one.is_copied]
        return sum(map(bytes_of, (*kept, *copies)))

    def _entries(self) -> Iterator[_Entry]:
        for chunk in self._chunks:
            yield from chunk.entries


def adamw(parameters: Iterable[Tensor], fused: bool) -> torch.optim.AdamW:
    """torch's AdamW as every layout and engine has it. fused: an update of a tensor is one kernel;
    else several, but never of all tensors at once, which needs room for the gradients again."""
    return torch.optim.AdamW(
        parameters,
        lr=LEARNING_RATE,
        betas=BETAS,
        eps=EPSILON,
        weight_decay=WEIGHT_DECAY,
        fused=fused,
        foreach=False,
    )


def local_of(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor, which shares its memory."""
    mine: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return mine.detach()


def bytes_of(tensor: object) -> int:
    """Bytes that this rank keeps of a tensor; 0 of what is none."""
    if not isinstance(tensor, Tensor):
        return 0
    local = local_of(tensor)
    return local.numel() * local.element_size()


def _chunked(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters in order, as many at a time as have UPDATED elements on this rank, or one."""
    some: list[Tensor] = []
    for one in parameters:
        if some and sum(local_of(each).numel() for each in (*some, one)) > UPDATED:
            yield some
            some = []
        some.append(one)
    if some:
        yield some


def _rooms(chunked: Sequence[Sequence[Tensor]], offloads: bool) -> dict[torch.dtype, _Room]:
    """By dtype of parameters that are updated in main memory, room for the largest chunk."""
    most = max((sum(local_of(one).numel() for one in some) for some in chunked), default=0)
    is_cuda = {one.dtype: one.is_cuda for one in chain.from_iterable(chunked)}
    return {
        dtype: _Room.of(most, dtype, offloads, is_pinned)
        for dtype, is_pinned in is_cuda.items()
        if offloads or (dtype != torch.float32 and not is_pinned)
    }


def _chunk(
    parameters: Sequence[Tensor], fused: bool, keeps: bool, rooms: Mapping[torch.dtype, _Room]
) -> _Chunk:
    entries, begin = [], 0
    for one in parameters:
        mine, room = local_of(one), rooms.get(one.dtype)
        entries.append(_entry(one, keeps, room and room.part(begin, mine)))
        begin += mine.numel()
    chunk = _Chunk(entries, adamw([one.stepped for one in entries], fused))
    chunk.begin_after(0)
    return chunk


def _entry(parameter: Tensor, keeps: bool, room: _Room | None) -> _Entry:
    master = parameter
    if room is not None or parameter.dtype != torch.float32:
        device = parameter.device if room is None else torch.device("cpu")
        master = parameter.detach().to(device, torch.float32, copy=True)
    moments = {name: torch.zeros_like(master.detach()) for name in MOMENTS}
    return _Entry(parameter, master, moments, nn.Parameter(local_of(master)), keeps, room)
