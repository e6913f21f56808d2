"""In what the numbers of a deployment are kept, and how many bytes that takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from strategies.shapes import DTYPE_BYTES, ModelShape

PHASES = ("prefill", "decode")
# What `quantization` of a plan can be -> the phases in which the matrices of layers are FP8.
QUANTIZATIONS = {"none": (), "fp8": PHASES, "fp8-prefill": ("prefill",), "fp8-decode": ("decode",)}


@dataclass(frozen=True, slots=True)
class Precision:
    """dtype: of activations, norms, embedding and head, and of all that is not FP8. quantization:
    "none"; "fp8", the matrices of layers are e4m3, and so are their inputs; "fp8-prefill" and
    "fp8-decode", they are in that phase, and are held in both forms. kv_cache_dtype: "auto", that
    is `dtype`, or "fp8"."""

    dtype: str
    quantization: str = "none"
    kv_cache_dtype: str = "auto"

    @property
    def name(self) -> str:
        """What of it is FP8: "none", "fp8", "kv-fp8", "fp8+kv-fp8"."""
        kv = ["kv-fp8"] if self.kv_cache_dtype == "fp8" else []
        weights = [] if self.quantization == "none" else [self.quantization]
        return "+".join([*weights, *kv]) or "none"

    @property
    def dtype_bytes(self) -> int:
        """Of an activation."""
        return DTYPE_BYTES[self.dtype]

    @property
    def kv_bytes(self) -> int:
        """Of an element of a key or a value."""
        return 1 if self.kv_cache_dtype == "fp8" else self.dtype_bytes

    @property
    def is_uniform(self) -> bool:
        """Whether both phases read the same weights."""
        return self.is_fp8("prefill") == self.is_fp8("decode")

    def is_fp8(self, phase: str) -> bool:
        """Whether the matrices of layers are FP8 in "prefill" or "decode"."""
        return phase in QUANTIZATIONS[self.quantization]

    def bytes_of(
        self, model: ModelShape, name: str, sizes: Sequence[int], phase: str | None = None
    ) -> int:
        """Bytes of a slice of the parameter `name` in the form that a phase reads; None: in every
        form that is held."""
        form, phases = model.fp8_of(name), PHASES if phase is None else (phase,)
        forms = {form is not None and self.is_fp8(one) for one in phases}
        plain = math.prod(sizes) * self.dtype_bytes
        return sum(
            form.bytes_of(*sizes) if form is not None and is_fp8 else plain for is_fp8 in forms
        )
