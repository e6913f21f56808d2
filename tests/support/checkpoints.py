"""Small checkpoints as they lie in people's folders: families, spellings, dtypes, shards, and files
that should not be there. Each is made from a seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
ENDS = list(range(0, 128, 5))
DROP = ...  # in `written`: leave the field out


@dataclass(frozen=True)
class Case:
    """One checkpoint.

    made_of: arguments of the config's class. written: changes to its config.json. dtype: of what
    is stored, or a function of the name. edit: changes what is stored. files: more of them, by
    name. stale: an index and shards of other weights beside model.safetensors. stops: end tokens
    count. refused: what the refusal names, for one that is not run.
    """

    name: str
    family: str
    made_of: Mapping[str, Any] = field(default_factory=dict)
    written: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | Callable[[str], str] = "float32"
    shards: int = 1
    edit: Callable[[dict[str, Tensor]], None] | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    stale: bool = False
    stops: bool = False
    refused: str | None = None


def write(case: Case, folder: Path) -> Path:
    """The checkpoint of `case` in `folder`."""
    config, tensors = _model(case, seed=5)
    fields = json.loads(config.to_json_string(use_diff=False))
    fields |= {"architectures": [f"{case.family}ForCausalLM"], **case.written}
    kept = {name: value for name, value in fields.items() if value is not DROP}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(kept))
    if case.stale:
        _save(folder, _model(case, seed=6)[1], shards=2)
    _save(folder, tensors, case.shards)
    for name, data in case.files.items():
        (folder / name).write_bytes(data)
    return folder


def _model(case: Case, seed: int) -> tuple[Any, dict[str, Tensor]]:
    """The config and the tensors that are stored. Large random values, so that greedy tokens are no
    ties."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{case.family}Config")(**{**SIZES, **case.made_of})
    model = getattr(transformers, f"{case.family}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del tensors[HEAD]
    if case.edit is not None:
        case.edit(tensors)
    kind = case.dtype if callable(case.dtype) else lambda _: case.dtype
    return config, {name: one.to(getattr(torch, kind(name))) for name, one in tensors.items()}


def _save(folder: Path, tensors: dict[str, Tensor], shards: int) -> None:
    from safetensors.torch import save_file

    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    where = {}
    for number in range(shards):
        names = sorted(tensors)[number::shards]
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        where |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


# -- what is stored beside or in place of what a model of Transformers has


def own_head(tensors: dict[str, Tensor]) -> None:
    """A head that is not the embedding, though the config ties them."""
    tensors[HEAD] = tensors[EMBEDDING].flip(0).contiguous()


def equal_head(tensors: dict[str, Tensor]) -> None:
    """A copy of the embedding."""
    tensors[HEAD] = tensors[EMBEDDING].clone()


def rotary_buffers(tensors: dict[str, Tensor]) -> None:
    """What Transformers 2 to 4 stored, and nobody reads."""
    import torch

    for layer in range(SIZES["num_hidden_layers"]):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)


def fourth_layer(tensors: dict[str, Tensor]) -> None:
    """A layer more than the config has."""
    for name in [name for name in tensors if ".layers.2." in name]:
        tensors[name.replace(".layers.2.", ".layers.3.")] = tensors[name].clone()


def output_bias(tensors: dict[str, Tensor]) -> None:
    """A bias that the config does not ask for."""
    import torch

    tensors["model.layers.1.self_attn.o_proj.bias"] = torch.ones(SIZES["hidden_size"])


def norms_in_float32(name: str) -> str:
    """A dtype for each tensor."""
    return "float32" if "norm" in name else "bfloat16"


