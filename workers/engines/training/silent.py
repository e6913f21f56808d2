"""Groups whose collectives move nothing, for `--ablate comm`.

What a rank would receive, it has of its own. That matters: memory that nothing has written may hold
NaN, and a GPU whose matrices are NaN takes less power and runs at a higher clock, so a step without
collectives would be shorter by more than they take. For the same reason a rank takes tokens of its
own rows of the embedding: others would be vectors of zeros, and each norm of one makes a gradient
some 300 times as large, which is NaN after 32 layers.
"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FakeWork, ProcessGroup
from torch.library import Library

NOTHING = "fake"  # torch's name of a backend that moves nothing


def register() -> None:
    """Make the backend known to torch."""
    from torch.testing._internal.distributed import fake_pg  # noqa: F401  # it registers itself


def reducing_own_parts(group: dist.ProcessGroup, device: torch.device) -> Library | None:
    """Where this torch leaves what is reduced and scattered unwritten, as 2.11 does, have each rank
    take its own part of its own tensor, in all groups of the process, for as long as the result is
    kept. None where torch does so itself."""
    if _takes_own_part(group):
        return None
    library = Library("c10d", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel is replaced
        for name, taking in (
            ("_reduce_scatter_base_", _own_part),
            ("reduce_scatter_tensor_coalesced_", _own_parts),
        ):
            library.impl(name, taking, device.type.upper(), allow_override=True)
    return library


def group_of_all(device: torch.device) -> tuple[dist.ProcessGroup, Library | None]:
    """A group of all ranks, and what `reducing_own_parts` returns for it."""
    register()
    group = dist.new_group(backend=NOTHING)
    return group, reducing_own_parts(group, device)


def among(tokens: Tensor, rows: range) -> Tensor:
    """Tokens of these rows of the embedding instead of any. tokens: int64; the shape stays."""
    return rows.start + tokens % len(rows)


def _takes_own_part(group: dist.ProcessGroup) -> bool:
    part, whole = torch.full((1,), torch.nan), torch.zeros(group.size())
    dist.reduce_scatter_tensor(part, whole, group=group)
    return not part.isnan().any()


def _own_part(output: Tensor, source: Tensor, group: Any, *_: object) -> tuple[Tensor, Any]:
    here = ProcessGroup.unbox(group)
    output.copy_(source.chunk(here.size())[here.rank()])
    return output, FakeWork().boxed()


def _own_parts(outputs: list[Tensor], sources: list[Tensor], group: Any, *_: object) -> Any:
    for output, source in zip(outputs, sources, strict=True):
        _own_part(output, source, group)
    return FakeWork().boxed()
