"""What was trained as a folder of Hugging Face's: config and safetensors, whatever the layout."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from torch.distributed.checkpoint.storage import StorageWriter

from strategies.errors import Refused
from workers.engines.training.model import StageModule
from workers.engines.transformers_config import CONFIG_CLASSES, shape_to_config
from workers.messages import EnginePlan

DESCRIBING = (".json", ".model", ".txt", ".jinja")  # config, tokenizer and chat template
SHARDED = "sharded"  # where torch puts the parts of the ranks, before it joins them


def make_folder(folder: Path, rank: int) -> None:
    """Make the folder of `save`. Raises Refused where this rank cannot write there, which is better
    known before it trains than after."""
    probe = folder / f".rank-{rank}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Refused(
            f"a checkpoint cannot be written to {folder}: {error.strerror}; give another "
            "--save-checkpoint"
        ) from error


def write(tensors: Mapping[str, Tensor], writer: StorageWriter, several: bool) -> None:
    """Write what all ranks have, each its part. Raises Refused with what kept one from it: torch's
    own exception names no more than ranks in its first line, and is no Exception."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*single process.*")
            save_distributed(dict(tensors), storage_writer=writer, no_dist=not several)
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise Refused(f"rank {rank} cannot write its part: {cause}") from error


def save(
    stages: Sequence[StageModule], plan: EnginePlan, folder: Path, is_first: bool, like: str | None
) -> None:
    """Write the weights of all ranks to `folder`, and the config and the tokenizer of the model's
    folder `like` from rank 0. Every rank calls it. What was there is overwritten, weights of other
    names among it."""
    if is_first:
        for file in folder.glob("*.safetensors*"):
            file.unlink()
    if plan.placement.num_ranks > 1:
        dist.barrier()
    state = {name: one.detach() for stage in stages for name, one in stage.stored_parameters()}
    several = plan.placement.num_ranks > 1
    writer = HuggingFaceStorageWriter(
        str(folder), save_distributed=several, enable_consolidation=several
    )
    write(state, writer, several)
    if several:
        dist.barrier()
    if is_first:
        shutil.rmtree(folder / SHARDED, ignore_errors=True)
        _describe(plan, folder, like)


def _describe(plan: EnginePlan, folder: Path, like: str | None) -> None:
    """What a folder has beside its weights: the files of the model's own folder, if it has one."""
    if like is None:
        config = shape_to_config(plan.model)
        config.architectures = [CONFIG_CLASSES[plan.model.family].replace("Config", "ForCausalLM")]
        config.dtype = plan.dtype
        config.save_pretrained(folder)
        return
    for file in Path(like).iterdir():
        if file.is_file() and "safetensors" not in file.name and file.suffix in DESCRIBING:
            shutil.copy(file, folder / file.name)
    config_file = folder / "config.json"
    fields = json.loads(config_file.read_text(encoding="utf-8"))
    fields.pop("torch_dtype", None)
    config_file.write_text(json.dumps({**fields, "dtype": plan.dtype}, indent=2), encoding="utf-8")
