"""What is asked of training: the fields of an experiment that only `workload: train` has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

Sequences = Annotated[int, Field(gt=0, le=1_000_000)]
# Fields that mean nothing where nothing is generated.
ONLY_GENERATES = (
    *("scenario", "input_len", "output_len", "range_ratio", "max_concurrency", "num_prompts"),
    *("min_duration", "request_rate", "burstiness", "ignore_eos", "temperature", "dtype"),
    *("quantization", "kv_cache_dtype", "precision_policy", "dataset_path", "save_detailed"),
    *("save_spans", "chunked_prefill_size", "cuda_graphs", "batching"),
    *("allreduce", "overlap", "products", "pdl"),
    *("nsys", "ncu", "goodput", "slo", "find_rate", "rate_runs", "engine_arg"),
    *("dataset_format", "dataset_columns", "multi_turn", "skip_invalid"),
    *("trace_speed", "trace_window"),
)
# What training has in the place of some of them.
INSTEAD = {
    **dict.fromkeys(("dtype", "quantization", "precision_policy"), "precision"),
    **dict.fromkeys(("dataset_path", "dataset_format"), "data"),
    "dataset_columns": "data_column",
    "max_concurrency": "global_batch_size",
    "num_prompts": "steps",
}


class TrainingFields(BaseModel):
    """The workload, and what an optimizer step trains on and how."""

    workload: Literal["generate", "train"] = "generate"
    seq_len: int = Field(1024, gt=0, le=10_000_000)  # tokens of a sequence
    # sequences of an optimizer step, over all replicas
    global_batch_size: Sequences = 32
    # sequences that a rank computes at once; None: 1, or what gradient_accumulation_steps leaves
    micro_batch_size: Sequences | None = None
    # micro-batches of a replica in a step, instead of their size
    gradient_accumulation_steps: Sequences | None = None
    # text to train on; None: random tokens. data_column: of a dataset; None: "text"
    data: Path | None = None
    data_column: str | None = None
    # where what was trained is kept, in a folder for each deployment
    save_checkpoint: Path | None = None
    # optimizer steps after which a run keeps what it needs to go on; None: it keeps nothing
    checkpoint_interval: Sequences | None = None
    # such a state, of this or another layout, that every run begins with; None: the first weights
    resume_from: Path | None = None
    steps: int = Field(20, ge=2, le=1_000_000)  # optimizer steps of a run
    schedule: Literal["gpipe", "1f1b", "interleaved"] | None = None  # of a pipeline; None: 1f1b
    activation_checkpointing: Literal["off", "full", "selective", "cpu-offload"] = "off"
    # of weights, gradients and products; auto: bf16 on GPUs, fp32 on CPUs
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp8", "fp8-fp16"] = "auto"
    # what is kept, and stepped, in main memory
    offload: Literal["none", "optimizer", "optimizer+params"] = "none"

    @model_validator(mode="after")
    def _fields_of_the_workload(self) -> TrainingFields:
        trains = self.workload == "train"
        for name in ONLY_GENERATES if trains else ONLY_TRAINS:
            field = type(self).model_fields.get(name)
            if field and getattr(self, name) != field.get_default(call_default_factory=True):
                other = "generate" if trains else "train"
                mine = INSTEAD.get(name)
                advice = f"give {mine} instead" if mine else f"leave {name} out"
                raise ValueError(
                    f"{name} is about the workload {other}, and {self.workload} is asked for; "
                    f"{advice}, or give workload {other}"
                )
        if trains and "p2p" in getattr(self, "ablate", ()):
            raise ValueError("ablate p2p is about the workload generate; training can do with comm")
        if self.micro_batch_size and self.gradient_accumulation_steps:
            raise ValueError(
                "micro_batch_size and gradient_accumulation_steps say the same twice; give one of "
                "them"
            )
        if self.data_column is not None and self.data is None:
            raise ValueError("data_column is about the text to train on; give data too")
        return self


ONLY_TRAINS = tuple(name for name in TrainingFields.model_fields if name != "workload")
