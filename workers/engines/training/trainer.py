"""One optimizer step of a rank: micro-batches forward and backward, the norm, the update."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import loss_parallel
from torch.linalg import vector_norm
from torch.nn.parallel import DistributedDataParallel

from strategies.placement import EMBEDDING
from strategies.training import micro_batches
from workers.engines.training.fp8 import use_fp8
from workers.engines.training.model import StageModule, compiled, stages_of, summed
from workers.engines.training.observing import part
from workers.engines.training.optimizer import Optimizer, bytes_of, local_of
from workers.engines.training.pipeline import columns_of, ends_of, schedule_of
from workers.engines.training.saving import save
from workers.engines.training.scaling import Scaling
from workers.engines.training.sharding import (
    copies,
    distributed,
    exchanging,
    load,
    local_part,
    mesh_of,
    sum_partial,
)
from workers.engines.training.silent import among, reducing_own_parts
from workers.engines.training_state import Read, TrainingState
from workers.messages import EnginePlan
from workers.weights import open_source

NOTHING = nullcontext()


class StepResult(NamedTuple):
    """Of one optimizer step, before its update: the mean loss of a token of the global batch, and
    the 2-norm of the gradient of the whole model, both in float32."""

    loss: float
    grad_norm: float


class Trainer:
    """The stages of one rank with their optimizer. They have no values before `reset`."""

    def __init__(self, rank: int, plan: EnginePlan, device: torch.device) -> None:
        assert plan.training is not None, "the plan trains"
        asked, placement, shape = plan.training, plan.placement, plan.model
        self.rank, self.placement, self.shape, self.asked = rank, placement, shape, asked
        self.dtype, self.device = getattr(torch, plan.dtype), device
        self._source, self._plan = open_source(plan.checkpoint), plan
        timeout = timedelta(seconds=plan.timeout_s)
        is_silent = plan.ablation == "comm"
        mesh = mesh_of(placement, device, timeout, is_silent)
        self._mesh: Any = mesh
        self._silence = (
            reducing_own_parts(mesh.get_group(0), device) if mesh and is_silent else None
        )
        self.stages = stages_of(plan, rank)
        if asked.is_fp8:
            for stage in self.stages:
                use_fp8(stage, emulate=device.type == "cpu")
        over_tp = placement.degree("tp") > 1
        for stage in self.stages:
            stage.settle(asked.activation_checkpointing, asked.compiles, over_tp)
        # Over tp the loss is DTensor's.
        self._summed = compiled(summed) if asked.compiles and not over_tp else summed
        offloads = asked.offload == "optimizer+params"
        self.modules = [
            distributed(stage, placement, self._mesh, device, offloads) for stage in self.stages
        ]
        self._ends = ends_of(placement, rank, timeout) if shape.tie_embeddings else None
        self._parameters = [one for stage in self.stages for one in stage.parameters()]
        self._shares = self._shares_of()
        self._schedule: Any = self._pipeline() if placement.degree("pp") > 1 else None
        self.gradient_bytes: int | None = None
        self.updates = 0
        self._scaling = Scaling() if asked.dtype == "float16" else None
        sums = any(isinstance(module, DistributedDataParallel) for module in self.modules)
        if sums:
            self._settle_buckets()
        self.optimizer = Optimizer(
            self.stages, asked.fuses_updates, keeps=sums, offloads=asked.offload == "optimizer"
        )

    @property
    def replica(self) -> int:
        """Number of the part of the batch that is this rank's."""
        at, replica = self.placement.coordinates(self.rank), 0
        for axis in self.placement.tokens.get("batch", ()):
            replica = replica * self.placement.degree(axis) + at[axis]
        return replica

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters of this rank."""
        return sum(map(bytes_of, self._parameters))

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of its moments, and of the float32 copies of weights that are not float32."""
        return self.optimizer.state_bytes

    def reset(self) -> None:
        """Take the first weights, which are the same whatever the layout, and forget what was
        trained."""
        for stage in self.stages:
            load(stage, self._source, self.shape)
        self.optimizer.reset()
        self.updates, self._scaling = 0, None if self._scaling is None else Scaling()

    def state(self) -> dict[str, Tensor]:
        """Weights in float32 and moments, this rank's part of each, by names that do not depend on
        the layout. There are some after a step."""
        kept = self.optimizer.state()
        return {
            f"{what}.{name}": tensor
            for stage in self.stages
            for name, parameter in stage.stored_parameters()
            for what, tensor in kept[parameter].items()
        }

    @property
    def loss_scale(self) -> tuple[float, int] | None:
        """By what losses are multiplied, and for how many steps they were; None: by nothing."""
        return None if self._scaling is None else (self._scaling.scale, self._scaling.good_steps)

    def restore(self, state: TrainingState, read: Read) -> None:
        """Be as in a state. read: fills what `self.state` names."""
        self.updates = state.updates
        if self._scaling is not None:
            self._scaling = Scaling(*state.loss_scale) if state.loss_scale else Scaling()
        self.optimizer.begin_after(state.updates)
        read(self.state())
        self.optimizer.round()

    def save(self, folder: Path, like: str | None) -> None:
        """Write what was trained to `folder`, with the other ranks."""
        save(self.stages, self._plan, folder, self.rank == 0, like)

    def step(self, tokens: Tensor, counting: AbstractContextManager[Any] = NOTHING) -> StepResult:
        """Train on the sequences of this replica, int64 [sequences, seq_len + 1]. counting: entered
        while the layout communicates."""
        with counting:
            loss = self._backward(tokens)
        if self.gradient_bytes is None:
            self.gradient_bytes = sum(bytes_of(one.grad) for one in self._parameters)
        known, scale = self._agreed(loss), self._scale
        # Read before the update where that depends on it: else the device need not wait for it.
        norm = known[1].item() if self._scaling is not None else 0.0
        with part("optimizer"):
            self._update(norm)
        mean, squares = known.tolist()
        return StepResult(mean / scale, squares**0.5 / scale)

    def _update(self, squares: float) -> None:
        """Update the weights; where gradients overflowed in fp16, leave them and scale less."""
        scale, overflowed = self._scale, not math.isfinite(squares)
        if self._scaling is not None:
            self._scaling = self._scaling.after(overflowed)
            if overflowed:
                self.optimizer.drop()
                return
        self.optimizer.step(scale)
        self.updates += 1

    @property
    def _scale(self) -> float:
        return 1.0 if self._scaling is None else self._scaling.scale

    def _backward(self, tokens: Tensor) -> Tensor:
        """The gradients of a step. Returns this rank's part of the loss, float32 []."""
        tokens = tokens.to(self.device)
        if self._plan.ablation == "comm":
            tokens = among(tokens, columns_of(self._plan, self.rank))
        inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        with self._losses_over_tp():
            loss = self._accumulate(inputs, labels)
        for stage in self.stages:
            sum_partial(stage)
        self._sum_tied()
        return loss

    def _settle_buckets(self) -> None:
        """Let gradients lie in the buckets of DDP before there is anything beside them: it orders
        these by the first backward pass, and makes them anew after it. Gradients of micro-batches
        that are not the last would else be kept beside the buckets (Li et al., arXiv:2006.15704,
        section 4.2.3)."""
        count = micro_batches(self.placement, self.asked) if self._schedule is not None else 1
        shape = count * self.asked.micro_batch_size, self.asked.seq_len
        nothing = torch.zeros(shape, dtype=torch.int64, device=self.device)
        for _ in range(2):
            for stage in self.stages:
                stage.zero_grad()
            self._accumulate(nothing, nothing)

    # -- forward and backward

    def _accumulate(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The gradients of all micro-batches, summed."""
        if self._schedule is not None:
            return self._through_pipeline(inputs, labels)
        (module,), size = self.modules, self.asked.micro_batch_size
        total = torch.zeros((), device=self.device)
        batches = list(zip(torch.split(inputs, size), torch.split(labels, size), strict=True))
        for number, (x, y) in enumerate(batches):
            is_last = number == len(batches) - 1
            with exchanging(module, is_last):
                loss = self._loss(module(x), y)
                with part("backward"):
                    torch.autograd.backward(loss)
            total += loss.detach()
        return total

    def _through_pipeline(self, inputs: Tensor, labels: Tensor) -> Tensor:
        first = any(hasattr(stage.model, "embed_tokens") for stage in self._owned(0))
        losses: list[Tensor] = []
        arguments = (inputs,) if first else ()
        if self._owned(-1):
            self._schedule.step(*arguments, target=labels, losses=losses, return_outputs=False)
        else:
            self._schedule.step(*arguments)
        total = torch.zeros((), device=self.device)
        return total + sum(loss.detach() for loss in losses)

    def _owned(self, place: int) -> list[StageModule]:
        """The stage at a place of the pipeline, if it is this rank's."""
        mine = zip(self.placement.stages_of(self.rank), self.stages, strict=True)
        return [module for stage, module in mine if stage == self.placement.stages[place]]

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The share of a micro-batch in the mean over all tokens of the global batch, times the
        replicas, as their gradients are averaged, and times the scale of fp16. logits: [batch,
        seq_len, this rank's part of the vocabulary]."""
        with part("forward"):
            return self._mean(logits, labels)

    def _mean(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.placement.degree("tp") > 1:
            size = torch.Size((*logits.shape[:2], self.shape.vocab_size))
            stride = (size[1] * size[2], size[2], 1)
            logits = DTensor.from_local(
                logits, self._mesh["tp"], [Shard(2)], run_check=False, shape=size, stride=stride
            )
        mean = self._summed(logits, labels) * (
            self._scale * self.placement.num_replicas / self._tokens
        )
        return mean.to_local() if isinstance(mean, DTensor) else mean

    @property
    def _tokens(self) -> int:
        return self.asked.global_batch_size * self.asked.seq_len

    def _losses_over_tp(self) -> AbstractContextManager[None]:
        over_tp = self.placement.degree("tp") > 1
        return loss_parallel() if over_tp else nullcontext()

    def _pipeline(self) -> Any:
        return schedule_of(
            self._plan,
            self.rank,
            self.modules,
            self._mesh["pp"].get_group(),
            self.device,
            self._loss,
        )

    # -- what is known of the step

    def _sum_tied(self) -> None:
        """Sum the gradients of an embedding that is also the head of another rank."""
        if self._ends is None:
            return
        for parameter in self._tied():
            if parameter.grad is not None:
                dist.all_reduce(local_part(parameter.grad)[0], group=self._ends)

    def _tied(self) -> list[Tensor]:
        """The copies of the embedding here."""
        named = [pair for stage in self.stages for pair in stage.stored_parameters()]
        return [parameter for name, parameter in named if name == EMBEDDING]

    def _agreed(self, loss: Tensor) -> Tensor:
        """The loss and the square of the norm, times the scale of fp16, float32 [2]: what all ranks
        know together; not counted as communication of the layout."""
        nothing = torch.zeros((), device=self._shares.device)
        norms = [
            nothing if one.grad is None else vector_norm(local_of(one.grad), dtype=torch.float32)
            for one in self._parameters
        ]
        squares = torch.dot(torch.stack(norms).square(), self._shares)
        alike = self.placement.degree("tp") * self.placement.num_replicas
        both = torch.stack([loss.float() / alike, squares.to(self.device)])
        if self.placement.num_ranks > 1:
            with part("agree"):
                dist.all_reduce(both)
        return both

    def _shares_of(self) -> Tensor:
        """Of the square of each parameter's gradient, the share that this rank adds to the sum over
        ranks, of which several may have the same. Where the gradients are."""
        twice = {id(one) for one in self._tied()} if self._ends is not None else set()
        times = [
            copies(one, self.placement) * (2 if id(one) in twice else 1) for one in self._parameters
        ]
        return torch.tensor([1 / one for one in times], device=self._parameters[0].device)
