"""How the modules of a rank are cut and copied over the axes of its mesh: read from the placement,
done by torch."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from strategies.placement import Placement
from strategies.shapes import ModelShape
from workers.engines.training import silent
from workers.engines.training.counting import ALONE
from workers.engines.training.model import StageModule
from workers.rank import giving_way
from workers.weights import Source

HEAD_NORMS = ("q_norm", "k_norm")


def mesh_of(
    placement: Placement, device: torch.device, timeout: timedelta, is_silent: bool = False
) -> DeviceMesh | None:
    """The mesh of the placement, with an axis of one rank more; None for a single rank. timeout: of
    its collectives. is_silent: these return at once and move nothing, their outputs having the
    shapes that they would."""
    if placement.num_ranks == 1:
        return None
    axes = dict(placement.mesh)
    names = [*(name for name in axes if name != "tp"), ALONE, *(["tp"] if "tp" in axes else [])]
    sizes = tuple(axes.get(name, 1) for name in names)
    if is_silent:
        silent.register()
    with giving_way(device):
        mesh = init_device_mesh(
            device.type,
            sizes,
            mesh_dim_names=tuple(names),
            backend_override=dict.fromkeys(names, silent.NOTHING) if is_silent else None,
        )
    for name in () if is_silent else names:
        _set_pg_timeout(timeout, mesh.get_group(name))
    return mesh


def distributed(
    stage: StageModule,
    placement: Placement,
    mesh: DeviceMesh | None,
    device: torch.device,
    offloads: bool = False,
) -> nn.Module:
    """Cut `stage` over the tensor-parallel axis, then over those that share out the batch. Its
    parameters get memory on `device` and no values. Returns the module to call. offloads: whether
    parameters that are cut over replicas are kept, with their gradients, in main memory, and are on
    the device only while they are used."""
    if mesh is not None and placement.degree("tp") > 1:
        parallelize_module(stage, mesh["tp"], tensor_plan(stage, placement))
        stage.tie()
    storing = [axis for axis in placement.tokens.get("batch", ()) if _stores(placement, axis)]
    copying = [axis for axis in placement.tokens.get("batch", ()) if axis not in storing]
    if mesh is not None and (storing or (copying and placement.degree("tp") > 1)):
        shared = mesh[(*copying, *(storing or [ALONE]))]
        policy = CPUOffloadPolicy(device.type == "cuda") if offloads else OffloadPolicy()
        for layer in stage.layers:
            fully_shard(layer, mesh=shared, offload_policy=policy)
        fully_shard(stage, mesh=shared, offload_policy=policy)
        copying = []
    stage.materialize(device, torch.device("cpu") if offloads else device)
    if mesh is not None and copying:
        group = mesh[tuple(copying)].get_group()
        replicated = DistributedDataParallel(
            stage,
            process_group=group,
            gradient_as_bucket_view=True,
            init_sync=False,
            broadcast_buffers=False,
        )
        if dist.get_backend(group) == silent.NOTHING:  # it wants a result
            replicated.register_comm_hook(None, noop_hook)
        return replicated
    return stage


def exchanging(module: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Around a micro-batch: copies of gradients are summed in the last one of a step. Where
    gradients are cut, each rank's part is summed in every one, so that none keeps whole ones."""
    if isinstance(module, DistributedDataParallel) and not is_last:
        return module.no_sync()
    if isinstance(module, FSDPModule):
        copied = all(is_copied(one) for one in module.parameters())
        module.set_requires_gradient_sync(is_last or not copied)
        module.set_requires_all_reduce(is_last)
    return nullcontext()


def is_copied(parameter: Any) -> bool:
    """Whether every replica keeps a parameter of FSDP2 whole."""
    mesh = parameter.device_mesh
    shards = (dim for dim, how in enumerate(parameter.placements) if _cuts(how))
    return all(mesh.size(dim) == 1 or mesh.mesh_dim_names[dim] == "tp" for dim in shards)


def tensor_plan(stage: StageModule, placement: Placement) -> dict[str, ParallelStyle]:
    """How each module is cut over tp, its hidden states being cut by sequence in between
    (Korthikanti et al., arXiv:2205.05198, section 4.2)."""
    return {
        name: style
        for name, module in stage.named_modules()
        if (style := _style(name, module, placement)) is not None
    }


def _style(name: str, module: nn.Module, placement: Placement) -> ParallelStyle | None:
    leaf, between, whole = name.rpartition(".")[2], Shard(1), Replicate()
    if leaf == "self_attn":
        return PrepareModuleInput(
            input_kwarg_layouts={"hidden_states": between},
            desired_input_kwarg_layouts={"hidden_states": whole},
        )
    if leaf == "mlp":
        return PrepareModuleInput(input_layouts=(between,), desired_input_layouts=(whole,))
    if isinstance(module, nn.Embedding):
        return RowwiseParallel(input_layouts=whole, output_layouts=between)
    if leaf == "lm_head":
        return ColwiseParallel(input_layouts=between)
    if isinstance(module, nn.Linear):
        dim = placement.splits(f"{name}.weight")[0].dim
        return RowwiseParallel(output_layouts=between) if dim else ColwiseParallel()
    if leaf in HEAD_NORMS:
        return SequenceParallel(sequence_dim=2, use_local_output=True)
    if leaf.endswith("norm"):
        return SequenceParallel(use_local_output=True)
    return None


def load(stage: StageModule, source: Source, shape: ModelShape) -> None:
    """Fill every parameter of a stage with its part of the whole model's."""
    sizes = dict(shape.parameters())
    for stored, parameter in stage.stored_parameters():
        local, offsets = local_part(parameter)
        box = tuple(
            slice(start, start + size) for start, size in zip(offsets, local.shape, strict=True)
        )
        if local.numel():
            part = torch.empty(local.shape, dtype=local.dtype, device=local.device)
            source.read(stored, sizes[stored], box, part)
            with torch.no_grad():
                local.copy_(part)


def local_part(parameter: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """What this rank has of a parameter, and where that begins in the whole one."""
    whole: Any = parameter.detach()
    if not isinstance(whole, DTensor):
        return whole, (0,) * parameter.dim()
    _, offsets = compute_local_shape_and_global_offset(
        whole.shape, whole.device_mesh, whole.placements
    )
    return whole.to_local(), tuple(offsets)


def sum_partial(stage: nn.Module) -> None:
    """Sum over ranks what is still to be summed of the gradients of a stage."""
    parameters: Iterable[Any] = stage.parameters()
    for one in parameters:
        if isinstance(one.grad, DTensor) and one.grad.placements != one.placements:
            one.grad = one.grad.redistribute(placements=one.placements)


def copies(parameter: Tensor, placement: Placement) -> int:
    """How many ranks of a stage hold the same part of a parameter."""
    if not isinstance(parameter, DTensor):
        return placement.num_ranks // placement.degree("pp")
    mesh = parameter.device_mesh
    cut = 1
    for dim, how in enumerate(parameter.placements):
        cut *= mesh.size(dim) if _cuts(how) else 1
    return placement.num_ranks // placement.degree("pp") // cut


def _cuts(how: Any) -> bool:
    """Whether a placement of DTensor cuts: a dim that tp cuts too is a shard under another name."""
    return not (how.is_replicate() or how.is_partial())


def _stores(placement: Placement, axis: str) -> bool:
    """Whether parameters are cut along an axis that shares out the batch."""
    return any(split.axis == axis for cuts in placement.params.values() for split in cuts)
