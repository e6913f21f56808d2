"""FP8 (e4m3) matrices: in which form they are kept, and what a checkpoint's `quantization_config`
says of those that it stores."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strategies.errors import LayoutError

SCALE_BYTES = 4  # a scale is a float32
METHODS = "fp8 and compressed-tensors (format float-quantized)"
# Every key that is understood; another one might change what the tensors mean.
FP8_KEYS = {
    "quant_method",
    "activation_scheme",
    "weight_block_size",
    "modules_to_not_convert",
    "ignored_layers",
    "fmt",
    "dequantize",
}
COMPRESSED_KEYS = {
    "quant_method",
    "format",
    "config_groups",
    "ignore",
    "quantization_status",
    "global_compression_ratio",
    "version",
    "kv_cache_scheme",
    "sparsity_config",
    "transform_config",
}
EMPTY: tuple[object, ...] = (None, "", False, 0, {}, [])


@dataclass(frozen=True, slots=True)
class Fp8Format:
    """The form of FP8 matrices [output channels, inputs]: value = e4m3 x scale.

    scales: what shares a scale where they are stored: a "tensor", a "channel" (a row) or a "block".
    block: its rows and columns. static: inputs are quantised by a scale that is stored with the
    matrix; else by the largest value of a token, with blocks of each `block[1]` columns of it.
    targets, ignored: which matrices of layers have this form, by the names of their modules; "re:"
    begins a regular expression, "Linear" means all.
    """

    scales: str = "channel"
    block: tuple[int, int] | None = None
    static: bool = False
    targets: tuple[str, ...] = ("Linear",)
    ignored: tuple[str, ...] = ()

    def covers(self, name: str) -> bool:
        """Whether the matrix `name` has this form, rather than the dtype of the model."""
        module = name.removesuffix(".weight")
        wanted = any(one == "Linear" or _means(one, module) for one in self.targets)
        return wanted and not any(_means(one, module) for one in self.ignored)

    def share(self, columns: int) -> tuple[int, int]:
        """Rows and columns that share a scale in memory, of a matrix of so many columns."""
        return self.block or (1, columns)

    def bytes_of(self, rows: int, columns: int) -> int:
        """Bytes of a matrix in memory: a byte an element, and the scales. That of a tensor is
        kept once for each channel, that of inputs is not counted."""
        height, width = self.share(columns)
        scales = -(-rows // height) * -(-columns // width) if columns else 0
        return rows * columns + SCALE_BYTES * scales

    def stored_scales(self, rows: int, columns: int) -> tuple[tuple[int, ...], ...]:
        """The shapes that the scales of a matrix may have where they are stored."""
        if self.block is not None:
            height, width = self.block
            return ((-(-rows // height), -(-columns // width)),)
        return ((rows, 1), (rows,)) if self.scales == "channel" else ((), (1,), (1, 1))


def _means(pattern: str, module: str) -> bool:
    """Whether `pattern` names a module: all of its name, its end ("lm_head"), or what it is in."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    return f".{module}".endswith(f".{pattern}") or module.startswith(f"{pattern}.")


def stored_format(config: Mapping[str, Any]) -> Fp8Format:
    """What a `quantization_config` says. Raises LayoutError with the name of what is not run."""
    method = config.get("quant_method")
    readers = {"fp8": _of_fp8, "compressed-tensors": _of_compressed}
    if method not in readers:
        raise LayoutError(
            f"a checkpoint of the quantization method {method} (quantization_config) is not run "
            f"here; {METHODS} are, and BF16 weights"
        )
    try:
        return readers[method](config)
    except re.error as error:
        raise LayoutError(f"quantization_config: {error.pattern!r}: {error}") from error


def _of_fp8(config: Mapping[str, Any]) -> Fp8Format:
    """Qwen's and DeepSeek's blocks, and a scale a tensor."""
    _refuse_unknown(config, FP8_KEYS)
    _expect("fmt", config.get("fmt", "e4m3"), "e4m3", "float8_e4m3fn")
    _expect("dequantize", config.get("dequantize"), *EMPTY)
    scheme = config.get("activation_scheme", "dynamic")
    _expect("activation_scheme", scheme, "dynamic", "static")
    block = _block("weight_block_size", config.get("weight_block_size"))
    if block and scheme == "static":
        raise _not_run("activation_scheme static beside a weight_block_size")
    ignored = (*_names(config, "modules_to_not_convert"), *_names(config, "ignored_layers"))
    return Fp8Format("block" if block else "tensor", block, scheme == "static", ignored=ignored)


