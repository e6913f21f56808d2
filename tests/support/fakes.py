"""Small checkpoints made by hand: headers and zeros, no torch."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from strategies.shapes import ModelShape

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def write_config(folder: Path, **changes: Any) -> Path:
    """A config.json in `folder`; a change to None drops the field."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def shapes(**changes: Any) -> dict[str, tuple[int, ...]]:
    return dict(ModelShape.from_config({**CONFIG, **changes}, "fake").parameters())


def write_safetensors(file: Path, tensors: dict[str, tuple[int, ...]], cut: int = 0) -> None:
    """A file of float32 zeros that ends `cut` bytes too early."""
    header, offset = {}, 0
    for name, shape in tensors.items():
        stop = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset - cut))


def write_checkpoint(folder: Path) -> Path:
    """A whole single-file checkpoint; its config.json may be there already."""
    if not (folder / "config.json").is_file():
        write_config(folder)
    write_safetensors(folder / "model.safetensors", shapes())
    return folder


def write_sharded(folder: Path) -> Path:
    """The same in two shards with an index."""
    write_config(folder)
    names, index = list(shapes().items()), {}
    for number, part in enumerate((names[:5], names[5:]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        write_safetensors(folder / file, dict(part))
        index |= {name: file for name, _ in part}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    return folder