def rope(kind: str, **numbers: Any) -> dict[str, Any]:
    """As Transformers 5 spells it."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **numbers}}


def old_rope(kind: str, key: str = "type", theta: float = 10000.0, **numbers: Any) -> Any:
    """As Transformers 4 spelled it."""
    scaling = {key: kind, **numbers}
    return {"rope_parameters": DROP, "rope_scaling": scaling, "rope_theta": theta}


STRAYS = {
    "pytorch_model.bin": b"not read",
    "consolidated.safetensors": b"not read",
    "optimizer.pt": b"not read",
    "README.md": b"# A model",
}
ADAPTER = {"adapter_config.json": b'{"peft_type": "LORA"}'}
TIED = {"tie_word_embeddings": True}
SLIDES = {"sliding_window": 16, "use_sliding_window": True}

CASES = (
    Case("llama", "Llama"),
    Case("llama-mha", "Llama", {"num_key_value_heads": 4}, {"num_key_value_heads": DROP}),
    Case("llama-one-kv-head", "Llama", {"num_key_value_heads": 1}, dtype="bfloat16"),
    Case("llama-tied-shards", "Llama", TIED, shards=3),
    Case("llama-odd-vocabulary-tied", "Llama", {**TIED, "vocab_size": 131}),
    Case("llama-bias", "Llama", {"attention_bias": True}, shards=2),
    Case("llama-bias-tied", "Llama", {"attention_bias": True, **TIED}, dtype="float16"),
    Case("llama-head-dim", "Llama", {"head_dim": 24}),
    Case("llama-four-layers", "Llama", {"num_hidden_layers": 4}, shards=4),
    Case("llama-theta-at-the-top", "Llama", written={"rope_parameters": DROP, "rope_theta": 5e5}),
    Case("llama-no-rope-field", "Llama", written={"rope_parameters": DROP, "head_dim": DROP}),
    Case("llama-llama3", "Llama", written=rope("llama3", **LLAMA3)),
    Case("llama-llama3-old", "Llama", written=old_rope("llama3", "rope_type", 5e4, **LLAMA3)),
    Case("llama-linear", "Llama", written=rope("linear", factor=4.0)),
    Case("llama-linear-old", "Llama", written=old_rope("linear", factor=2.0), shards=2),
    Case("llama-dynamic", "Llama", written=old_rope("dynamic", factor=2.0)),
    Case("llama-yarn", "Llama", written=rope("yarn", **YARN, beta_fast=16.0, beta_slow=2.0)),
    Case("llama-yarn-factors", "Llama", written=rope("yarn", **YARN, attention_factor=1.5)),
    Case("llama-bfloat16-shards", "Llama", dtype="bfloat16", shards=2),
    Case("llama-float16", "Llama", dtype="float16"),
    Case("llama-mixed-dtypes", "Llama", dtype=norms_in_float32),
    Case("llama-tied-own-head", "Llama", TIED, edit=own_head),
    Case("llama-tied-own-head-shards", "Llama", TIED, edit=own_head, shards=2, dtype="bfloat16"),
    Case("llama-tied-equal-head", "Llama", TIED, edit=equal_head),
    Case("llama-stale-index", "Llama", stale=True),
    Case("llama-rotary-buffers", "Llama", edit=rotary_buffers),
    Case("llama-strays", "Llama", files=STRAYS),
    Case("llama-strays-shards", "Llama", files=STRAYS, shards=2),
    Case(
        "llama-ends-in-generation-config",
        "Llama",
        {"eos_token_id": 1},
        files={"generation_config.json": json.dumps({"eos_token_id": ENDS}).encode()},
        stops=True,
    ),
    Case("llama-ends-in-config", "Llama", {"eos_token_id": ENDS}, stops=True),
    Case("mistral-no-window", "Mistral", {"sliding_window": None, **TIED}),
    Case("mistral-window", "Mistral", {"sliding_window": 16}),
    Case("mistral-window-of-its-class", "Mistral", written={"sliding_window": DROP}),
    Case("mistral-head-dim", "Mistral", {"sliding_window": None, "head_dim": 32}, shards=2),
    Case("mistral-float16-mha", "Mistral", {"num_key_value_heads": 4}, dtype="float16"),
    Case("qwen2", "Qwen2"),
    Case("qwen2-tied-shards", "Qwen2", TIED, shards=2, dtype="bfloat16"),
    Case("qwen2-mha-head-dim", "Qwen2", {"num_key_value_heads": 4}, {"head_dim": 16}),
    Case("qwen2-window-not-used", "Qwen2", written={"sliding_window": 16}),
    Case("qwen2-window-in-some-layers", "Qwen2", {**SLIDES, "max_window_layers": 1}),
    Case(
        "qwen2-layer-types",
        "Qwen2",
        SLIDES,
        {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    Case("qwen2-yarn-beside", "Qwen2", written={"rope_scaling": {"type": "yarn", **YARN}}),
    Case("qwen3", "Qwen3", {"head_dim": 16}),
    Case("qwen3-head-dim-of-its-class", "Qwen3", written={"head_dim": DROP}),
    Case("qwen3-tied-head-dim", "Qwen3", {"head_dim": 24, **TIED}),
    Case("qwen3-bias", "Qwen3", {"head_dim": 16, "attention_bias": True}, shards=2),
    Case("qwen3-bfloat16", "Qwen3", {"head_dim": 32}, dtype="bfloat16"),
    Case("qwen3-linear-old", "Qwen3", {"head_dim": 16}, old_rope("linear", factor=4.0)),
    Case("no-layer-reads-it", "Llama", edit=fourth_layer, refused="model.layers.3."),
    Case("no-bias-is-asked-for", "Llama", edit=output_bias, refused="self_attn.o_proj.bias"),
    Case("adapter", "Llama", files=ADAPTER, refused="adapter_config.json"),
    Case("gelu", "Llama", {"hidden_act": "gelu"}, refused="gelu"),
    Case("mlp-bias", "Llama", {"mlp_bias": True}, refused="mlp_bias"),
    Case("longrope", "Llama", written=old_rope("longrope", factor=2.0), refused="longrope"),
    Case("model-type", "Llama", written={"model_type": "mistral"}, refused="model_type"),
    Case("quantized", "Llama", written={"quantization_config": {"bits": 4}}, refused="quantiz"),
)
