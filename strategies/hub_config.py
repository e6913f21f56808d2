"""Reads a Hugging Face `config.json`, in the spelling of transformers 4 or 5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from strategies.errors import LayoutError
from strategies.fp8 import Fp8Format, stored_format

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
# rope type -> the numbers that it needs, by their names in Transformers; those it may have
ROPE_NUMBERS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
OPTIONAL_ROPE_NUMBERS = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
}
QWEN = ("qwen2", "qwen3")
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
        if _number(float, self.rope, "partial_rotary_factor", 1.0) != 1.0:
            raise self._not_run("rotary positions in a part of a head (partial_rotary_factor)")

    @property
    def fp8_format(self) -> Fp8Format | None:
        """How matrices are stored in FP8; None where the checkpoint has none. Raises LayoutError
        for another quantization."""
        said = self._object("quantization_config")
        try:
            return stored_format(said) if said else None
        except LayoutError as error:
            raise self._not_run(str(error)) from error

    def sliding_window(self, family: str) -> tuple[int | None, tuple[bool, ...]]:
        """How many keys a query sees, itself included, and in which layers; () = in all of them.
        None: it sees all. Raises LayoutError where Transformers has no window for the family."""
        asked = self.fields.get("sliding_window")
        if not asked or (family in QWEN and not self.flag("use_sliding_window")):
            return None, ()
        window = self.integer("sliding_window")
        layers = self._windowed_layers() if family in QWEN else ()
        if window >= self.integer("max_position_embeddings") or (layers and not any(layers)):
            return None, ()
        if family == "llama":
            raise self._not_run(f"a Llama has no sliding window (sliding_window {window})")
        return window, () if all(layers) else layers

    def _windowed_layers(self) -> tuple[bool, ...]:
        """Whether each layer has the window."""
        layers, first = self.integer("num_hidden_layers"), self.integer("max_window_layers", 28)
        kinds = self.fields.get("layer_types")
        if kinds is None:
            return tuple(layer >= first for layer in range(layers))
        known = {"sliding_attention": True, "full_attention": False}
        if not isinstance(kinds, list) or len(kinds) != layers or not set(kinds) <= set(known):
            raise self._not_run(f"layer_types is not a list of {layers} {' or '.join(known)}")
        return tuple(known[kind] for kind in kinds)

    def _not_run(self, what: str) -> LayoutError:
        return LayoutError(f"{self.name}: {what}")

    @property
    def norm_eps(self) -> float:
        """What is added to the variance in an RMS norm."""
        return _number(float, self.fields, "rms_norm_eps", 1e-6)

    @property
    def rope(self) -> Mapping[str, Any]:
        """What is said of rotary positions. Of its two names the older one wins, as in
        Transformers."""
        return self._object("rope_scaling") or self._object("rope_parameters")

    @property
    def rope_theta(self) -> float:
        """The base of the rotary wavelengths."""
        theta = _number(float, self.fields, "rope_theta", 10000.0)
        return _number(float, self.rope, "rope_theta", theta)

    @property
    def rope_scaling(self) -> tuple[tuple[str, float | str], ...]:
        """() for plain rope, else its type and its numbers, under their names in Transformers.
        Raises LayoutError for other types."""
        rope = self.rope
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind == "default":
            return ()
        if kind not in ROPE_NUMBERS:
            raise self._not_run(
                f"rope scaling '{kind}' is not run here; 'default', "
                f"{', '.join(map(repr, ROPE_NUMBERS))} are"
            )
        wanted = OPTIONAL_ROPE_NUMBERS.get(kind, ())
        names = (*ROPE_NUMBERS[kind], *(key for key in wanted if rope.get(key) is not None))
        return (("rope_type", kind), *((key, _number(float, rope, key)) for key in names))

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text; () where none is named."""
        return tuple(sorted(self.token_ids("eos_token_id")))

    def token_ids(self, field: str) -> set[int]:
        """One token id, or a list of them; none where the field is missing."""
        value = self.fields.get(field)
        ids = value if isinstance(value, list) else [value]
        if value is None:
            return set()
        known = [one for one in ids if isinstance(one, int) and not isinstance(one, bool)]
        if known != ids or any(abs(one) >= 2**31 for one in known):
            raise TypeError(f"{field} is {value!r}, no token id")
        return set(ids)

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
