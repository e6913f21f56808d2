"""What --model resolves to, and how a broken checkpoint is refused before anything is reserved."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import shapes, write_checkpoint, write_config, write_safetensors, write_sharded
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from orchestrator.errors import Refused, UserError
from orchestrator.experiment import Experiment
from orchestrator.plan import models
from orchestrator.plan.tokenizer import load_tokenizer
from orchestrator.store.folders import folder_of

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(Refused) as caught:
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
    [
        *(("llama-70b", 70.6), ("llama-8b", 8.0), ("llama-3b", 3.2)),
        *(("qwen2.5-32b", 32.8), ("qwen2.5-14b", 14.8), ("qwen3-32b", 32.8)),
    ],
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


def append(file: Path, data: bytes) -> None:
    with file.open("ab") as stream:
        stream.write(data)


def test_bytes_behind_the_last_tensor(tmp_path: Path) -> None:
    append(write_checkpoint(tmp_path) / SINGLE, b"xyz")
    refused(tmp_path, SINGLE, "3 bytes behind its last tensor")


def test_a_gap_between_two_tensors(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    edit_header(tmp_path / SINGLE, Q_PROJ, data_offsets=[0, 1024])
    refused(tmp_path, SINGLE, "begins at byte", "damaged")


def test_every_shard_is_opened_even_one_that_no_rank_needs(tmp_path: Path) -> None:
    folder, buffer = write_sharded(tmp_path), "model.rotary_emb.inv_freq"
    shard = folder / "model-00003-of-00003.safetensors"
    write_safetensors(shard, {buffer: (2,)})
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][buffer] = shard.name
    (folder / INDEX).write_text(json.dumps(index))
    assert models.resolve(str(folder)).checkpoint == folder
    append(shard, b"x")
    refused(folder, shard.name, "1 bytes behind")


def test_a_tensor_that_is_stored_twice(tmp_path: Path) -> None:
    first = write_sharded(tmp_path) / "model-00001-of-00002.safetensors"
    write_safetensors(first, {**dict(list(shapes().items())[:5]), "lm_head.weight": (40, 16)})
    refused(tmp_path, "lm_head.weight", "twice", first.name)


def test_a_shard_outside_the_folder(tmp_path: Path) -> None:
    (write_config(tmp_path) / INDEX).write_text('{"weight_map": {"a": "../model.safetensors"}}')
    refused(tmp_path, INDEX, "../model.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_pickled_weights_are_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    (write_config(tmp_path) / name).write_bytes(b"")
    refused(tmp_path, name, "can run code", SINGLE)


def test_a_stored_tensor_that_is_not_read_is_named(tmp_path: Path) -> None:
    extra = "model.layers.2.mlp.up_proj.weight"
    write_safetensors(write_config(tmp_path) / SINGLE, {**shapes(), extra: (32, 16)})
    refused(tmp_path, extra, "2 layers")


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"]
)
def test_buffers_that_every_version_computes_anew_are_no_hindrance(
    tmp_path: Path, name: str
) -> None:
    write_safetensors(write_config(tmp_path) / SINGLE, {**shapes(), name: (2,)})
    assert models.resolve(str(tmp_path)).checkpoint == tmp_path


@pytest.mark.parametrize("differs", [True, False])
def test_a_head_of_its_own_is_not_tied_whatever_the_config_says(
    tmp_path: Path, differs: bool
) -> None:
    write_config(tmp_path, tie_word_embeddings=True)
    write_safetensors(tmp_path / SINGLE, shapes())
    if differs:  # the last tensor of the file is the head
        data = (tmp_path / SINGLE).read_bytes()
        (tmp_path / SINGLE).write_bytes(data[:-1] + b"x")
    assert models.resolve(str(tmp_path)).shape.tie_embeddings is not differs
    assert models.resolve(str(tmp_path), "dummy").shape.tie_embeddings


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


def test_a_field_that_is_missing_has_the_default_of_its_class(tmp_path: Path) -> None:
    """It is not the sizes of the tensors that decide, in Transformers either."""
    shape = models.resolve(str(write_config(tmp_path, hidden_size=None)), "dummy").shape
    assert (shape.hidden_size, shape.head_dim) == (4096, 1024)
    write_safetensors(tmp_path / SINGLE, shapes())
    refused(tmp_path, "model.embed_tokens.weight", "[40, 16]", "[40, 4096]")


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


def mistral(**fields: Any) -> dict[str, Any]:
    long = {"max_position_embeddings": 8192}
    return {"architectures": ["MistralForCausalLM"], "model_type": "mistral", **long, **fields}


def qwen(number: int, **fields: Any) -> dict[str, Any]:
    names = {"architectures": [f"Qwen{number}ForCausalLM"], "model_type": f"qwen{number}"}
    return {**names, **fields}


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SLIDES = {"use_sliding_window": True, "sliding_window": 8}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (mistral(), {"sliding_window": 4096}),
        (mistral(sliding_window=9000), {"sliding_window": None}),
        (qwen(3), {"head_dim": 128, "sliding_window": None}),
        (qwen(2, sliding_window=8), {"sliding_window": None, "qkv_bias": True}),
        (
            qwen(2, **SLIDES, max_window_layers=1),
            {"sliding_window": 8, "sliding_layers": (False, True)},
        ),
        (qwen(3, **SLIDES, max_window_layers=0), {"sliding_window": 8, "sliding_layers": ()}),
        (qwen(3, **SLIDES, max_window_layers=2), {"sliding_window": None, "sliding_layers": ()}),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "rope_scaling": YARN},
            {
                "rope_scaling": (
                    ("rope_type", "yarn"),
                    ("factor", 4.0),
                    ("original_max_position_embeddings", 16.0),
                ),
                "rope_theta": 10000.0,
            },
        ),
        ({"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": ()}),
        (mistral(attention_bias=True), {"qkv_bias": False, "output_bias": False}),
    ],
)
def test_fields_resolve_as_they_do_in_transformers(
    tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    shape = models.resolve(str(write_config(tmp_path, **changes)), "dummy").shape
    assert {name: getattr(shape, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": None}, ("model_type is missing", '"llama"')),
        ({"model_type": "mistral"}, ("is a mistral", "a llama")),
        (mistral(layer_types=["full_attention"] * 2), ("layer_types", "ministral")),
        ({"sliding_window": 8}, ("sliding window",)),
        ({"partial_rotary_factor": 0.5}, ("partial_rotary_factor",)),
        ({"rope_scaling": {"type": "yarn"}}, ("factor",)),
    ],
)
def test_a_config_that_means_something_else_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    refused(write_checkpoint(write_config(tmp_path, **changes)), *words)


@pytest.mark.parametrize(
    ("said", "ends"), [({"eos_token_id": [3, 7]}, (3, 7)), ({"bos_token_id": 1}, ()), (None, (2,))]
)
def test_what_ends_a_text_is_what_generate_stops_at(
    tmp_path: Path, said: dict[str, Any] | None, ends: tuple[int, ...]
) -> None:
    """Where there is a generation_config.json, config.json is not asked."""
    folder = write_config(tmp_path)
    if said is not None:
        (folder / "generation_config.json").write_text(json.dumps(said))
    model = models.resolve(str(folder), "dummy")
    assert model.shape.eos_token_ids == ends
    assert set(ends) <= set(model.special_ids)


def test_a_broken_generation_config_is_named(tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path) / "generation_config.json"
    file.write_text('{"eos_token_id": "</s>"}')
    refused(tmp_path, "generation_config.json", "eos_token_id is '</s>'")


def test_a_model_is_called_by_its_folder_and_in_a_cache_by_its_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "models--Qwen--Qwen3-8B" / "snapshots" / "b968826d9c46dd6066d109eabc"
    assert models.resolve(str(write_config(cached)), "dummy").name == "Qwen3-8B"
    monkeypatch.chdir(write_config(tmp_path / "mine"))
    assert models.resolve(".", "dummy").name == "mine"
    assert folder_of(Experiment(model=".")).name.startswith("mine-")
    assert folder_of(Experiment(model=str(cached))).name.startswith("Qwen3-8B-")


def test_a_preset_is_read_without_transformers() -> None:
    code = (
        "import sys; from orchestrator.plan import models; models.resolve('tiny'); "
        "models.resolve('llama-70b', 'dummy'); "
        "sys.exit(not {'torch', 'transformers'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_broken_tokenizer_is_met_in_the_check(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path) / "tokenizer.json").write_text("{}")
    refused(tmp_path, "the tokenizer cannot be read")


def test_truncation_and_padding_that_training_left_in_a_tokenizer_are_not_used(
    tmp_path: Path,
) -> None:
    words = {word: number for number, word in enumerate(["<pad>", "a", "b"])}
    made = Tokenizer(WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = Whitespace()
    made.enable_truncation(4)
    made.enable_padding(length=8)
    made.save(str(write_config(tmp_path) / "tokenizer.json"))
    codec = load_tokenizer(tmp_path)
    assert codec.encode("a b " * 3) == [1, 2, 1, 2, 1, 2]
    assert codec.encode("a") == [1]


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
    with pytest.raises(Refused) as caught:
        models.resolve(str(write_config(tmp_path)))
    assert len(re.findall(re.escape(str(tmp_path)), str(caught.value))) == 1
