"""What a `quantization_config` says, what of it is not run, and how many bytes FP8 takes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from layouts_inputs import planned, shape

from strategies import LayoutError, memory
from strategies.fp8 import Fp8Format, stored_format
from strategies.precision import Precision

QWEN = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}
TOKEN = {**FLOAT8, "strategy": "token", "dynamic": True}
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def compressed(group: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """What llm-compressor writes, of channels and tokens, with changes."""
    whole = {
        "targets": ["Linear"],
        "weights": {**FLOAT8, "strategy": "channel"},
        "input_activations": TOKEN,
        **(group or {}),
    }
    fields = {"format": "float-quantized", "config_groups": {"group_0": whole}}
    return {"quant_method": "compressed-tensors", "ignore": ["lm_head"], **fields, **changes}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (QWEN, Fp8Format("block", (128, 128))),
        ({"quant_method": "fp8", "fmt": "e4m3"}, Fp8Format("tensor")),
        (
            {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
            Fp8Format("tensor", static=True, ignored=("lm_head",)),
        ),
        (compressed(), Fp8Format(ignored=("lm_head",))),
        (
            compressed({"input_activations": {**FLOAT8, "strategy": "tensor"}}, ignore=[]),
            Fp8Format(static=True),
        ),
        (
            compressed({"weights": {**FLOAT8, "strategy": "block", "block_structure": [64, 32]}}),
            Fp8Format("block", (64, 32), ignored=("lm_head",)),
        ),
    ],
)
def test_what_is_published_is_read(config: dict[str, Any], expected: Fp8Format) -> None:
    assert stored_format(config) == expected


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "gptq"}, "gptq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "fbgemm_fp8"}, "fbgemm_fp8"),
        ({"bits": 4}, "None"),
        ({**QWEN, "fmt": "e5m2"}, "fmt 'e5m2'"),
        ({**QWEN, "scale_fmt": "ue8m0"}, "scale_fmt 'ue8m0'"),
        ({**QWEN, "activation_scheme": "static"}, "static beside a weight_block_size"),
        ({**QWEN, "activation_scheme": "none"}, "activation_scheme 'none'"),
        ({**QWEN, "weight_block_size": [128]}, "weight_block_size [128]"),
        ({**QWEN, "modules_to_not_convert": ["re:("]}, "'('"),
        (compressed(format="pack-quantized"), "format 'pack-quantized'"),
        (compressed(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
        (compressed(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config"),
        (compressed(config_groups={}), "0 config_groups"),
        (compressed({"input_activations": None}), "input_activations None"),
        (compressed({"weights": {**FLOAT8, "num_bits": 4}}), "weights.num_bits 4"),
        (compressed({"weights": {**FLOAT8, "type": "int"}}), "weights.type 'int'"),
        (compressed({"weights": {**FLOAT8, "strategy": "group"}}), "weights 'group'"),
        (compressed({"weights": {**FLOAT8, "strategy": "block"}}), "block_structure"),
        (compressed({"input_activations": {**TOKEN, "strategy": "group"}}), "'group'"),
        (compressed({"output_activations": FLOAT8}), "output_activations"),
    ],
)
def test_what_is_not_run_is_refused_by_its_name(config: dict[str, Any], named: str) -> None:
    with pytest.raises(LayoutError, match="quantization_config") as refused:
        stored_format(config)
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("ignored", "covered"),
    [
        ("lm_head", True),
        ("model.layers.1.self_attn.q_proj", False),
        ("model.layers.1", False),
        ("model.layers.11", True),
        ("q_proj", False),
        ("proj", True),
        ("re:.*q_proj$", False),
        ("re:layers", True),  # a regular expression begins where the name does
        ("model.layers.1.self_attn.q", True),
    ],
)
def test_modules_are_left_out_by_name_end_place_or_expression(ignored: str, covered: bool) -> None:
    assert Fp8Format(ignored=(ignored,)).covers(Q_PROJ) is covered


def test_targets_may_be_named() -> None:
    assert Fp8Format(targets=("re:.*self_attn.*",)).covers(Q_PROJ)
    assert not Fp8Format(targets=("re:.*mlp.*",)).covers(Q_PROJ)


# -- bytes


def test_only_the_matrices_of_layers_take_a_byte_and_their_scales() -> None:
    model = shape(tie_embeddings=False)
    matrices = {n: s for n, s in model.layer_parameters() if n.endswith("_proj.weight")}
    saved = sum(math.prod(dims) for dims in matrices.values()) * model.num_layers
    scales = 4 * sum(rows for rows, _ in matrices.values()) * model.num_layers
    single = planned("tp1")
    plain = memory.weight_bytes(single, model, 0, Precision("bfloat16"))
    fp8 = memory.weight_bytes(single, model, 0, Precision("bfloat16", "fp8"))
    assert plain - fp8 == saved - scales


@pytest.mark.parametrize("quantization", ["fp8-prefill", "fp8-decode"])
def test_where_phases_differ_both_forms_are_held_and_one_is_read(quantization: str) -> None:
    model, placement = shape(), planned("tp2")
    plain, fp8, both = (Precision("bfloat16", name) for name in ("none", "fp8", quantization))
    of = {
        phase: memory.weight_bytes(placement, model, 1, both, phase=phase)
        for phase in ("prefill", "decode")
    }
    first, second = (quantization.removeprefix("fp8-"), {*of} - {quantization.removeprefix("fp8-")})
    assert of[first] == memory.weight_bytes(placement, model, 1, fp8)
    assert of[second.pop()] == memory.weight_bytes(placement, model, 1, plain)
    matrices = of[first] - (memory.weight_bytes(placement, model, 1, plain) - _matrix_bytes(model))
    whole = memory.weight_bytes(placement, model, 1, both)
    assert whole == memory.weight_bytes(placement, model, 1, plain) + matrices


def _matrix_bytes(model: Any) -> int:
    """Of rank 1 of tp2 in bfloat16."""
    placement = planned("tp2")
    return sum(
        2 * math.prod(side.stop - side.start for side in placement.shard(name, dims, 1))
        for name, dims in model.parameters()
        if model.fp8_of(name) is not None
    )


def test_a_cache_in_fp8_has_half_the_bytes() -> None:
    model, placement = shape(), planned("tp2pp2")
    plain, fp8 = Precision("bfloat16"), Precision("bfloat16", kv_cache_dtype="fp8")
    per_token = memory.kv_bytes_per_token(placement, model, 0, plain)
    assert memory.kv_bytes_per_token(placement, model, 0, fp8) * 2 == per_token
    rooms = [memory.budget(placement, model, one, 10**10, 64).kv_tokens for one in (plain, fp8)]
    assert rooms[1] == pytest.approx(2 * rooms[0], abs=1)


def test_blocks_have_a_scale_each_also_at_the_edges() -> None:
    form = Fp8Format("block", (128, 128))
    assert form.bytes_of(256, 128) == 256 * 128 + 4 * 2
    assert form.bytes_of(200, 130) == 200 * 130 + 4 * 4
    assert form.stored_scales(200, 130) == ((2, 2),)
    ignoring = replace(shape(), fp8=Fp8Format(ignored=("o_proj",)))
    assert ignoring.fp8_of("model.layers.0.self_attn.o_proj.weight") is None
    assert ignoring.fp8_of("lm_head.weight") is None
    assert ignoring.fp8_of(Q_PROJ) is ignoring.fp8


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "none"),
        ({"quantization": "fp8"}, "fp8"),
        ({"kv_cache_dtype": "fp8"}, "kv-fp8"),
        ({"quantization": "fp8-decode", "kv_cache_dtype": "fp8"}, "fp8-decode+kv-fp8"),
    ],
)
def test_a_precision_has_one_name(fields: dict[str, str], name: str) -> None:
    assert Precision("bfloat16", **fields).name == name
