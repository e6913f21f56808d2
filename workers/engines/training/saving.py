"""What was trained as a folder of Hugging Face's: config and safetensors, whatever the layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from workers.engines.training.model import StageModule
from workers.engines.transformers_config import CONFIG_CLASSES, shape_to_config
from workers.messages import EnginePlan

DESCRIBING = (".json", ".model", ".txt", ".jinja")  # config, tokenizer and chat template
SHARDED = "sharded"  # where torch puts the parts of the ranks, before it joins them


def save(stages: Sequence[StageModule], plan: EnginePlan, folder: Path, is_first: bool) -> None:
    """Write the weights of all ranks to `folder`, and the config and the tokenizer from rank 0.
    Every rank calls it. What was there is overwritten, weights of other names among it."""
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
    save_distributed(state, storage_writer=writer, no_dist=not several)
    if several:
        dist.barrier()
    if is_first:
        shutil.rmtree(folder / SHARDED, ignore_errors=True)
        _describe(plan, folder)


def _describe(plan: EnginePlan, folder: Path) -> None:
    """What a folder has beside its weights: of a checkpoint, its own files."""
    if plan.checkpoint is None:
        config = shape_to_config(plan.model)
        config.architectures = [CONFIG_CLASSES[plan.model.family].replace("Config", "ForCausalLM")]
        config.dtype = plan.dtype
        config.save_pretrained(folder)
        return
    for file in Path(plan.checkpoint).iterdir():
        if file.is_file() and "safetensors" not in file.name and file.suffix in DESCRIBING:
            shutil.copy(file, folder / file.name)
    config_file = folder / "config.json"
    fields = json.loads(config_file.read_text(encoding="utf-8"))
    fields.pop("torch_dtype", None)
    config_file.write_text(json.dumps({**fields, "dtype": plan.dtype}, indent=2), encoding="utf-8")
