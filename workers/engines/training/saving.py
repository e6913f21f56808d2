"""What was trained as a folder of Hugging Face's: config and safetensors, whatever the layout."""

from __future__ import annotations

import json
import shutil
import tempfile
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
from workers.checkpoint_files import UNFINISHED, discard, missing
from workers.engines.training.model import StageModule
from workers.engines.transformers_config import CONFIG_CLASSES, shape_to_config
from workers.messages import EnginePlan

CONFIG = "config.json"
DESCRIBING = (".json", ".model", ".txt", ".jinja")  # config, tokenizer and chat template
SHARDED = "sharded"  # where torch puts the parts of the ranks, before it joins them


def check_folder(folder: Path) -> None:
    """Raises Refused where `save` could not write to a folder, or make it, which is better known
    before training than after. Nothing is left of the trial."""
    try:
        there = next(one for one in (folder, *folder.parents) if one.exists())
        tempfile.TemporaryDirectory(dir=there).cleanup()
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
    folder `like` from rank 0. Every rank calls it. A checkpoint that was there is replaced when
    this one is whole, weights of other names included; of one that cannot be written nothing is
    left."""
    several, unfinished = plan.placement.num_ranks > 1, folder / UNFINISHED
    made = missing(folder)
    if is_first:
        discard(unfinished, ())
    if several:
        dist.barrier()
    state = {name: one.detach() for stage in stages for name, one in stage.stored_parameters()}
    writer = HuggingFaceStorageWriter(
        str(unfinished), save_distributed=several, enable_consolidation=several
    )
    try:
        write(state, writer, several)
        if is_first:
            shutil.rmtree(unfinished / SHARDED, ignore_errors=True)
            _describe(plan, unfinished, like)
            _replace(unfinished, folder)
    finally:
        if is_first:
            discard(unfinished, made)


def _replace(unfinished: Path, folder: Path) -> None:
    """Have the files of one folder in another, for those of the checkpoint there. The config goes
    first and comes last: a folder without one is none."""
    config = folder / CONFIG
    for file in (config, *folder.glob("*.safetensors*")):
        file.unlink(missing_ok=True)
    for file in sorted(unfinished.iterdir(), key=lambda one: one.name == CONFIG):
        file.replace(folder / file.name)


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
    config_file = folder / CONFIG
    fields = json.loads(config_file.read_text(encoding="utf-8"))
    fields.pop("torch_dtype", None)
    config_file.write_text(json.dumps({**fields, "dtype": plan.dtype}, indent=2), encoding="utf-8")
