"""The requests of a cell: the same for every layout, and refused before a run where the model
cannot serve them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import write_config
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from orchestrator.errors import UserError
from orchestrator.experiment import Experiment, Scenario
from orchestrator.plan import models
from orchestrator.plan.models import ResolvedModel
from orchestrator.plan.workload import WARMUP_OUTPUT_LEN, Workload

LENGTHS = Scenario("10x20", 10, 20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    return models.resolve(str(write_config(tmp_path_factory.mktemp("fake"))), "dummy")


@pytest.fixture(scope="module")
def tiny() -> ResolvedModel:
    return models.resolve("tiny")


def fixed(model: ResolvedModel, **fields: Any) -> Workload:
    return Workload(Experiment(input_len=10, output_len=20, **fields), model)


def dataset(path: Path, lines: list[Any], model: ResolvedModel, **fields: Any) -> Workload:
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return Workload(Experiment(dataset_path=path, **fields), model)


def cell(workload: Workload, concurrency: int = 4) -> Any:
    return workload.work(workload.experiment.scenarios[0], concurrency)


def test_fixed_lengths_make_one_closed_batch(model: ResolvedModel) -> None:
    work = cell(fixed(model))
    assert [request.index for request in work.requests] == [0, 1, 2, 3]
    assert {(len(request.prompt), request.output_len) for request in work.requests} == {(10, 20)}
    assert work.ignore_eos


def test_the_same_cell_gets_the_same_prompts_whatever_the_layout(model: ResolvedModel) -> None:
    one, other = (
        fixed(model, strategy="tp4", engine="torch"),
        fixed(model, strategy="dp2,pp2", max_concurrency="4,1"),
    )
    assert one.work(LENGTHS, 4) == other.work(LENGTHS, 4)
    assert one.warmup(LENGTHS, 4) == other.warmup(LENGTHS, 4)


def test_seed_lengths_and_concurrency_change_the_prompts(model: ResolvedModel) -> None:
    base = cell(fixed(model)).requests[0].prompt
    assert cell(fixed(model, seed=1)).requests[0].prompt != base
    assert cell(fixed(model), concurrency=5).requests[0].prompt != base
    assert fixed(model).work(Scenario("", 10, 21), 4).requests[0].prompt != base


def test_a_larger_count_adds_requests_and_changes_none(model: ResolvedModel) -> None:
    made = fixed(model)
    few, many = made.work(LENGTHS, 4, 5), made.work(LENGTHS, 4, 12)
    assert (len(few.requests), len(many.requests)) == (5, 12)
    assert many.requests[:5] == few.requests
    assert few.requests[:4] == made.work(LENGTHS, 4).requests


def test_special_tokens_are_left_out_and_all_others_appear(model: ResolvedModel) -> None:
    tokens = {
        token
        for request in cell(fixed(model, num_prompts=200)).requests
        for token in request.prompt
    }
    assert tokens == set(range(40)) - {1, 2}


def test_the_warm_up_fills_the_batch_with_other_prompts_and_stops_early(
    model: ResolvedModel,
) -> None:
    made = fixed(model, num_prompts=9)
    work, warmup = made.work(LENGTHS, 4), made.warmup(LENGTHS, 4)
    assert len(work.requests) == 9
    assert len(warmup.requests) == 4
    assert {request.output_len for request in warmup.requests} == {WARMUP_OUTPUT_LEN}
    assert {r.prompt for r in warmup.requests}.isdisjoint(r.prompt for r in work.requests)


def test_the_heaviest_load_of_several_scenarios(tiny: ResolvedModel) -> None:
    load = Workload(Experiment(scenario="short,long", max_concurrency="1,32"), tiny).load()
    assert (load.input_len, load.output_len, load.max_concurrency) == (1024, 512, 32)


def test_more_tokens_than_positions_are_refused_with_the_sum(model: ResolvedModel) -> None:
    with pytest.raises(
        UserError, match=r"50 prompt \+ 20 output tokens = 70, but .* has 64 positions"
    ):
        Workload(Experiment(input_len=50, output_len=20), model).load()


def test_token_ids_and_default_lengths(tmp_path: Path, model: ResolvedModel) -> None:
    lines = [{"prompt_token_ids": [3, 4], "output_len": 5}, "", {"prompt_token_ids": [6]}]
    workload = dataset(tmp_path / "a.jsonl", lines, model, output_len=7)
    assert [(r.prompt, r.output_len) for r in cell(workload).requests] == [((3, 4), 5), ((6,), 7)]
    assert not workload.ignore_eos
    assert workload.longest_prompt() == 2
    assert workload.load().max_len == 8


def test_ignore_eos_can_be_asked_of_a_dataset(tmp_path: Path, model: ResolvedModel) -> None:
    assert dataset(
        tmp_path / "a", [{"prompt_token_ids": [3], "output_len": 5}], model, ignore_eos=True
    ).ignore_eos


def test_a_dataset_is_cut_or_repeated_to_num_prompts(tmp_path: Path, model: ResolvedModel) -> None:
    lines = [{"prompt_token_ids": [token], "output_len": 5} for token in (3, 4, 5)]
    cut, repeated = (dataset(tmp_path / "a", lines, model, num_prompts=n) for n in (2, 5))
    assert [r.prompt[0] for r in cell(cut).requests] == [3, 4]
    assert [(r.index, r.prompt[0]) for r in cell(repeated).requests] == [
        (0, 3),
        (1, 4),
        (2, 5),
        (3, 3),
        (4, 4),
    ]


def test_text_goes_through_the_models_own_tokenizer_and_back(
    tmp_path: Path, tiny: ResolvedModel
) -> None:
    request = cell(dataset(tmp_path / "a", [{"prompt": "The function returns"}], tiny)).requests[0]
    assert request.output_len == 128
    assert tiny.decode
    assert tiny.decode(request.prompt).strip() == "The function returns"


def test_sharegpt_takes_the_first_exchange(tmp_path: Path, tiny: ResolvedModel) -> None:
    talk = [
        {"from": "human", "value": "Hello there"},
        {"from": "gpt", "value": "A function."},
        {"from": "human", "value": "More"},
    ]
    entries = [{"conversations": talk}, {"conversations": talk[1:2]}, {"conversations": []}]
    (request,) = cell(dataset(tmp_path / "a.json", [json.dumps(entries, indent=1)], tiny)).requests
    assert tiny.decode
    assert tiny.decode(request.prompt).strip() == "Hello there"
    assert 1 <= request.output_len <= 11
    (request,) = cell(
        dataset(tmp_path / "a.json", [json.dumps(entries)], tiny, output_len=9)
    ).requests
    assert request.output_len == 9


def test_a_mark_at_the_start_of_the_text_is_not_read(tmp_path: Path, tiny: ResolvedModel) -> None:
    """Windows tools write one."""
    talk = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "A function."}]
    for text in (json.dumps({"prompt": "Hello"}), json.dumps([{"conversations": talk}])):
        (request,) = cell(dataset(tmp_path / "a", ["\ufeff" + text], tiny)).requests
        assert tiny.decode
        assert tiny.decode(request.prompt).strip() == "Hello"


@pytest.mark.parametrize("name", ["output_len", "output_tokens", "output_length", "max_tokens"])
def test_the_length_of_a_reply_has_the_names_that_other_tools_use(
    tmp_path: Path, model: ResolvedModel, name: str
) -> None:
    (request,) = cell(dataset(tmp_path / "a", [{"prompt_token_ids": [3], name: 4}], model)).requests
    assert request.output_len == 4


def test_a_reply_without_tokens_is_left_out_as_an_empty_one_is(tmp_path: Path) -> None:
    made = Tokenizer(WordLevel({"<unk>": 0, "hello": 3, "world": 4}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    made.save(str(write_config(tmp_path / "model") / "tokenizer.json"))
    entries = [
        {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": reply}]}
        for reply in ("\n", "", "hello world")
    ]
    model = models.resolve(str(tmp_path / "model"), "dummy")
    (request,) = cell(dataset(tmp_path / "a.json", [json.dumps(entries)], model)).requests
    assert (request.prompt, request.output_len) == ((3,), 2)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: not valid JSON.* a dataset is JSON lines, a JSON list or CSV"),
        ("TIMESTAMP,ContextTokens", "line 2: not valid JSON.* JSON lines"),
        ({"conversations": []}, "line 2: there is no field 'conversations' in the format prompts"),
        (
            {"prompt_token_ids": [3], "output_len": 4, "max_tokens": 5},
            "line 2: output_len and max_tokens differ",
        ),
        ({"prompt_token_ids": [3], "max_tokens": 0}, "line 2: max_tokens is 0"),
        ("3", "line 2: expected an object"),
        ({"text": "x"}, "line 2: there is no field 'text' .* output_len \\(or output_tokens, "),
        ({"prompt": "x", "prompt_token_ids": [1]}, "line 2: expected"),
        ({"prompt_token_ids": []}, "line 2: the prompt is empty"),
        ({"prompt": ""}, "line 2: the prompt is empty"),
        ({"prompt": 3}, "line 2: prompt is int"),
        ({"prompt": "text"}, "line 2: .* comes without a tokenizer"),
        ({"prompt_token_ids": "ab"}, "line 2: prompt_token_ids must be a list"),
        (
            {"prompt_token_ids": [3, 40]},
            "line 2: the token id 40 is outside the vocabulary .*0 to 39",
        ),
        ({"prompt_token_ids": [-1]}, "line 2: the token id -1"),
        ({"prompt_token_ids": [3], "output_len": 0}, "line 2: output_len is 0"),
        ({"prompt_token_ids": [3], "output_len": "4"}, "line 2: output_len is '4'"),
        (
            {"prompt_token_ids": [3] * 60, "output_len": 5},
            "line 2: 60 prompt \\+ 5 output tokens = 65, but .* 64 positions",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, model: ResolvedModel, line: Any, words: str) -> None:
    with pytest.raises(UserError, match=f"data.jsonl, {words}"):
        dataset(tmp_path / "data.jsonl", [{"prompt_token_ids": [3], "output_len": 5}, line], model)


@pytest.mark.parametrize(
    "line",
    ['{"prompt": "\\ud800"}', '{"prompt": ' + "[" * 100_000, '{"prompt": ' + "9" * 5000 + "}"],
)
def test_a_line_that_only_json_allows_is_named(
    tmp_path: Path, tiny: ResolvedModel, line: str
) -> None:
    with pytest.raises(
        UserError, match=r"data.jsonl, line 2: the (text holds '\\ud800'|JSON cannot be read)"
    ):
        dataset(tmp_path / "data.jsonl", [{"prompt": "a"}, line], tiny)


def test_half_a_character_in_a_conversation(tmp_path: Path, tiny: ResolvedModel) -> None:
    talk = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "\ud800"}]
    with pytest.raises(UserError, match="entry 1: the text holds"):
        dataset(tmp_path / "a.json", [json.dumps([{"conversations": talk}])], tiny)


@pytest.mark.parametrize("text", ["", "\n\n", "[]"])
def test_a_dataset_without_prompts(tmp_path: Path, model: ResolvedModel, text: str) -> None:
    with pytest.raises(UserError, match="no prompt in it"):
        dataset(tmp_path / "a", [text], model)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[\n{]", "line 2"),
        ("[" * 100_000, "JSON cannot be read"),
        ("[3]", "entry 1"),
        ('[{"conversations": "x"}]', "entry 1"),
    ],
)
def test_a_bad_sharegpt_file(tmp_path: Path, tiny: ResolvedModel, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        dataset(tmp_path / "a.json", [text], tiny)


def test_a_dataset_that_is_not_there(tmp_path: Path, model: ResolvedModel) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl cannot be read: No such file"):
        Workload(Experiment(dataset_path=tmp_path / "none.jsonl"), model)


def test_a_dataset_that_is_no_text(tmp_path: Path, model: ResolvedModel) -> None:
    (tmp_path / "a").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        Workload(Experiment(dataset_path=tmp_path / "a"), model)
