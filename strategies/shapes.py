"""What a layout is planned for: the shape of a model, the load it must serve, the devices there
are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from strategies.errors import LayoutError

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder of the Llama family, as its Hugging Face config describes it. Sizes are in
    elements."""

    name: str
    family: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    rope_theta: float
    rope_scaling: tuple[
        tuple[str, float | str], ...
    ] = ()  # () = plain rope; else rope_type "llama3" and its numbers
    tie_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str) -> ModelShape:
        """Read a Hugging Face `config.json`, in the spelling of transformers 4 or 5.

        Raises LayoutError for an architecture, an activation or a rope variant that is not run
        here.
        """
        _refuse_remote_code(config, name)
        architecture = _architecture(config)
        if architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise LayoutError(
                f"{name}: the architecture {architecture} is not one that runs here; these do: "
                f"{known}"
            )
        family = ARCHITECTURES[architecture]
        _refuse_variants(config, name)
        heads, hidden = (
            _number(int, config, "num_attention_heads"),
            _number(int, config, "hidden_size"),
        )
        rope = {**_object(config, "rope_parameters")} or {**_object(config, "rope_scaling")}
        eos = config.get("eos_token_id")
        attention_bias = bool(config.get("attention_bias", False))
        return cls(
            name=name,
            family=family,
            hidden_size=hidden,
            num_layers=_number(int, config, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=_number(int, config, "num_key_value_heads", heads),
            head_dim=_number(int, config, "head_dim", hidden // max(heads, 1)),
            intermediate_size=_number(int, config, "intermediate_size"),
            vocab_size=_number(int, config, "vocab_size"),
            max_positions=_number(int, config, "max_position_embeddings"),
            norm_eps=_number(float, config, "rms_norm_eps", 1e-6),
            rope_theta=_number(
                float, rope, "rope_theta", _number(float, config, "rope_theta", 10000.0)
            ),
            rope_scaling=_rope_scaling(rope, name),
            tie_embeddings=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=family == "qwen2" or attention_bias,
            output_bias=family != "qwen2" and attention_bias,
            qk_norm=family == "qwen3",
            eos_token_ids=tuple(eos)
            if isinstance(eos, list)
            else ()
            if eos is None
            else (_number(int, config, "eos_token_id"),),
        )

    def parameters(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of every tensor in a checkpoint, by its Hugging Face name; a tied head has
        none of its own."""
        yield "model.embed_tokens.weight", (self.vocab_size, self.hidden_size)
        for layer in range(self.num_layers):
            for suffix, shape in self.layer_parameters():
                yield f"model.layers.{layer}.{suffix}", shape
        yield "model.norm.weight", (self.hidden_size,)
        if not self.tie_embeddings:
            yield "lm_head.weight", (self.vocab_size, self.hidden_size)

    @property
    def head_name(self) -> str:
        """The tensor that makes logits: the embedding's own where it is tied."""
        return "model.embed_tokens.weight" if self.tie_embeddings else "lm_head.weight"

    def layer_parameters(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(suffix, shape) of the tensors of one layer."""
        hidden, q, kv = (
            self.hidden_size,
            self.num_heads * self.head_dim,
            self.num_kv_heads * self.head_dim,
        )
        yield "input_layernorm.weight", (hidden,)
        for projection, rows in (("q", q), ("k", kv), ("v", kv)):
            yield f"self_attn.{projection}_proj.weight", (rows, hidden)
            if self.qkv_bias:
                yield f"self_attn.{projection}_proj.bias", (rows,)
        yield "self_attn.o_proj.weight", (hidden, q)
        if self.output_bias:
            yield "self_attn.o_proj.bias", (hidden,)
        if self.qk_norm:
            yield "self_attn.q_norm.weight", (self.head_dim,)
            yield "self_attn.k_norm.weight", (self.head_dim,)
        yield "post_attention_layernorm.weight", (hidden,)
        yield "mlp.gate_proj.weight", (self.intermediate_size, hidden)
        yield "mlp.up_proj.weight", (self.intermediate_size, hidden)
        yield "mlp.down_proj.weight", (hidden, self.intermediate_size)

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.parameters())

    @property
    def layer_elements(self) -> int:
        return sum(math.prod(shape) for _, shape in self.layer_parameters())


@dataclass(frozen=True, slots=True)
class Load:
    """The heaviest work a deployment must serve: lengths in tokens, concurrency in requests."""

    input_len: int
    output_len: int
    max_concurrency: int

    @property
    def max_len(self) -> int:
        return self.input_len + self.output_len


@dataclass(frozen=True, slots=True)
class Device:
    """One place for a rank: a GPU, or a CPU worker. `memory_bytes` is 0 where it is unknown."""

    node: str
    index: int
    memory_bytes: int = 0
    name: str = "cpu"


@dataclass(frozen=True, slots=True)
class Topology:
    """The devices of a cluster, ordered by node and then by index."""

    devices: tuple[Device, ...]

    @classmethod
    def uniform(cls, count: int, memory_bytes: int = 0, name: str = "cpu") -> Topology:
        return cls(tuple(Device("local", i, memory_bytes, name) for i in range(count)))

    @property
    def memory_bytes(self) -> int:
        """Memory of the smallest device, in bytes; 0 where it is unknown."""
        return min((device.memory_bytes for device in self.devices), default=0)


def _number(kind: type[N], fields: Mapping[str, Any], name: str, default: N | None = None) -> N:
    """A field as a number; `default`, if any, stands for one that is missing or null. Raises
    TypeError with the field's name."""
    value = fields[name] if default is None or fields.get(name) is not None else default
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name} is {value!r}, not a number") from error


def _object(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = config.get(name) or {}
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is {value!r}, not an object")
    return value


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or ["<none>"]
    if not isinstance(names, list):
        raise TypeError(f"architectures is {names!r}, not a list")
    return str(names[0])


def _refuse_remote_code(config: Mapping[str, Any], name: str) -> None:
    if config.get("auto_map"):
        raise LayoutError(
            f"{name}: config.json asks for code from the checkpoint (auto_map), which is never "
            "run here; "
            "use a checkpoint of a built-in architecture"
        )


def _refuse_variants(config: Mapping[str, Any], name: str) -> None:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise LayoutError(f"{name}: the activation {activation} is not run here; only silu is")
    if config.get("mlp_bias"):
        raise LayoutError(f"{name}: biases in the MLP (mlp_bias) are not run here")
    if config.get("quantization_config"):
        raise LayoutError(
            f"{name}: a quantized checkpoint (quantization_config) is not run here; use BF16 "
            "weights"
        )
    window = config.get("sliding_window")
    used = bool(window) and config.get("use_sliding_window", True)
    if used and _number(int, config, "sliding_window") < _number(
        int, config, "max_position_embeddings"
    ):
        raise LayoutError(f"{name}: sliding-window attention (window {window}) is not run here")


def _rope_scaling(rope: dict[str, Any], name: str) -> tuple[tuple[str, float | str], ...]:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return ()
    if kind != "llama3":
        raise LayoutError(
            f"{name}: rope scaling '{kind}' is not run here; 'default' and 'llama3' are"
        )
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return (("rope_type", "llama3"), *((key, _number(float, rope, key)) for key in keys))