def _of_compressed(config: Mapping[str, Any]) -> Fp8Format:
    """What llm-compressor writes: one group of matrices, all in one form."""
    _refuse_unknown(config, COMPRESSED_KEYS)
    _expect("format", config.get("format"), "float-quantized")
    _expect("kv_cache_scheme", config.get("kv_cache_scheme"), *EMPTY)
    _expect("transform_config", config.get("transform_config"), *EMPTY)
    sparsity = config.get("sparsity_config") or {}
    _expect("sparsity_config", sparsity.get("format", "dense"), "dense")
    groups = config.get("config_groups") or {}
    if len(groups) != 1:
        raise _not_run(f"{len(groups)} config_groups ({', '.join(groups)}); one is")
    (group,) = groups.values()
    _expect("the format of a group", group.get("format"), None, "float-quantized")
    _expect("output_activations", group.get("output_activations"), *EMPTY)
    weights, inputs = _float8(group, "weights"), _float8(group, "input_activations")
    scales = weights.get("strategy")
    _expect("the strategy of weights", scales, "tensor", "channel", "block")
    structure = _block("block_structure", weights.get("block_structure"))
    block = structure if scales == "block" else None
    if scales == "block" and block is None:
        raise _not_run("the strategy block without a block_structure")
    _check_inputs(inputs, block)
    static = not inputs.get("dynamic")
    targets, ignored = _names(group, "targets"), _names(config, "ignore")
    return Fp8Format(str(scales), block, static, targets, ignored)


def _check_inputs(inputs: Mapping[str, Any], block: tuple[int, int] | None) -> None:
    """Activations: of each token as it comes, of `block[1]` columns of it, or by a stored scale."""
    strategy, dynamic = inputs.get("strategy"), bool(inputs.get("dynamic"))
    known = ["tensor", *(("token",) if dynamic else ()), *(("group",) if dynamic and block else ())]
    _expect(f"the strategy of input_activations (dynamic: {dynamic})", strategy, *known)
    if block and not dynamic:
        raise _not_run("static input_activations beside weights in blocks")
    if block and strategy == "group":
        _expect("the group_size of input_activations", inputs.get("group_size"), block[1])


def _float8(group: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What is said of weights or of inputs, which must be symmetric floats of 8 bits."""
    said = group.get(name)
    if not isinstance(said, Mapping):
        raise _not_run(f"{name} {said}: both weights and input_activations are FP8 here")
    _expect(f"{name}.num_bits", said.get("num_bits"), 8)
    _expect(f"{name}.type", said.get("type"), "float")
    _expect(f"{name}.symmetric", said.get("symmetric", True), True)
    return said


def _refuse_unknown(config: Mapping[str, Any], known: set[str]) -> None:
    """What is not understood is refused, unless it says nothing."""
    for key, value in config.items():
        if key not in known and value not in EMPTY:
            raise _not_run(f"{key} {value!r}")


def _expect(what: str, value: object, *known: object) -> None:
    if value not in known:
        named = ", ".join(str(one) for one in known if one not in EMPTY)
        raise _not_run(f"{what} {value!r}" + (f"; {named} is" if named else ""))


def _block(name: str, value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    sizes = tuple(value) if isinstance(value, Sequence) else ()
    if len(sizes) != 2 or not all(isinstance(one, int) and one > 0 for one in sizes):
        raise _not_run(f"{name} {value!r}; two sizes are, as [128, 128]")
    return sizes[0], sizes[1]


def _names(config: Mapping[str, Any], field: str) -> tuple[str, ...]:
    names = config.get(field) or ()
    if isinstance(names, str) or not all(isinstance(one, str) for one in names):
        raise _not_run(f"{field} {names!r}; a list of names is")
    for name in names:
        if name.startswith("re:"):
            re.compile(name[3:])
    return tuple(names)


def _not_run(what: str) -> LayoutError:
    return LayoutError(f"quantization_config: this is not run here: {what}")
