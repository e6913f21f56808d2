"""What --model resolves to, and how a broken checkpoint is refused before anything is reserved."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fakes import shapes, write_checkpoint, write_config, write_safetensors, write_sharded

from orchestrator.errors import UserError
from orchestrator.plan import models
from strategies import LayoutError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def refused(folder: Path, *words: str) -> None:
    with pytest.raises((UserError, LayoutError)) as caught:
        models.resolve(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def edit_header(file: Path, name: str, **fields: Any) -> None:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header[name] |= fields
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama-70b", 70.6), ("llama-8b", 8.0), ("qwen2.5-32b", 32.8), ("qwen3-32b", 32.8)],
)
def test_presets_have_the_size_in_their_name(name: str, billions: float) -> None:
    model = models.resolve(name, "dummy")
    assert model.shape.num_parameters / 1e9 == pytest.approx(billions, abs=0.05)
    assert model.checkpoint is None
    assert model.tokenizer is None


def test_tiny_comes_with_weights_and_tokenizer() -> None:
    model = models.resolve("tiny")
    assert model.checkpoint
    assert model.tokenizer
    assert set(model.shape.eos_token_ids) <= set(model.special_ids)
    assert model.decode
    assert isinstance(model.decode([5, 6, 7]), str)


def test_a_preset_without_weights_needs_dummy_ones() -> None:
    with pytest.raises(UserError, match="--load-format dummy"):
        models.resolve("llama-8b")


def test_an_unknown_model_gets_the_nearest_name_and_all_presets() -> None:
    with pytest.raises(
        UserError, match=r"no model 'lama-70b'; did you mean 'llama-70b'\? Presets: .*tiny"
    ):
        models.resolve("lama-70b")


@pytest.mark.parametrize("write", [write_checkpoint, write_sharded])
def test_a_whole_checkpoint_is_taken(tmp_path: Path, write: Any) -> None:
    model = models.resolve(str(write(tmp_path)))
    assert model.checkpoint == tmp_path
    assert model.special_ids == (1, 2)


def test_dummy_weights_ask_for_a_config_alone(tmp_path: Path) -> None:
    assert models.resolve(str(write_config(tmp_path)), "dummy").checkpoint is None


def test_a_folder_without_config(tmp_path: Path) -> None:
    refused(tmp_path, "config.json")


def test_a_folder_without_weights(tmp_path: Path) -> None:
    refused(write_config(tmp_path), SINGLE, "--load-format dummy")


def test_a_missing_tensor(tmp_path: Path) -> None:
    tensors = shapes()
    del tensors[Q_PROJ]
    write_safetensors(write_config(tmp_path) / SINGLE, tensors)
    refused(tmp_path, Q_PROJ, "missing", "[16, 16]")


def test_a_misshaped_tensor(tmp_path: Path) -> None:
    write_safetensors(write_config(tmp_path) / SINGLE, {**shapes(), Q_PROJ: (16, 8)})
    refused(tmp_path, SINGLE, Q_PROJ, "[16, 8]", "[16, 16]")


def test_a_truncated_file(tmp_path: Path) -> None:
    write_safetensors(write_config(tmp_path) / SINGLE, shapes(), cut=10)
    size = (tmp_path / SINGLE).stat().st_size
    refused(tmp_path, SINGLE, "cut short", "lm_head.weight", str(size), str(size + 10))


def test_a_tensor_with_too_few_bytes(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    edit_header(tmp_path / SINGLE, Q_PROJ, data_offsets=[0, 100])
    refused(tmp_path, Q_PROJ, "100 bytes", "1024")


@pytest.mark.parametrize("offsets", [[-1024, 0], [2048, 1024], ["0", 1024], [0], None])
def test_a_tensor_that_lies_nowhere(tmp_path: Path, offsets: Any) -> None:
    write_checkpoint(tmp_path)
    edit_header(tmp_path / SINGLE, Q_PROJ, data_offsets=offsets)
    refused(tmp_path, SINGLE, "header cannot be read")


def test_a_tensor_of_another_type(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    edit_header(tmp_path / SINGLE, Q_PROJ, dtype="F8_E4M3")
    refused(tmp_path, Q_PROJ, "F8_E4M3", "BF16")


@pytest.mark.parametrize(
    "data", [b"", b"short", b"\xff" * 64, b"\x14" + bytes(7) + b"{", b"\x02" + bytes(7) + b"[]"]
)
def test_a_file_that_is_no_safetensors(tmp_path: Path, data: bytes) -> None:
    (write_config(tmp_path) / SINGLE).write_bytes(data)
    refused(tmp_path, SINGLE)


def test_a_missing_shard(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    refused(tmp_path, INDEX, "model-00002-of-00002.safetensors")


def test_an_index_that_promises_a_tensor_that_is_not_in_the_shard(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"][Q_PROJ] = "model-00001-of-00002.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    refused(tmp_path, Q_PROJ, "model-00001-of-00002.safetensors")


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {"a": 1}}', "[]", "{"])
def test_a_broken_index(tmp_path: Path, text: str) -> None:
    (write_config(tmp_path) / INDEX).write_text(text)
    refused(tmp_path, INDEX)


def test_a_config_that_is_no_json_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{\n"hidden_size": 3,,\n}')
    refused(tmp_path, "config.json, line 2")


def test_a_config_without_a_field(tmp_path: Path) -> None:
    refused(write_config(tmp_path, hidden_size=None), "hidden_size", "missing")


@pytest.mark.parametrize(
    "changes",
    [{"hidden_size": "wide"}, {"hidden_size": [1]}, {"architectures": 3}, {"rope_scaling": "x"}],
)
def test_a_config_with_a_field_of_the_wrong_type(tmp_path: Path, changes: dict[str, Any]) -> None:
    refused(write_config(tmp_path, **changes), "config.json", "wrong type")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_position_embeddings", None),
        ("num_attention_heads", [3]),
        ("rope_theta", "far"),
        ("architectures", 3),
        ("rope_scaling", "x"),
        ("sliding_window", "x"),
        ("eos_token_id", {}),
        ("eos_token_id", ["x"]),
        ("vocab_size", float("inf")),
    ],
)
def test_a_field_of_the_wrong_type_is_named(tmp_path: Path, field: str, value: Any) -> None:
    write_config(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
    refused(tmp_path, f"config.json: a field has the wrong type: {field} is {value!r}")


@pytest.mark.parametrize("tokens", [[{"special": True}], [3], 3])
def test_a_tokenizer_with_broken_special_tokens(tmp_path: Path, tokens: Any) -> None:
    (write_checkpoint(tmp_path) / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    refused(tmp_path, "tokenizer.json: added_tokens cannot be read")


def test_a_config_that_is_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": ' + "[" * 100_000)
    refused(tmp_path, "config.json: the JSON cannot be read")


def test_a_config_with_an_impossible_size(tmp_path: Path) -> None:
    refused(write_config(tmp_path, num_attention_heads=0), "num_attention_heads is 0")
    refused(write_config(tmp_path, num_hidden_layers=0), "num_hidden_layers is 0")


def test_an_unknown_architecture_names_those_that_run(tmp_path: Path) -> None:
    refused(
        write_config(tmp_path, architectures=["GPT2LMHeadModel"]),
        "GPT2LMHeadModel",
        "LlamaForCausalLM",
        "Qwen3ForCausalLM",
    )


def test_code_from_the_checkpoint_is_refused_whatever_the_architecture(tmp_path: Path) -> None:
    auto_map = {"AutoModelForCausalLM": "modeling.Mine"}
    refused(
        write_config(tmp_path, architectures=["MineForCausalLM"], auto_map=auto_map),
        "auto_map",
        "never run",
    )


def test_messages_name_the_folder_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        models.resolve(str(write_config(tmp_path)))
    assert len(re.findall(re.escape(str(tmp_path)), str(caught.value))) == 1
