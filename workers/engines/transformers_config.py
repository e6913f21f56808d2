"""The config of Transformers for a shape of ours."""

from __future__ import annotations

from typing import Any

from strategies.memory import window_of
from strategies.shapes import ModelShape

CONFIG_CLASSES = {
    "llama": "LlamaConfig",
    "mistral": "MistralConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
}


def shape_to_config(shape: ModelShape) -> Any:
    """The Transformers config of `shape`. Raises KeyError for a family that is not in
    CONFIG_CLASSES."""
    import transformers

    return getattr(transformers, CONFIG_CLASSES[shape.family])(
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.max_positions,
        rms_norm_eps=shape.norm_eps,
        rope_parameters=_rope_parameters(shape),
        tie_word_embeddings=shape.tie_embeddings,
        bos_token_id=None,
        pad_token_id=None,
        eos_token_id=list(shape.eos_token_ids) or None,
        **_of_family(shape),
    )


def _rope_parameters(shape: ModelShape) -> dict[str, object]:
    # Transformers checks that this length is an integer; a shape holds it as a float.
    scaling = {
        key: int(value) if key == "original_max_position_embeddings" else value
        for key, value in shape.rope_scaling
    }
    return {"rope_type": "default", "rope_theta": shape.rope_theta, **scaling}


def _of_family(shape: ModelShape) -> dict[str, object]:
    """Arguments of a config that not every family has."""
    fields = {"attention_bias": shape.output_bias} if shape.family in ("llama", "qwen3") else {}
    return {**fields, **_window_fields(shape)}


def _window_fields(shape: ModelShape) -> dict[str, object]:
    """How a config of the family says which layers have a window."""
    if shape.family == "llama":
        return {}
    if shape.family == "mistral":
        return {"sliding_window": shape.sliding_window}
    windows = (window_of(shape, layer) for layer in range(shape.num_layers))
    kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
    used = shape.sliding_window is not None
    window = {"sliding_window": shape.sliding_window} if used else {}
    return {"use_sliding_window": used, "layer_types": kinds, **window}
