"""Reads a Hugging Face `config.json`, in the spelling of transformers 4 or 5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from strategies.errors import LayoutError

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
LLAMA3_ROPE = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class HubConfig:
    """The fields of one config.json; `name` is the model's, for messages."""

    fields: Mapping[str, Any]
    name: str

    def integer(self, field: str, default: int | None = None) -> int:
        """A field as a whole number; `default`, if any, stands for one that is missing or null.

        Raises KeyError where it is missing and has no default, TypeError where it is not a number.
        """
        return _number(int, self.fields, field, default)

    def flag(self, field: str) -> bool:
        """Whether a field is there and true."""
        return bool(self.fields.get(field, False))

    def family(self) -> str:
        """The family of the architecture. Raises LayoutError for one that is not run here."""
        names = self.fields.get("architectures") or ["<none>"]
        if not isinstance(names, list):
            raise TypeError(f"architectures is {names!r}, not a list")
        architecture = str(names[0])
        if architecture not in ARCHITECTURES:
            raise LayoutError(
                f"{self.name}: the architecture {architecture} is not one that runs here; these "
                f"do: {', '.join(ARCHITECTURES)}"
            )
        return ARCHITECTURES[architecture]

    def refuse_remote_code(self) -> None:
        """Raise LayoutError where the checkpoint brings code of its own."""
        if self.fields.get("auto_map"):
            raise LayoutError(
                f"{self.name}: config.json asks for code from the checkpoint (auto_map), which is "
                "never run here; use a checkpoint of a built-in architecture"
            )

    def refuse_variants(self) -> None:
        """Raise LayoutError for a variant of a known architecture that is not run here."""
        activation = self.fields.get("hidden_act", "silu")
        if activation not in ("silu", "swish"):
            raise self._not_run(f"the activation {activation} is not run here; only silu is")
        if self.flag("mlp_bias"):
            raise self._not_run("biases in the MLP (mlp_bias) are not run here")
        if self.flag("quantization_config"):
            raise self._not_run(
                "a quantized checkpoint (quantization_config) is not run here; use BF16 weights"
            )
        window = self.fields.get("sliding_window")
        used = bool(window) and self.fields.get("use_sliding_window", True)
        if used and self.integer("sliding_window") < self.integer("max_position_embeddings"):
            raise self._not_run(f"sliding-window attention (window {window}) is not run here")

    def _not_run(self, what: str) -> LayoutError:
        return LayoutError(f"{self.name}: {what}")

    @property
    def norm_eps(self) -> float:
        """What is added to the variance in an RMS norm."""
        return _number(float, self.fields, "rms_norm_eps", 1e-6)

    @property
    def rope(self) -> Mapping[str, Any]:
        """What is said of rotary positions, under either of its names."""
        return self._object("rope_parameters") or self._object("rope_scaling")

    @property
    def rope_theta(self) -> float:
        """The base of the rotary wavelengths."""
        theta = _number(float, self.fields, "rope_theta", 10000.0)
        return _number(float, self.rope, "rope_theta", theta)

    @property
    def rope_scaling(self) -> tuple[tuple[str, float | str], ...]:
        """() for plain rope, else its type "llama3" and its numbers. Raises LayoutError for other
        types."""
        rope = self.rope
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind == "default":
            return ()
        if kind != "llama3":
            raise self._not_run(
                f"rope scaling '{kind}' is not run here; 'default' and 'llama3' are"
            )
        numbers = ((key, _number(float, rope, key)) for key in LLAMA3_ROPE)
        return (("rope_type", "llama3"), *numbers)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text; () where none is named."""
        eos = self.fields.get("eos_token_id")
        if isinstance(eos, list):
            return tuple(eos)
        return () if eos is None else (self.integer("eos_token_id"),)

    def _object(self, field: str) -> Mapping[str, Any]:
        value = self.fields.get(field) or {}
        if not isinstance(value, Mapping):
            raise TypeError(f"{field} is {value!r}, not an object")
        return value


def _number(kind: type[N], fields: Mapping[str, Any], name: str, default: N | None = None) -> N:
    """A field as a number; `default`, if any, stands for one that is missing or null. Raises
    TypeError with the field's name."""
    value = fields[name] if default is None or fields.get(name) is not None else default
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name} is {value!r}, not a number") from error
