"""The engine `deepspeed` for training: replicas, and ZeRO 1 to 3 over them."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from strategies.training import micro_batches
from workers.engines.deepspeed_layouts import trained_refusal
from workers.engines.deepspeed_pins import Pins
from workers.engines.training.engine import TorchTrainer, Trains, switches_of
from workers.engines.training.scaling import FIRST, INTERVAL
from workers.engines.training.support import of_model
from workers.messages import Built, EnginePlan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from workers.engines.training.model import StageModule
    from workers.engines.training.trainer import StepResult
    from workers.engines.training_state import Read, TrainingState
    from workers.rank import RankContext

NOTHING: AbstractContextManager[Any] = nullcontext()
NO_CLIPPING = 1e30  # a limit that no norm reaches: without one, DeepSpeed works out no norm


class DeepSpeedTrainer(TorchTrainer):
    """One rank of a deployment that trains."""

    def supports(self, plan: EnginePlan) -> str | None:
        """None, or why DeepSpeed cannot train the plan."""
        if importlib.util.find_spec("deepspeed") is None:
            return "it is not installed: pip install 'shard-orchestrator[deepspeed]'"
        return trained_refusal(plan) or _of_switches(plan) or of_model(plan)

    def choices(self, plan: EnginePlan) -> Mapping[str, Sequence[str]]:
        """What its collectives go through, and its attention. Nothing is fused here."""
        return switches_of(plan)

    def build(self, context: RankContext, plan: EnginePlan) -> Built:
        """Have DeepSpeed take the model. What of main memory could not be pinned is told."""
        built = super().build(context, plan)
        assert isinstance(self._trainer, Replica)
        return replace(built, remark=self._trainer._pins.lacking)

    def close(self) -> None:
        """Free the model, and have DeepSpeed leave the process groups."""
        if isinstance(self._trainer, Replica):
            self._trainer.close()
        super().close()

    def _made(self, context: RankContext, plan: EnginePlan) -> Trains:
        return Replica(context, plan)


def _of_switches(plan: EnginePlan) -> str | None:
    """None, or why DeepSpeed does not do what is asked in this layout, as a clause."""
    asked, stage = plan.training, int(plan.placement.option("zero_stage") or 0)
    assert asked is not None, "the plan trains"
    if asked.is_fp8:
        return f"here it has no FP8, and --precision {asked.precision} is asked for; use bf16"
    if asked.precision == "fp16" and not stage:
        return "here it scales the losses of fp16 under ZeRO alone; use dpNzero1, or --engine torch"
    if asked.offload != "none" and not stage:
        return "it offloads what ZeRO cuts; use dpNzero2, or --engine torch"
    if asked.offload == "optimizer+params" and stage < 3:
        return "it offloads parameters where they are cut; use dpNzero3, or --offload optimizer"
    return None


class Replica:
    """A whole model that DeepSpeed keeps, or shares out over replicas."""

    def __init__(self, context: RankContext, plan: EnginePlan) -> None:
        from workers.engines import deepspeed_process
        from workers.engines.training.silent import group_of_all

        assert plan.training is not None, "the plan trains"
        self._context, self._plan, self._asked = context, plan, plan.training
        self.gradient_bytes: int | None = None
        self._norm = 0.0
        self._undo: Callable[[], None] = deepspeed_process.set_environment(context)
        with deepspeed_process.quiet():
            deepspeed_process.connect(context.device)
        self._silence: tuple[Any, Any] = (None, None)  # a group, and what makes it silent
        if plan.ablation == "comm":
            self._silence = group_of_all(context.device)
        self._engine: Any = None
        self._pins = Pins()

    @property
    def replica(self) -> int:
        """Number of the part of the batch that is this rank's."""
        return self._context.at("dp")

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters of this rank."""
        from workers.engines.deepspeed_private import stored
        from workers.engines.training.optimizer import bytes_of

        return sum(bytes_of(stored(one)) for one in self._engine.module.parameters())

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of its moments, and of what it steps that is none of the model's own weights."""
        from workers.engines.deepspeed_private import inner_optimizer, stepped
        from workers.engines.training.optimizer import bytes_of

        states = inner_optimizer(self._engine).state.values()
        moments = [value for state in states for value in state.values()]
        mine = {id(one) for one in self._engine.module.parameters()}
        apart = [one for one in stepped(self._engine) if id(one) not in mine]
        return sum(map(bytes_of, (*moments, *apart)))

    @property
    def updates(self) -> int:
        """Steps so far that changed the weights."""
        from workers.engines import deepspeed_private

        states = deepspeed_private.inner_optimizer(self._engine).state.values()
        return int(next((one["step"] for one in states), 0))

    @property
    def loss_scale(self) -> tuple[float, int] | None:
        """By what losses are multiplied, and for how many steps they were; None: by nothing."""
        from workers.engines import deepspeed_private

        if self._asked.dtype != "float16":
            return None
        scaler = deepspeed_private.loss_scaler(self._engine)
        return float(scaler.cur_scale), scaler.cur_iter - scaler.last_overflow_iter - 1

    def reset(self) -> None:
        """Take the first weights. Under ZeRO, DeepSpeed's engine stays; else it is made anew."""
        from workers.engines.training import deepspeed_states
        from workers.engines.training.sharding import load
        from workers.weights import open_source

        shape, source = self._plan.model, open_source(self._plan.checkpoint)
        if self._engine is None or not self._plan.placement.option("zero_stage"):
            self._make(lambda stage: load(stage, source, shape))
            return
        deepspeed_states.begin_again(self._engine, self._context, source, shape)

    def state(self) -> dict[str, Tensor]:
        """Weights in float32 and moments of some parameters; the other ranks have the others."""
        from workers.engines.training.deepspeed_states import state_of

        return state_of(self._engine, self._context.rank, self._plan.placement.num_ranks)

    def restore(self, state: TrainingState, read: Read) -> None:
        """Be as in a state."""
        from workers.engines.training import deepspeed_states as states

        self._make(lambda stage: states.fill(stage, read))
        states.restore(self._engine, state.updates, self._context.rank, read)
        if state.loss_scale is not None:
            states.scale_by(self._engine, *state.loss_scale)

    def _make(self, fill: Callable[[StageModule], None]) -> None:
        """Make DeepSpeed's engine anew, of a model that `fill` gives its weights."""
        import deepspeed

        from workers.engines import deepspeed_private as private
        from workers.engines.deepspeed_process import check_dtype, quiet
        from workers.engines.training.deepspeed_states import begin_anew
        from workers.engines.training.model import stages_of
        from workers.engines.training.optimizer import adamw

        self._drop()
        plan = self._plan
        check_dtype(plan.dtype)
        (stage,) = stages_of(plan, self._context.rank)
        stage.settle(self._asked.activation_checkpointing, fuses=False)
        stage.materialize(self._context.device)
        fill(stage)
        is_pinned = plan.device == "cuda" and self._asked.offload != "none"
        if is_pinned:
            self._pins.install()
        with quiet(), private.taking_for_all(self._silence[0]):
            self._engine, *_ = deepspeed.initialize(
                model=stage,
                # In one kernel, as DeepSpeed's FusedAdam, which would be compiled first.
                optimizer=adamw(stage.parameters(), fused=True),
                config=config_of(plan),
                dist_init_required=False,
            )
        begin_anew(self._engine)
        if _sums_in_main_memory(plan):
            gradients = private.share_gradients(self._engine.optimizer)
            if is_pinned:
                self._pins.pin(gradients)

    def step(self, tokens: Tensor, counting: AbstractContextManager[Any] = NOTHING) -> StepResult:
        """Train on the sequences of this replica, int64 [sequences, seq_len + 1]."""
        import torch

        from workers.engines.training.observing import part
        from workers.engines.training.trainer import StepResult

        tokens = tokens.to(self._context.device)
        total = torch.zeros((), device=tokens.device)
        batches = torch.split(tokens, self._asked.micro_batch_size)
        with counting:
            for batch in batches:
                total += self._micro_batch(batch) / len(batches)
        total /= self._plan.placement.num_replicas
        if self._plan.placement.num_ranks > 1:
            with part("agree"):
                torch.distributed.all_reduce(total)
        norm = self._engine.get_global_grad_norm()
        return StepResult(total.item(), self._norm if norm is None else float(norm))

    def save(self, folder: Path, like: str | None) -> None:
        """Never asked for: see `DeepSpeedTrainer.supports`."""
        raise NotImplementedError(folder)

    def close(self) -> None:
        """Leave the process groups and put the environment back."""
        from workers.engines import deepspeed_process

        self._drop()
        deepspeed_process.disconnect()
        self._undo()

    def _drop(self) -> None:
        """End DeepSpeed's engine and free what it holds: its parts refer to each other."""
        import gc

        import torch

        from workers.engines import deepspeed_private

        if self._engine is None:  # it may have failed to begin
            self._pins.close()
            return
        self._engine.destroy()
        self._pins.close()
        deepspeed_private.free(self._engine)
        self._engine = None
        gc.collect()
        if self._context.device.type == "cuda":
            torch.cuda.empty_cache()

    def _micro_batch(self, tokens: Tensor) -> Tensor:
        """One micro-batch; the last one of a step brings the update. Returns its mean loss."""
        import torch
        from torch.nn.functional import cross_entropy

        from workers.engines.training.observing import part

        with part("forward"):
            logits = self._engine(tokens[:, :-1].contiguous())
            loss = cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        with part("backward"):
            self._engine.backward(loss)
        if isinstance(self._engine.optimizer, torch.optim.Optimizer):  # DeepSpeed keeps no norm
            grads = [one.grad for one in self._engine.module.parameters() if one.grad is not None]
            self._norm = float(torch.nn.utils.get_total_norm(grads))
        with part("optimizer"):
            self._engine.step()
        return loss.detach()


