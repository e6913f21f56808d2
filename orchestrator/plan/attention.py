"""What the tokens of a model attend to, in words and as data."""

from __future__ import annotations

from dataclasses import dataclass

from strategies import memory
from strategies.shapes import ModelShape


@dataclass(frozen=True, slots=True)
class Attention:
    """rope: Transformers' `rope_parameters`. sliding_window: tokens, None where no layer has one.
    sliding_layers: how many have it, of num_layers."""

    rope: dict[str, float | str]
    sliding_window: int | None
    sliding_layers: int
    num_layers: int

    @classmethod
    def of(cls, model: ModelShape) -> Attention:
        """That of a model."""
        rope = {"rope_type": "default", "rope_theta": model.rope_theta, **dict(model.rope_scaling)}
        windows = [memory.window_of(model, layer) for layer in range(model.num_layers)]
        slides = len(windows) - windows.count(None)
        return cls(rope, model.sliding_window if slides else None, slides, len(windows))

    @property
    def sentence(self) -> str:
        """The same in words."""
        numbers = ", ".join(f"{key} {_number(value)}" for key, value in self.rope.items())
        if self.sliding_window is None:
            return f"Attention: to all earlier tokens; {numbers}."
        window = f"to the newest {self.sliding_window} tokens in {self.sliding_layers}"
        return f"Attention: {window} of {self.num_layers} layers, all KV kept; {numbers}."


def _number(value: float | str) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
