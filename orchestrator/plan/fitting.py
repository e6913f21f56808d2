"""Does a plan fit into memory, and how many requests fit? This is checked before anything is
reserved."""

from __future__ import annotations

import re
from collections.abc import Sequence

from orchestrator.cluster import hardware
from orchestrator.cluster.main_memory import main_memory
from orchestrator.errors import UserError
from strategies import Load, Topology, TrainingLoad, memory
from strategies.training import HostMemory, TrainingMemory, training_memory
from strategies.training.host import PROCESS_BYTES, USABLE
from workers.messages import EnginePlan
from workers.units import format_bytes

LEAST_BARE = 10**6  # bytes; a smaller number without a unit is one whose unit was forgotten
POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def check_memory(plan: EnginePlan, topology: Topology, load: Load) -> None:
    """Raise UserError where the weights leave no room for the KV of one request of the greatest
    length."""
    if plan.device == "cpu":
        _check_main_memory(plan)
        return
    budget = budget_of(plan, topology)
    if not budget.holds(load.max_len):
        raise UserError(f"{_what(plan)} does not fit: {shortage(budget, load.max_len)}")


def check_training_memory(plan: EnginePlan, topology: Topology) -> None:
    """Raise UserError where the fullest rank takes more than its device has, or all ranks of one
    machine take more main memory than it has, as far as that is known: with what they take."""
    assert plan.training is not None
    ranks = training_memory(plan.placement, plan.model, plan.training)
    fullest = max(ranks, key=lambda one: one.total)
    named = f"{plan.model.name} under {plan.layout} does not fit"
    if plan.device == "cuda" and not fullest.fits(topology.memory_bytes):
        raise UserError(
            f"{named}: a GPU would take {format_bytes(fullest.total)} ({_split(fullest)}), and has "
            f"{format_bytes(topology.memory_bytes)}; {_lighter(plan.training)}"
        )
    if len({device.node for device in topology.devices}) > 1:
        return
    if plan.device == "cpu":
        _check_cpu_ranks(named, ranks)
    elif any(one.host.total for one in ranks):
        _check_host(named, plan, ranks)


def _check_cpu_ranks(named: str, ranks: Sequence[TrainingMemory]) -> None:
    """Raise UserError where ranks that compute on this machine's CPU take more than it has."""
    taken, there = sum(one.total + one.host.total for one in ranks), main_memory()
    if taken > there:
        fullest = max(ranks, key=lambda one: one.total)
        raise UserError(
            f"{named}: its {len(ranks)} ranks would take {format_bytes(taken)} of main memory "
            f"(each up to {_split(fullest)}), and this machine has {format_bytes(there)}; use a "
            "smaller model, shorter sequences or a smaller micro-batch, or cut it over the ranks "
            "(fsdp, tp, pp, zero)"
        )


def _check_host(named: str, plan: EnginePlan, ranks: Sequence[TrainingMemory]) -> None:
    """Raise UserError where what ranks keep in the main memory of this machine, beside their
    processes, is more than may be used of it."""
    taken, there = sum(one.host.total + PROCESS_BYTES for one in ranks), main_memory()
    if taken <= USABLE * there:
        return
    most = max((one.host for one in ranks), key=lambda one: one.total)
    raise UserError(
        f"{named}: its {len(ranks)} ranks would take {format_bytes(taken)} of main memory (each up "
        f"to {_split(most)}, and {format_bytes(PROCESS_BYTES)} of its process), and of this "
        f"machine's {format_bytes(there)}, {format_bytes(int(USABLE * there))} may be used; "
        f"{_lighter_on_host(plan)}"
    )


def _lighter_on_host(plan: EnginePlan) -> str:
    """What would take less of main memory."""
    assert plan.training is not None, "the plan trains"
    if plan.training.offload == "none":  # activations are there
        return "use shorter sequences, a smaller micro-batch or --activation-checkpointing full"
    if plan.training.offload == "optimizer+params":
        return "use a smaller model, or --offload optimizer, which leaves weights on the GPUs"
    less = ", or --engine torch, which keeps no gradients there"
    has_zero = plan.placement.option("zero_stage") is not None
    return f"use a smaller model or more machines{less if has_zero else ''}"