def config_of(plan: EnginePlan) -> dict[str, Any]:
    """DeepSpeed's config of a plan."""
    asked = plan.training
    assert asked is not None, "the plan trains"
    stage = int(plan.placement.option("zero_stage") or 0)
    # Of ZeRO-3, what moves in every step is pinned once it is made: parameters, by DeepSpeed, and
    # the gradients.
    pinned = {"device": "cpu", "pin_memory": plan.device == "cuda" and stage < 3}
    offloaded = {} if asked.offload == "none" else {"offload_optimizer": pinned}
    if asked.offload == "optimizer+params":
        offloaded["offload_param"] = pinned
    return {
        "train_batch_size": asked.global_batch_size,
        "train_micro_batch_size_per_gpu": asked.micro_batch_size,
        "gradient_accumulation_steps": micro_batches(plan.placement, asked),
        "gradient_clipping": NO_CLIPPING,
        # Parameters are kept for no longer than they are used, however small they are. What is
        # gathered ahead of its use is as much as Transformers' Trainer has it.
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": 0,
            "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": int(0.9 * plan.model.hidden_size**2),
            **offloaded,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": asked.dtype == "bfloat16"},
        "fp16": {
            "enabled": asked.dtype == "float16",
            "initial_scale_power": int(math.log2(FIRST)),
            "loss_scale_window": INTERVAL,
            "hysteresis": 1,
        },
        "data_types": {"grad_accum_dtype": "fp32"} if _sums_in_main_memory(plan) else {},
        "steps_per_print": 10**9,
    }


def _sums_in_main_memory(plan: EnginePlan) -> bool:
    """Whether ZeRO-3 sums gradients in main memory. It would in the dtype of the weights, and step
    from a second copy of them, in float32."""
    asked = plan.training
    assert asked is not None, "the plan trains"
    return asked.offload != "none" and plan.placement.option("zero_stage") == "3"
