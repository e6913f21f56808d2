"""Techniques that `orchestrator ablate` runs with and without: the one list of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, ValidationInfo

# Fields of an experiment: how the engine does what can be done in several ways. The engine says
# which values it takes.
SWITCHES = (
    *("attention", "cuda_graphs", "fusion", "batching", "chunked_prefill_size", "allreduce"),
    *("overlap", "products", "pdl"),
)
# Those of them that are "on" or "off".
ON_OR_OFF = ("cuda_graphs", "fusion", "overlap", "pdl")


@dataclass(frozen=True, slots=True)
class Technique:
    """A field of an experiment that is changed to see what it does.

    off: what the field is without the technique; with it, it is as it was asked for. off_on_cpu:
    the same on a CPU, where that is something else. also: other fields that go with it. among: it
    changes nothing for replicas of one rank, or unless tp has several.
    """

    name: str
    field: str
    off: str
    off_on_cpu: str | None = None
    also: tuple[tuple[str, str], ...] = ()
    among: Literal["replica", "tp"] | None = None

    @property
    def option(self) -> str:
        """The option that sets its field."""
        return f"--{self.field.replace('_', '-')}"

    def concerns(self, replica: int, tp: int) -> bool:
        """Whether it can change anything in a replica of so many ranks, of which so many are tp."""
        return {"replica": replica, "tp": tp, None: 2}[self.among] > 1

    def without(self, device: str) -> Mapping[str, object]:
        """The change to an experiment on a kind of device, "cuda" or "cpu"."""
        on_cpu = device == "cpu" and self.off_on_cpu is not None
        return {self.field: self.off_on_cpu if on_cpu else self.off, **dict(self.also)}


TECHNIQUES = {
    one.name: one
    for one in (
        Technique("attention", "attention", "eager"),
        Technique("batching", "batching", "static"),
        Technique("chunking", "chunked_prefill_size", "off"),
        Technique("fusion", "fusion", "off"),
        Technique("graphs", "cuda_graphs", "off"),
        Technique("allreduce", "allreduce", "nccl", off_on_cpu="gloo", among="replica"),
        Technique("overlap", "overlap", "off", among="tp"),
        Technique("products", "products", "cublas"),
        Technique("pdl", "pdl", "off"),
        Technique("quantization", "quantization", "none", also=(("precision_policy", "uniform"),)),
        Technique("kv-cache", "kv_cache_dtype", "auto"),
    )
}


# Of training: a technique -> its field and the values that cells are run again with, or with one of
# them, as "precision=fp8". The numbers of micro-batches depend on the layout; without collectives
# another engine plan is made.
IN_TRAINING: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "checkpointing": ("activation_checkpointing", ("off", "full", "selective", "cpu-offload")),
    "accumulation": ("gradient_accumulation_steps", ()),
    "fusion": ("fusion", ("on", "off")),
    "precision": ("precision", ("bf16", "fp16", "fp8", "fp8-fp16")),
    "offload": ("offload", ("none", "optimizer", "optimizer+params")),
    "comm": ("ablate", ()),
}


def _known(names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    trains = info.data.get("workload") == "train"
    known = tuple(IN_TRAINING if trains else TECHNIQUES)
    if names == ("all",):
        return known
    for name in names:
        technique, one, value = name.partition("=") if trains else (name, "", "")
        if technique not in known:
            raise ValueError(f"there is no technique '{technique}'; use {', '.join(known)}, or all")
        values = IN_TRAINING[technique][1] if one else (value,)
        if value not in values:
            others = ", ".join(f"{technique}={other}" for other in values)
            raise ValueError(f"there is no '{name}'; use {others or technique}")
    return names


Techniques = Annotated[tuple[str, ...], AfterValidator(_known)]