def _split(taken: TrainingMemory | HostMemory) -> str:
    """What a rank takes, by what it is for."""
    parts = {
        "weights": taken.weights,
        "gradients": taken.gradients,
        "optimizer state": taken.optimizer,
        "activations": taken.activations,
        "buffers": taken.buffers,
    }
    return ", ".join(f"{format_bytes(size)} of {what}" for what, size in parts.items() if size)


def _lighter(load: TrainingLoad) -> str:
    """What would take less."""
    ways = ["cut it over more GPUs (fsdp, tp, pp, zero)"]
    ways += ["give a smaller micro-batch"] if load.micro_batch_size > 1 else []
    ways += ["use shorter sequences"] if load.micro_batch_size == 1 else []
    recomputes = load.activation_checkpointing in ("full", "cpu-offload")
    return ", or ".join([*ways, *([] if recomputes else ["--activation-checkpointing full"])])


def _what(plan: EnginePlan) -> str:
    fp8 = plan.precision.name
    kept = plan.dtype if fp8 == "none" else f"{plan.dtype} and {fp8}"
    return f"{plan.model.name} under {plan.layout} in {kept}"


def shortage(budget: memory.Budget, max_len: int) -> str:
    """Why a plan does not fit: what a GPU holds, and how much room that leaves."""
    usable = int(budget.available * memory.UTILIZATION) - memory.RESERVE_BYTES
    room = f"room for {budget.kv_tokens} tokens of KV" if budget.kv_tokens else "no room for KV"
    return (
        f"a GPU would hold {format_bytes(budget.weights)} of weights and "
        f"{format_bytes(budget.workspace)} of activations, and can use "
        f"{format_bytes(max(usable, 0))} of its {format_bytes(budget.available)}; that leaves "
        f"{room}, where one request takes {max_len} tokens of "
        f"{format_bytes(budget.kv_per_token)}; cut the model over more GPUs (tp, pp)"
    )


def budget_of(plan: EnginePlan, topology: Topology) -> memory.Budget:
    """Bytes on the fullest rank of `plan`, and the tokens of KV that fit into the rest."""
    return memory.budget(
        plan.placement, plan.model, plan.precision, topology.memory_bytes, plan.prefill_tokens
    )


def concurrent_requests(plan: EnginePlan, topology: Topology) -> int | None:
    """Requests of the greatest length that all replicas together hold at once; None where memory is
    unknown."""
    tokens = budget_of(plan, topology).kv_tokens
    return None if tokens < 0 else tokens // plan.max_len * plan.placement.degree("dp")


def gpu_memory(asked: str | None) -> int:
    """Bytes of memory of one GPU: as asked, "141GB", else of the smallest one here; 0 where there
    is none. Raises UserError for what is not an amount of memory."""
    return parse_bytes(asked) if asked else hardware.local_topology("cuda").memory_bytes


def _check_main_memory(plan: EnginePlan) -> None:
    """Raise UserError where the weights of all CPU workers exceed main memory, which they share. KV
    is not counted: the engine takes only what the load needs."""
    placement = plan.placement
    weights = sum(
        memory.weight_bytes(placement, plan.model, rank, plan.precision)
        for rank in range(placement.num_ranks)
    )
    available = main_memory()
    if weights > available:
        raise UserError(
            f"{_what(plan)} does not fit: its CPU workers need {format_bytes(weights)} for "
            f"weights, this machine has {format_bytes(available)} of memory; use GPUs or a "
            "smaller model; `orchestrator plan --gpu h200 --gpus 4` predicts GPUs that are not here"
        )


def parse_bytes(text: str) -> int:
    """'141GB' -> 141e9, '80GiB' -> 80 * 2^30, '141000000000' -> 141e9. Raises UserError for
    anything else."""
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if not match:
        raise UserError(f"'{text}' is not an amount of memory; write it as 141GB or 80GiB")
    number, prefix, binary = match.groups()
    if text.strip()[-1].isdigit() and float(number) < LEAST_BARE:
        raise UserError(f"'{text}' bytes of memory are next to nothing; write a unit, as in 141GB")
    return int(float(number) * (1024 if binary else 1000) ** POWERS[prefix])
