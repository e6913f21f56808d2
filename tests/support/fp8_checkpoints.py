"""Small checkpoints in FP8 as people publish them, each with a twin in float32 of the same values,
and a model of Transformers that quantises its inputs as the checkpoint says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LARGEST = 448.0
FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}
INPUT_SCALE = 0.02  # of a static checkpoint


@dataclass(frozen=True)
class Published:
    """One form. config: its quantization_config. scales: tensor, channel or block (of `block`).
    names: of the scales. static: a scale of inputs is stored. plain: matches the modules that stay
    as they were."""

    name: str
    config: Mapping[str, Any]
    scales: str
    block: tuple[int, int] | None = None
    names: tuple[str, str] = ("weight_scale", "input_scale")
    static: bool = False
    plain: str = "never"
    of_scale: Mapping[str, Any] = field(default_factory=lambda: {"dtype": torch.float32})


def compressed(weights: dict[str, Any], inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What llm-compressor writes."""
    group = {
        "targets": ["Linear"],
        "weights": {**FLOAT8, "dynamic": False, "observer": "minmax", **weights},
        "input_activations": {**FLOAT8, **inputs},
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": 1.2,
        "kv_cache_scheme": None,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        **more,
    }


TOKEN = {"strategy": "token", "dynamic": True}
BLOCK = (16, 16)
FORMS = (
    Published(
        "qwen-blocks",
        {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": list(BLOCK),
            "modules_to_not_convert": ["lm_head", "model.layers.0.input_layernorm"],
        },
        "block",
        BLOCK,
        ("weight_scale_inv", ""),
    ),
    Published(
        "fp8-static",
        {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
        "tensor",
        static=True,
    ),
    Published(
        "fp8-static-other-names",
        {
            "quant_method": "fp8",
            "activation_scheme": "static",
            "weight_block_size": None,
            "modules_to_not_convert": ["lm_head", "model.layers.3"],
            "dequantize": False,
        },
        "tensor",
        names=("weight_scale_inv", "activation_scale"),
        static=True,
        plain=r"model\.layers\.3\.",
    ),
    Published(
        "channels",
        compressed({"strategy": "channel"}, TOKEN, ignore=["lm_head", r"re:.*\.1\..*down_proj"]),
        "channel",
        plain=r".*layers\.1\.mlp\.down_proj",
        of_scale={"dtype": torch.bfloat16},
    ),
    Published(
        "tensors-static",
        compressed({"strategy": "tensor"}, {"strategy": "tensor", "dynamic": False}),
        "tensor",
        static=True,
    ),
    Published(
        "blocks-groups",
        compressed(
            {"strategy": "block", "block_structure": list(BLOCK)},
            {"strategy": "group", "group_size": BLOCK[1], "dynamic": True},
        ),
        "block",
        BLOCK,
    ),
)


def publish(source: Path, form: Published, folder: Path) -> tuple[Path, Path]:
    """(the checkpoint of `source` in `form`, its twin in float32), in `folder`."""
    stored, real = {}, {}
    for file in source.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            parts = _quantized(name, tensor, form)
            stored |= parts
            real[name] = _real(parts, name, form) if len(parts) > 1 else tensor
    config = json.loads((source / "config.json").read_text())
    fp8, twin = folder / "fp8", folder / "real"
    for at, tensors, fields in (
        (fp8, stored, {**config, "quantization_config": dict(form.config)}),
        (twin, real, config),
    ):
        at.mkdir(parents=True)
        (at / "config.json").write_text(json.dumps(fields))
        save_file(tensors, at / "model.safetensors")
    return fp8, twin


def _quantized(name: str, tensor: Tensor, form: Published) -> dict[str, Tensor]:
    """What is stored of one tensor."""
    module = name.removesuffix(".weight")
    if not module.endswith("_proj") or re.match(form.plain, module):
        return {name: tensor}
    parts = _in_blocks(tensor, _share(form, tensor))
    largest = parts.abs().amax((1, 3), keepdim=True)
    scales = (largest / LARGEST).to(**form.of_scale).float()
    values = (parts / scales).clamp(-LARGEST, LARGEST)
    kept = values.reshape(tensor.shape).to(torch.float8_e4m3fn)
    shape = {"tensor": (), "channel": (-1, 1), "block": scales.shape[::2]}[form.scales]
    found = {name: kept, f"{module}.{form.names[0]}": scales.reshape(shape).to(**form.of_scale)}
    if form.static:
        found[f"{module}.{form.names[1]}"] = torch.tensor(INPUT_SCALE)
    return found


def _share(form: Published, tensor: Tensor) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    rows, columns = tensor.shape
    return form.block or ((rows, columns) if form.scales == "tensor" else (1, columns))


def _in_blocks(tensor: Tensor, share: tuple[int, int]) -> Tensor:
    rows, columns = tensor.shape
    return tensor.view(rows // share[0], share[0], columns // share[1], share[1])


def _real(parts: Mapping[str, Tensor], name: str, form: Published) -> Tensor:
    """The values that a stored matrix stands for."""
    values = parts[name].float()
    share = _share(form, values)
    scales = parts[f"{name.removesuffix('.weight')}.{form.names[0]}"].float()
    blocks = _in_blocks(values, share)
    return (blocks * scales.reshape(blocks.shape[0], 1, blocks.shape[2], 1)).reshape(values.shape)


def with_quantized_inputs(model: torch.nn.Module, form: Published) -> torch.nn.Module:
    """The same model; each matrix in FP8 reads inputs that were rounded to e4m3."""

    def rounded(module: torch.nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (x,) = inputs
        parts = x.unflatten(-1, (-1, form.block[1] if form.block else x.shape[-1]))
        largest = parts.abs().amax(-1, keepdim=True)
        scale = torch.tensor(INPUT_SCALE) if form.static else largest / LARGEST
        values = (parts / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
        return ((values.float() * scale).flatten(-2),)

    for name, module in model.named_modules():
        if name.endswith("_proj") and not re.match(form.plain, name):
            module.register_forward_pre_hook(rounded)
    return model
