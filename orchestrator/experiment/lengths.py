"""Lengths that differ from request to request, and a window of a trace, as people write them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator

MOST = 10_000_000  # tokens
DEVIATIONS = 3  # of a normal distribution are kept on either side of its mean
SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

_NUMBER = r"(\d{1,12}(?:\.\d{1,12})?)"
_NORMAL = re.compile(rf"normal\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)")
_UNIFORM = re.compile(r"(\d{1,12})\s*:\s*(\d{1,12})")
_TIME = re.compile(rf"{_NUMBER}\s*(ms|s|m|h)?")


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of `low` to `high` tokens, both included: uniform, or normal with the mean and the
    standard deviation of `normal`, where what lies beyond takes the nearest length."""

    low: int
    high: int
    normal: tuple[float, float] | None = None

    @classmethod
    def parse(cls, asked: int | str) -> Lengths:
        """256, `256:1024` or `normal(512,128)`. Raises ValueError for anything else."""
        text = str(asked).strip()
        if text.isascii() and text.isdigit():
            return cls._of(text, int(text), int(text))
        if found := _UNIFORM.fullmatch(text):
            return cls._of(text, int(found[1]), int(found[2]))
        if found := _NORMAL.fullmatch(text):
            mean, deviation = float(found[1]), float(found[2])
            low = max(1, math.floor(mean - DEVIATIONS * deviation))
            return cls._of(text, low, math.ceil(mean + DEVIATIONS * deviation), (mean, deviation))
        raise ValueError(
            f"'{text[:60]}' is not a length; write tokens, as in 256, from least to most, as in "
            "256:1024, or normal(mean,deviation), as in normal(512,128)"
        )

    @classmethod
    def _of(
        cls, text: str, low: int, high: int, normal: tuple[float, float] | None = None
    ) -> Lengths:
        if not 1 <= low <= high <= MOST:
            raise ValueError(
                f"lengths of {text[:60]} are {low} to {high} tokens; they go up, and from 1 to "
                f"{MOST}"
            )
        return cls(low, high, normal)

    @classmethod
    def around(cls, length: int, ratio: float) -> Lengths:
        """Uniform from `length` x (1 - ratio) to `length` x (1 + ratio), as --random-range-ratio of
        vLLM's benchmark."""
        low, high = math.floor(length * (1 - ratio)), math.ceil(length * (1 + ratio))
        return cls(max(low, 1), high)

    @property
    def fixed(self) -> int:
        """The length, where all are equal, else 0."""
        return self.low if self.low == self.high else 0

    @property
    def name(self) -> str:
        """As part of the name of a scenario: 256, 256-1024, normal512-128."""
        if self.normal:
            return "normal{:g}-{:g}".format(*self.normal)
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


def seconds(value: object) -> float:
    """`90`, `90s` or `10m` in seconds. Raises ValueError for anything else."""
    found = _TIME.fullmatch(str(value).strip())
    if found is None:
        raise ValueError(f"'{str(value)[:60]}' is no time; write it as 90s or 10m")
    return float(found[1]) * SECONDS[found[2] or "s"]


Duration = Annotated[float, BeforeValidator(seconds)]


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a trace from `start` to `stop`, in seconds since its first request."""

    start: float = 0.0
    stop: float = math.inf

    @classmethod
    def parse(cls, text: str) -> Window:
        """`60s`, the first minute, or `10m:11m`. A number without a unit is seconds. Raises
        ValueError for anything else."""
        parts = [_TIME.fullmatch(part.strip()) for part in text.split(":")]
        times = [float(part[1]) * SECONDS[part[2] or "s"] for part in parts if part]
        if len(times) != len(parts) or len(times) > 2:
            raise ValueError(
                f"'{text[:60]}' is not a window of a trace; write its length, as in 60s, or its "
                "two ends, as in 10m:11m"
            )
        start, stop = times if len(times) == 2 else (0.0, times[0])
        if not start < stop:
            raise ValueError(f"the window {text} is empty; its end must lie after its beginning")
        return cls(start, stop)
