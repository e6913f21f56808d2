"""Datasets of every format: what each row asks for, what is refused, and what is left out."""

from __future__ import annotations

import gzip
import json
from csv import writer
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pyarrow as pa
import pytest
from dataset_inputs import TEMPLATE, checkpoint, lines, read, served, workload
from pyarrow import csv, ipc, parquet
from pydantic import ValidationError

from orchestrator.errors import UserError
from orchestrator.experiment import Experiment, Lengths, Window
from orchestrator.plan import models, planning
from orchestrator.plan.arrival_times import trace_in_words
from orchestrator.plan.datasets import registry
from orchestrator.plan.datasets.rows import Entry, Format
from orchestrator.plan.installed import installed
from orchestrator.plan.models import ResolvedModel
from orchestrator.plan.workload import Workload
from orchestrator.run.jobs import Job
from orchestrator.store.identity import identity_of
from strategies import Topology

LINES = [{"prompt": "hello world", "output_len": 4}, {"prompt": "hi", "output_len": 3}]
READ = [((5, 6), 4), ((7,), 3)]
SPOILED = gzip.compress(b"no text")[:10] + b"\xff" * 20  # its head alone is that of gzip
AZURE_HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURSTGPT_HEAD = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    return checkpoint(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    return checkpoint(tmp_path_factory.mktemp("chatty"), TEMPLATE)


@pytest.fixture(scope="module")
def tiny() -> ResolvedModel:
    return models.resolve("tiny")


# -- containers


def json_lines(path: Path) -> None:
    lines(path, *LINES)


def zipped(path: Path) -> None:
    path.write_bytes(gzip.compress(("\ufeff" + "\n".join(map(json.dumps, LINES))).encode()))


def zipped_csv(path: Path) -> None:
    path.write_bytes(gzip.compress(b"prompt,output_len\nhello world,4\nhi,3\n"))


def json_list(path: Path) -> None:
    path.write_text(json.dumps(LINES))


def arrow(path: Path) -> None:
    with ipc.new_stream(path, pa.schema({"prompt": "string", "output_len": "int64"})) as stream:
        stream.write_table(pa.Table.from_pylist(LINES))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", json_lines),
        ("a.jsonl.gz", zipped),
        ("a.json", json_list),
        ("a.csv", lambda path: csv.write_csv(pa.Table.from_pylist(LINES), path)),
        ("a.csv.gz", zipped_csv),
        ("a.CSV.GZ", zipped_csv),
        ("a.parquet", lambda path: parquet.write_table(pa.Table.from_pylist(LINES), path)),
        ("a.arrow", arrow),
    ],
)
def test_the_same_rows_are_read_from_every_container(
    tmp_path: Path, model: ResolvedModel, name: str, write: Any
) -> None:
    write(tmp_path / name)
    assert read(tmp_path / name, model) == READ
    assert Experiment(dataset_path=tmp_path / name).scenarios[0].name == "a"


def test_columns_are_mapped_and_others_are_not_read(tmp_path: Path, model: ResolvedModel) -> None:
    path = lines(tmp_path / "a.csv", "id,question,limit", "1,hello world,4", "2,hi,3")
    assert read(path, model, dataset_columns="prompt=question,output_len=limit") == READ
    with pytest.raises(UserError, match="line 2: there is no column 'text'; there are id, quest"):
        read(path, model, dataset_columns="prompt=text")
    with pytest.raises(UserError, match="names 'prompts', which the format prompts does not have"):
        read(path, model, dataset_format="prompts", dataset_columns="prompts=question")
    with pytest.raises(UserError, match="names 'promt', which no format has; fields are prompt, "):
        read(path, model, dataset_columns="promt=question")
    with pytest.raises(UserError, match="no format has the fields id, question, limit"):
        read(path, model)
    with pytest.raises(UserError, match="line 1: no format has rows without a field; those that"):
        read(lines(tmp_path / "b.jsonl", "{}"), model)


def test_names_of_columns_may_have_spaces_around_them(tmp_path: Path, model: ResolvedModel) -> None:
    path = lines(tmp_path / "a.csv", "prompt, output_len", "hello world, 4", "hi, 3")
    assert read(path, model) == READ


def test_two_columns_of_one_name_are_refused_in_a_table_too(
    tmp_path: Path, model: ResolvedModel
) -> None:
    table = pa.Table.from_arrays([pa.array(["hello"]), pa.array(["hi"])], names=["prompt"] * 2)
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="two columns are called 'prompt'; rename one"):
        read(tmp_path / "a.parquet", model)


def test_a_column_that_is_named_says_the_format_where_a_row_fits_several(
    tmp_path: Path, chatty: ResolvedModel
) -> None:
    path = lines(tmp_path / "a.jsonl", {"prompt": "hello", "messages": MESSAGES, "prompt_id": "x"})
    assert read(path, chatty, dataset_columns="messages=messages") == [(CHAT_TOKENS, 2)]


@pytest.mark.parametrize(
    "row",
    [
        {**LINES[0], "id": 7, "temperature": 0.5, "min_p": 0.1},
        {**LINES[0], "system": None},
        {"custom_id": "1", "body": {**LINES[0], "service_tier": "auto", "stop": None}},
    ],
    ids=str,
)
def test_a_field_that_changes_nothing_about_the_work_is_not_read(
    tmp_path: Path, model: ResolvedModel, row: Any
) -> None:
    assert read(lines(tmp_path / "a.jsonl", row), model) == READ[:1]


def test_a_column_that_is_named_goes_before_other_names_of_its_field(
    tmp_path: Path, model: ResolvedModel
) -> None:
    path = lines(tmp_path / "a.csv", "prompt,max_tokens,wanted", "hello world,9,4", "hi,9,3")
    columns = "prompt=prompt,output_len=wanted"
    assert read(path, model, dataset_columns=columns) == READ
    spoiled = lines(tmp_path / "b.csv", "prompt,max_tokens,wanted", "hi,9,many")
    with pytest.raises(UserError, match="line 2: wanted is 'many'"):
        read(spoiled, model, dataset_columns=columns)


def test_a_blank_cell_says_nothing(tmp_path: Path, model: ResolvedModel) -> None:
    rows = ("prompt,prompt_token_ids,output_len,max_tokens", "hello world,,,4", ',"[7]",3,')
    path = lines(tmp_path / "a.csv", *rows)
    assert read(path, model) == [*READ]
    with pytest.raises(UserError, match="line 4: the prompt is empty; --skip-invalid"):
        read(lines(tmp_path / "a.csv", *rows, ",,3,"), model)


def test_a_cell_of_csv_holds_as_json_what_is_no_text(
    tmp_path: Path, model: ResolvedModel, chatty: ResolvedModel
) -> None:
    def table(name: str, value: object) -> Path:
        with (tmp_path / "a.csv").open("w", newline="") as file:
            writer(file).writerows([[name], [json.dumps(value)]])
        return tmp_path / "a.csv"

    said = [{"from": "human", "value": "hello world"}, {"from": "gpt", "value": "hi hi"}]
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    body = {"prompt": "hello world", "max_tokens": 4}
    assert read(table("conversations", said), model) == [(READ[0][0], 2)]
    assert read(table("body", body), model) == READ[:1]
    assert [made for _, made in read(table("messages", messages), chatty)] == [1]
    rows = ("timestamp,input_length,output_length,hash_ids", '0,6,4,"[0]"', '1,6,4,"[0]"', "2,6,4,")
    one, two, other = read(lines(tmp_path / "b.csv", *rows), model)
    assert one == two != other


def test_a_row_of_csv_is_named_by_its_line_though_lines_are_empty(
    tmp_path: Path, model: ResolvedModel
) -> None:
    path = lines(tmp_path / "a.csv", "prompt,output_len", "hi,4", "", "", "hi,many")
    with pytest.raises(UserError, match=r"a\.csv, line 5: output_len is 'many'"):
        read(path, model)


def test_a_cell_of_csv_may_be_long(tmp_path: Path, model: ResolvedModel) -> None:
    path = lines(tmp_path / "a.csv", "prompt,output_len", f"hi{' ' * 200_000},3")
    assert read(path, model) == READ[1:]


def test_a_row_of_csv_is_named_by_its_line_though_cells_hold_line_ends(
    tmp_path: Path, model: ResolvedModel
) -> None:
    path = lines(tmp_path / "a.csv", "prompt,output_len", '"hello\nworld",4', "hi,many")
    with pytest.raises(UserError, match=r"a\.csv, line 4: output_len is 'many'; it must be a num"):
        read(path, model)


def test_numbered_files_of_a_folder_are_one_split(tmp_path: Path, model: ResolvedModel) -> None:
    folder = tmp_path / "default" / "train"
    folder.mkdir(parents=True)
    for number, row in enumerate(LINES):
        parquet.write_table(pa.Table.from_pylist([row]), folder / f"{number:04}.parquet")
    assert read(folder, model) == read(folder, model, dataset_split="train") == READ


def test_a_folder_of_configurations_names_those_that_can_be_given(
    tmp_path: Path, model: ResolvedModel
) -> None:
    for name in ("large", "small"):
        (tmp_path / name).mkdir()
        lines(tmp_path / name / "train-00000-of-00001.jsonl", *LINES)
    (tmp_path / "images").mkdir()
    with pytest.raises(
        UserError, match=r"holds no dataset; these folders in it do.*: large, small"
    ):
        read(tmp_path, model)
    assert read(tmp_path / "small", model) == READ


@pytest.mark.parametrize("layout", ["saved", "splits", "hub"])
def test_a_folder_of_hugging_face_is_read_by_its_split(
    tmp_path: Path, model: ResolvedModel, layout: str
) -> None:
    folder = tmp_path / "set"
    part = folder / "train" if layout == "splits" else folder
    (folder / "data").mkdir(parents=True)
    part.mkdir(exist_ok=True)
    if layout == "hub":
        for split in ("train", "test"):
            file = folder / "data" / f"{split}-00000-of-00001.parquet"
            parquet.write_table(pa.Table.from_pylist(LINES[: 2 if split == "train" else 1]), file)
    else:
        arrow(part / "data-00000-of-00001.arrow")
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"}
        (part / "state.json").write_text(json.dumps(state))
        if layout == "splits":
            (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert read(folder, model, dataset_split="train") == READ
    with pytest.raises(UserError, match="split"):
        read(folder, model, dataset_split="other")
    if layout == "hub":
        with pytest.raises(UserError, match="has the splits test, train; name one"):
            read(folder, model)
    else:
        assert read(folder, model) == READ


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"A line of verse", "line 1: not valid JSON.* Parquet, Arrow"),
        ("a.parquet", b"PAR1 and no more", "cannot be read"),
        (
            "a.csv",
            b"prompt,output_len\nhi\n",
            "line 2: .*cannot be read: expected 2 columns, got 1",
        ),
        ("a.csv", b"", "cannot be read: it has no header"),
        ("a.csv", b"prompt,prompt\nhi,hi\n", "line 1: two columns are called 'prompt'"),
        ("a.csv", b'prompt\n"hi\n', "line 2: not valid CSV"),
        ("a.jsonl.gz", SPOILED, "cannot be read"),
        ("a.jsonl.gz", b"\x1f\x8b\x08 broken", "cannot be read"),
        ("a.csv", b"prompt\n\xff\xfe\n", "a.csv"),
        ("b.jsonl", b'{"speech": 1}', "line 1: no format has the fields speech; .* mooncake"),
    ],
)
def test_what_cannot_be_read_says_what_is_read(
    tmp_path: Path, model: ResolvedModel, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        read(tmp_path / name, model)


# -- formats


def test_sharegpt_is_read_as_json_lines_too(tmp_path: Path, model: ResolvedModel) -> None:
    talk = [{"from": "human", "value": "hello world"}, {"from": "gpt", "value": "hi hi hi"}]
    path = lines(tmp_path / "a.jsonl", *[{"id": "a_0", "conversations": talk}] * 2)
    assert read(path, model) == [((5, 6), 3)] * 2


MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi hi"}]
# <s> user : hello assistant :
CHAT_TOKENS = (1, 3, 8, 5, 4, 8)


@pytest.mark.parametrize(
    ("row", "output_len"),
    [
        ({"messages": MESSAGES}, 2),
        ({"messages": MESSAGES[:1], "max_tokens": 9}, 9),
        (
            {
                "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
                "output_len": 3,
            },
            3,
        ),
        (
            {
                "custom_id": "1",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"model": "m", "messages": MESSAGES[:1], "max_completion_tokens": 7},
            },
            7,
        ),
    ],
)
def test_messages_go_through_the_chat_template(
    tmp_path: Path, chatty: ResolvedModel, row: Any, output_len: int
) -> None:
    path = lines(tmp_path / "a.jsonl", row)
    assert read(path, chatty) == [(CHAT_TOKENS, output_len)]


def test_a_completion_of_a_batch_is_a_prompt(tmp_path: Path, model: ResolvedModel) -> None:
    body = {"model": "m", "prompt": "hello world", "max_tokens": 4}
    path = lines(tmp_path / "a.jsonl", {"custom_id": "1", "url": "/v1/completions", "body": body})
    assert read(path, model) == READ[:1]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"messages": MESSAGES[:1]},
            "^the tokenizer of .* has no chat template, so messages cannot become prompts",
        ),
        ({"messages": []}, "line 1: messages must be a list"),
        ({"messages": [{"content": "hello"}]}, "line 1: a message has no role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "line 1: the cont"),
        ({"messages": [{"role": "user", "content": 5}]}, "line 1: .* no text and no list of parts"),
        (
            {"body": {"messages": MESSAGES, "tools": []}},
            r"no field 'tools' in .*batch \(body\).* What it asks for is not served; take it out$",
        ),
        ({"body": {}}, "line 1: expected either 'messages' or 'prompt' in body"),
        ({"body": 3}, "line 1: expected 'body'"),
    ],
)
def test_messages_that_cannot_be_served_are_refused_with_the_reason(
    tmp_path: Path, model: ResolvedModel, row: Any, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        read(lines(tmp_path / "a.jsonl", row), model)


IMAGE = {"role": "user", "content": [{"type": "image_url", "text": "hi"}]}


@pytest.mark.parametrize(
    "message",
    [
        IMAGE,
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "a"}]},
        {"role": "assistant", "content": "hi", "function_call": {"name": "f"}},
        {"role": "user", "content": []},
    ],
    ids=str,
)
@pytest.mark.parametrize("multi_turn", [False, True])
def test_a_message_that_is_no_text_may_be_left_out_with_what_comes_after_it(
    tmp_path: Path, chatty: ResolvedModel, message: Any, multi_turn: bool
) -> None:
    rows = [{"messages": [*MESSAGES, message, MESSAGES[1]]}, {"messages": MESSAGES}]
    path = lines(tmp_path / "a.jsonl", *rows)
    with pytest.raises(UserError, match=r"line 1.* no text; .* --skip-invalid"):
        read(path, chatty, multi_turn=multi_turn)
    kept = [(CHAT_TOKENS, 2)] * (1 + multi_turn)  # what was said before it is served
    assert read(path, chatty, multi_turn=multi_turn, skip_invalid=True) == kept


def test_parts_of_a_message_may_say_that_they_are_text(
    tmp_path: Path, chatty: ResolvedModel
) -> None:
    for kind in ({}, {"type": "text"}, {"type": "input_text"}, {"type": None}):
        parts = [{"text": MESSAGES[0]["content"], **kind}]
        row = {"messages": [{"role": "user", "content": parts, "tool_calls": None}, MESSAGES[1]]}
        assert read(lines(tmp_path / "a.jsonl", row), chatty) == [(CHAT_TOKENS, 2)]


def test_a_plugin_brings_a_format(
    tmp_path: Path, model: ResolvedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    poem = Format(
        "poem",
        "verses",
        ("verse",),
        lambda row: Entry(row.where, row.text("verse"), 4),
        {"verse": ()},
    )
    points = [MagicMock(load=lambda: poem, value="poems:POEM")]
    points[0].name = "poem"
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    path = lines(tmp_path / "a.jsonl", {"verse": "hello world"})
    assert read(path, model) == read(path, model, dataset_format="poem") == READ[:1]
    with pytest.raises(UserError, match="no field 'rhyme' in the format poem; it has verse"):
        read(lines(tmp_path / "b.jsonl", {"verse": "hello", "rhyme": "x"}), model)
    points[0].name = "prompts"
    with pytest.raises(UserError, match="two formats of datasets are called 'prompts'"):
        read(path, model)
    points[0].name, points[0].load = "other", lambda: 1 / 0
    with pytest.raises(UserError, match=r"'other' .* cannot be loaded: ZeroDivisionError"):
        read(path, model)


def test_formats_are_listed_with_their_package_and_one_that_is_broken_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poem = Format("poem", "verses", ("verse",), lambda row: None, {"verse": ()})
    found = {"poem": lambda: poem, "azure": lambda: poem, "broken": lambda: 1 / 0}
    points = [MagicMock(load=load, value="poems:POEM") for load in found.values()]
    for point, name in zip(points, found, strict=True):
        point.name, point.dist.name = name, "poems"
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    listed = installed().datasets
    ours = [one for one in listed if one.source == "shard-orchestrator"]
    assert [one.name for one in ours] == [one.name for one in registry.BUILT_IN]
    assert all(one.summary and one.error is None for one in ours)
    assert [(one.name, one.summary, one.error) for one in listed if one.source == "poems"] == [
        ("azure", "", "two formats of datasets are called 'azure'; uninstall one"),
        ("broken", "", "ZeroDivisionError: division by zero"),
        ("poem", "verses", None),
    ]


def test_a_format_that_is_not_there_is_refused_with_those_that_are(
    tmp_path: Path, model: ResolvedModel
) -> None:
    with pytest.raises(UserError, match="no format of datasets 'alpaca'; use auto or one of prom"):
        read(lines(tmp_path / "a.jsonl", *LINES), model, dataset_format="alpaca")


@pytest.mark.parametrize(
    ("name", "content", "lengths"),
    [
        ("azure.csv", AZURE_HEAD + "2023-11-16 18:15:46.6805900,374,44\n", [(374, 44)]),
        (
            "burstgpt.csv",
            BURSTGPT_HEAD
            + "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,0,1087,Conversation log\n",
            [(472, 18)],
        ),
        (
            "mooncake.jsonl",
            '{"timestamp": 0, "input_length": 675, "output_length": 50, "hash_ids": [0, 1]}\n'
            '{"timestamp": 3000, "input_length": 732, "output_length": 49, "hash_ids": [0, 2]}\n',
            [(675, 50), (732, 49)],
        ),
        ("prompts_list.json", '[{"prompt_token_ids": [9], "output_len": 4}]', [(1, 4)]),
    ],
)
def test_files_as_they_are_published_are_read(
    tmp_path: Path, tiny: ResolvedModel, name: str, content: str, lengths: Any
) -> None:
    (tmp_path / name).write_text(content)
    assert [(len(tokens), made) for tokens, made in read(tmp_path / name, tiny)] == lengths


def test_one_conversation_that_is_too_long_need_not_stop_the_others(
    tmp_path: Path, tiny: ResolvedModel
) -> None:
    talks = [
        [{"from": "human", "value": text}, {"from": "gpt", "value": "A chain of stages."}]
        for text in ("What is a pipeline?", "word " * 3000, "What is a pipeline?")
    ]
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"id": "a_0", "conversations": talk} for talk in talks]))
    with pytest.raises(UserError, match=r"entry 2: \d+ prompt .* --skip-invalid leaves such rows"):
        read(path, tiny)
    made = workload(path, tiny, skip_invalid=True)
    assert len(made.work(made.experiment.scenarios[0], 3).requests) == 2
    assert "because they cannot run: 1 (" in made.remarks()[0]


# -- traces

MOONCAKE = (
    {"timestamp": 27000, "input_length": 6, "output_length": 5, "hash_ids": [0]},
    {"timestamp": 30000, "input_length": 7, "output_length": 4, "hash_ids": [0]},
    {"timestamp": 33000, "input_length": 5, "output_length": 3, "hash_ids": [2]},
)
AZURE = (
    AZURE_HEAD.strip(),
    "2023-11-16 18:15:46.6805900,6,5",
    "2023-11-16 18:15:49.6805900,7,4",
    "2023-11-16 18:15:52.6805900,5,3",
)
BURSTGPT = (
    BURSTGPT_HEAD.strip(),
    "5,ChatGPT,6,5,11,Conversation log",
    "6,ChatGPT,9,0,9,Conversation log",
    "8,ChatGPT,7,4,11,Conversation log",
    "11,GPT-4,5,3,8,API log",
)


@pytest.mark.parametrize(
    ("name", "rows"), [("a.jsonl", MOONCAKE), ("a.csv", AZURE), ("b.csv", BURSTGPT)]
)
def test_a_trace_is_replayed_with_its_lengths_at_its_times(
    tmp_path: Path, model: ResolvedModel, name: str, rows: Any
) -> None:
    path = lines(tmp_path / name, *rows)
    found = served(path, model)
    assert [(len(one.prompt), one.output_len) for one in found] == [(6, 5), (7, 4), (5, 3)]
    assert [one.arrival_s for one in found] == pytest.approx([0.0, 3.0, 6.0], abs=1e-5)
    made = workload(path, model)
    assert made.is_open
    assert made.ignore_eos
    work = made.work(made.experiment.scenarios[0], 4)
    assert work.is_open
    assert work.request_rate == pytest.approx(0.5)
    assert {one.arrival_s for one in made.warmup(made.experiment.scenarios[0], 4).requests} == {0}


@pytest.mark.parametrize("zone", [None, "Europe/Berlin", "Mars/Olympus"])
@pytest.mark.parametrize("unit", ["us", "ns"])
def test_a_table_may_hold_times_as_such(
    tmp_path: Path, model: ResolvedModel, unit: str, zone: str | None
) -> None:
    nanoseconds = [1_700_158_546_680_590_123, 1_700_158_548_180_590_123]
    times = pa.array(nanoseconds, pa.timestamp("ns", zone))
    times = times.cast(pa.timestamp(unit, zone), safe=False)
    columns = {"TIMESTAMP": times, "ContextTokens": [5, 6], "GeneratedTokens": [2, 3]}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = served(tmp_path / "a.parquet", model)
    assert [one.arrival_s for one in found] == [0.0, pytest.approx(1.5)]


def test_a_trace_is_the_same_under_every_layout_and_concurrency(
    tmp_path: Path, model: ResolvedModel
) -> None:
    path = lines(tmp_path / "a.csv", *AZURE)
    one, other = workload(path, model), workload(path, model, strategy="tp2,pp2", seed=0)
    scenario = one.experiment.scenarios[0]
    assert one.work(scenario, 4).requests == other.work(scenario, 32).requests
    assert served(path, model, seed=1)[0].prompt != one.work(scenario, 4).requests[0].prompt


def test_a_trace_is_cut_and_sped_up(tmp_path: Path, model: ResolvedModel) -> None:
    path = lines(tmp_path / "a.csv", *AZURE)
    fast = served(path, model, trace_speed=2.0, trace_window="2s:10s")
    assert [one.arrival_s for one in fast] == pytest.approx([0.5, 2.0], abs=1e-5)
    assert len(served(path, model, trace_window="6s")) == 2
    with pytest.raises(UserError, match="no prompt in the window 1h:2h of it"):
        served(path, model, trace_window="1h:2h")


def test_equal_hash_ids_are_equal_tokens_and_it_is_said_that_they_are_read_again(
    tmp_path: Path, model: ResolvedModel
) -> None:
    made = workload(lines(tmp_path / "a.jsonl", *MOONCAKE), model)
    first, second, third = (
        one.prompt for one in made.work(made.experiment.scenarios[0], 4).requests
    )
    assert second[:6] == first
    assert third[:5] != first[:5]
    assert any("hash_ids are equal tokens" in one for one in made.remarks())
    assert made.work(made.experiment.scenarios[0], 4).reuse == "all"


@pytest.mark.parametrize(
    ("rows", "fields", "words"),
    [
        (AZURE, {"request_rate": 2.0}, "a trace brings its own times of arrival"),
        (AZURE, {"output_len": 4}, "a trace brings its own lengths; leave output_len out"),
        (AZURE, {"find_rate": True, "slo": "ttft:p99:2000"}, "no rate to search; leave find_rate"),
        (AZURE, {"num_prompts": 4}, "of a trace that has 3; ask for no more, or leave"),
        ((*AZURE, AZURE[1]), {}, "line 5: it arrives before the row before it"),
        ((*AZURE, "soon,1,1"), {}, "line 5: 'soon' is not a time"),
        ((*AZURE, "2023-11-16 18:15:53,x,1"), {}, "line 5: ContextTokens is 'x'"),
        ((*AZURE, "2023-11-16 18:15:53,60,9"), {}, r"line 5: 60 prompt \+ 9 output tokens = 69"),
        ((*AZURE, "2023-11-16 18:15:53,99999999999999,9"), {}, "line 5: 99999999999999 prompt"),
        ((*AZURE, "2023-11-16 18:15:53,,9"), {}, "line 5: ContextTokens is missing"),
        ((*AZURE, "2023-11-16 18:15:53,0,9"), {}, "line 5: the prompt is empty"),
        (("prompt,output_len", "hi,3"), {"trace_speed": 2.0}, "no times of arrival; leave --trace"),
        (("timestamp,input_length", "0,5"), {}, "line 2: output_length is missing"),
        (
            ("timestamp,input_length,output_length,hash_ids", '0,6,4,"[0]"', '1,6,4,"[0, 1]"'),
            {},
            "line 3: there are 2 hash_ids for 6 tokens, and with blocks of 512 tokens it",
        ),
    ],
)
def test_a_trace_that_cannot_be_replayed_is_refused(
    tmp_path: Path, model: ResolvedModel, rows: Any, fields: Any, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        served(lines(tmp_path / "a.csv", *rows), model, **fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dataset_path": "a.csv"}, "after 6 s, .* after 6 s; .* --trace-window or --trace-speed"),
        ({"request_rate": 0.5, "num_prompts": 4}, "after 8 s, .* or another --request-rate"),
    ],
    ids=str,
)
def test_requests_that_would_arrive_after_the_timeout_are_refused_before_a_run(
    tmp_path: Path, model: ResolvedModel, fields: dict[str, Any], words: str
) -> None:
    lines(tmp_path / "a.csv", *AZURE)
    if "dataset_path" in fields:
        fields = {"dataset_path": tmp_path / "a.csv"}
    lengths = {} if "dataset_path" in fields else {"input_len": 5, "output_len": 5}

    def work(timeout: float) -> None:
        made = Workload(Experiment(**fields, **lengths, timeout=timeout), model)
        made.work(made.experiment.scenarios[0], 4)

    work(8.1)
    with pytest.raises(UserError, match=f"the last request arrives {words}$"):
        work(6.0)


def test_an_engine_of_closed_loops_refuses_a_trace(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.csv", *AZURE)
    asked = Experiment(dataset_path=path, model="tiny", engine="transformers", device="cpu")
    with pytest.raises(UserError, match="transformers cannot run tp1 at the times of a trace"):
        planning.plan_experiment(asked, "cpu", Topology.uniform(1))


def test_a_window_without_a_unit_is_told_in_seconds() -> None:
    for window, said in ((None, "all"), ("60", "60s"), ("5:60", "5:60s"), ("1m:2m", "1m:2m")):
        assert trace_in_words(window, 2.0) == f"{said} at speed 2"


def test_a_run_of_a_trace_has_its_mean_rate_and_what_of_it_is_served(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.csv", *AZURE)
    asked = Experiment(dataset_path=path, model="tiny", device="cpu", trace_speed=0.5)
    (planned,) = planning.plan_experiment(asked, "cpu", Topology.uniform(1))
    job = MagicMock(
        spec=Job, experiment=asked, deployment=planned, block=0, node=0, calibration=None
    )
    attempt = Job.attempt(job, MagicMock(), planned.cells[0], "2030-01-01T00:00:00+00:00")
    assert attempt.request_rate == pytest.approx(0.25)
    assert (attempt.burstiness, attempt.trace) == (None, "all at speed 0.5")


# -- rows that cannot run


def test_rows_that_cannot_run_are_left_out_and_counted_if_that_is_asked_for(
    tmp_path: Path, model: ResolvedModel
) -> None:
    bad = [
        {"prompt": "hello " * 70, "output_len": 4},
        {"prompt": "", "output_len": 4},
        {"prompt": "hi", "output_len": 0},
        {"prompt_token_ids": [99], "output_len": 4},
    ]
    path = lines(tmp_path / "a.jsonl", LINES[0], *bad, LINES[1])
    with pytest.raises(
        UserError, match=r"line 2: 70 prompt .* --skip-invalid leaves such rows out"
    ):
        read(path, model)
    assert read(path, model, skip_invalid=True) == READ
    (said,) = workload(path, model, skip_invalid=True).remarks()
    assert said.startswith("dataset: rows left out because they cannot run: 4 (")
    assert said.endswith("; and 1 more)")


def test_rows_that_are_no_rows_stop_the_dataset_in_any_case(
    tmp_path: Path, model: ResolvedModel
) -> None:
    for row in ("{", {"prompt": "hi", "answer": "x"}, {"prompt": 5}):
        with pytest.raises(UserError, match="line 2"):
            read(lines(tmp_path / "a.jsonl", LINES[0], row), model, skip_invalid=True)


@pytest.mark.parametrize(
    "turn",
    [{"role": "user", "content": "hi"}, {"from": "human"}, {"from": "human", "value": 5}],
    ids=str,
)
@pytest.mark.parametrize("multi_turn", [False, True])
def test_a_turn_that_is_none_is_named_with_what_a_turn_has(
    tmp_path: Path, model: ResolvedModel, turn: object, multi_turn: bool
) -> None:
    rows = [{"conversations": [turn, {"from": "gpt", "value": "hello"}]}]
    with pytest.raises(UserError, match="line 1, turn 1: a turn has 'from' and 'value'"):
        read(lines(tmp_path / "a.jsonl", *rows), model, multi_turn=multi_turn, skip_invalid=True)


def test_conversations_of_messages_say_how_they_are_read(
    tmp_path: Path, model: ResolvedModel, chatty: ResolvedModel
) -> None:
    path = lines(tmp_path / "a.jsonl", {"conversations": MESSAGES})
    with pytest.raises(UserError, match="--dataset-columns messages=conversations reads messages"):
        read(path, model)
    assert read(path, chatty, dataset_columns="messages=conversations") == [(CHAT_TOKENS, 2)]


def test_a_dataset_of_which_nothing_is_left_says_why(tmp_path: Path, model: ResolvedModel) -> None:
    path = lines(tmp_path / "a.jsonl", {"prompt": "", "output_len": 4})
    with pytest.raises(UserError, match=r"no prompt in it; rows left out .* 1 \(.* is empty\)$"):
        read(path, model, skip_invalid=True)


@pytest.mark.parametrize("multi_turn", [False, True])
def test_conversations_that_ask_for_nothing_are_counted(
    tmp_path: Path, model: ResolvedModel, chatty: ResolvedModel, multi_turn: bool
) -> None:
    said = [{"from": "human", "value": "hello world"}, {"from": "gpt", "value": "hi"}]
    rows = [
        {"conversations": turns} for turns in (said, said[:1], [], said[1:], [said[0], said[0]])
    ]
    made = workload(lines(tmp_path / "a.jsonl", *rows), model, multi_turn=multi_turn)
    (told,) = made.remarks()
    assert told.startswith("dataset: rows left out because they ask for nothing, as conversations")
    assert told.endswith(": 4")
    replies = [{"messages": MESSAGES}, {"messages": MESSAGES[1:]}]
    made = workload(lines(tmp_path / "b.jsonl", *replies), chatty, multi_turn=multi_turn)
    (told,) = made.remarks()
    assert told.endswith(": 1")


@pytest.mark.parametrize("multi_turn", [False, True])
def test_what_a_human_adds_is_no_reply(
    tmp_path: Path, model: ResolvedModel, multi_turn: bool
) -> None:
    asked = [{"from": "human", "value": "hello world"}, {"from": "human", "value": "hi"}]
    row = {"conversations": [*asked, {"from": "gpt", "value": "hello hello hello"}]}
    ((tokens, length),) = read(lines(tmp_path / "a.jsonl", row), model, multi_turn=multi_turn)
    assert (tokens[-1], length) == (7, 3)


def test_two_values_of_a_field_of_json_are_refused(tmp_path: Path, model: ResolvedModel) -> None:
    row = '{"prompt": "hello", "output_len": 3, "output_len": 4}'
    for name, text, where in (("a.jsonl", row, ", line 1"), ("a.json", f"[{row}]", "")):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=f"{name}{where}: .* 'output_len' is there twice"):
            read(tmp_path / name, model)


@pytest.mark.parametrize("value", [[], {}, "", False])
def test_what_is_empty_is_no_number(tmp_path: Path, model: ResolvedModel, value: object) -> None:
    good = {"timestamp": 0, "input_length": 5, "output_length": 5}
    for name in good:
        with pytest.raises(UserError, match=f"line 1: {name} is .*; it must be a number"):
            read(lines(tmp_path / "a.jsonl", {**good, name: value}), model)


@pytest.mark.parametrize("first", [0, -4, 900])
def test_times_count_from_the_first_row_of_a_trace_though_it_cannot_run(
    tmp_path: Path, model: ResolvedModel, first: int
) -> None:
    row = {"timestamp": 5000, "input_length": first, "output_length": 5}
    path = lines(tmp_path / "a.jsonl", row, {**row, "timestamp": 7000, "input_length": 5})
    with pytest.raises(UserError, match=r"line 1: .* --skip-invalid leaves such rows out"):
        served(path, model)
    (request,) = served(path, model, skip_invalid=True)
    assert request.arrival_s == 2.0
    (request,) = served(path, model, trace_window="1s:3s")  # the row lies outside
    assert request.arrival_s == 1.0


@pytest.mark.parametrize("sign", ["", "-"])
def test_a_number_that_no_float_holds_is_none(
    tmp_path: Path, model: ResolvedModel, sign: str
) -> None:
    row = f'{{"timestamp": {sign}1{"0" * 400}, "input_length": 5, "output_length": 5}}'
    with pytest.raises(UserError, match=r"line 1: timestamp is .*; it must be a number"):
        read(lines(tmp_path / "a.jsonl", row), model)


def test_replies_without_tokens_are_counted(tmp_path: Path, model: ResolvedModel) -> None:
    made = workload(lines(tmp_path / "a.csv", *BURSTGPT), model)
    assert made.remarks() == ("dataset: rows left out because their reply has no tokens: 1",)


def test_remarks_of_a_dataset_reach_the_user_once(tmp_path: Path) -> None:
    from orchestrator.plan.remarks import remarks

    path = lines(tmp_path / "a.csv", *BURSTGPT)
    asked = Experiment(dataset_path=path, model="tiny", device="cpu", strategy="tp1,tp2")
    planned = planning.plan_experiment(asked, "cpu", Topology.uniform(2))
    said = list(remarks(asked, planned, Topology.uniform(2)))
    assert [one for one in said if one.startswith("dataset:")] == list(planned[0].remarks)
    assert len(planned[0].remarks) == 1


# -- random lengths


@pytest.mark.parametrize(
    ("asked", "name", "low", "high"),
    [
        ({"input_len": "4:12", "output_len": 3}, "4-12x3", 4, 12),
        ({"input_len": "normal(8,2)", "output_len": 3}, "normal8-2x3", 2, 14),
        ({"input_len": 8, "output_len": 4, "range_ratio": 0.5}, "8x4", 4, 12),
    ],
)
def test_prompts_have_lengths_of_the_distribution(
    model: ResolvedModel, asked: Any, name: str, low: int, high: int
) -> None:
    made = Workload(Experiment(**asked, num_prompts=300), model)
    (scenario,) = made.experiment.scenarios
    requests = made.work(scenario, 4).requests
    found = [len(one.prompt) for one in requests]
    assert (scenario.name, min(found) >= low, max(found) <= high) == (name, True, True)
    assert len(set(found)) > 6
    assert sum(found) / len(found) == pytest.approx(8, abs=0.6)
    assert made.load().input_len == made.longest_prompt() == high
    assert {one.output_len for one in requests} <= {2, 3, 4, 5, 6}
    few = made.work(scenario, 4, 5).requests
    assert few == made.work(scenario, 4, 300).requests[:5]


def test_the_longest_lengths_must_fit_the_model(model: ResolvedModel) -> None:
    with pytest.raises(UserError, match=r"10-60x8: 60 prompt \+ 8 output tokens = 68"):
        Workload(Experiment(input_len="10:60", output_len=8), model).load()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input_len": "9:3", "output_len": 3}, "input_len: lengths of 9:3 are 9 to 3"),
        ({"input_len": "many", "output_len": 3}, "input_len: 'many' is not a length"),
        ({"input_len": 0, "output_len": 3}, "input_len: lengths of 0 are 0 to 0"),
        ({"input_len": "3:9", "output_len": 3, "range_ratio": 0.1}, "give one of the two"),
        ({"range_ratio": 1.0}, "less than 1"),
        ({"trace_speed": 2.0}, "trace_speed is about a dataset"),
        ({"skip_invalid": True}, "skip_invalid is about a dataset"),
        ({"dataset_path": "a", "output_len": "3:9"}, "output_len is one number there"),
        ({"dataset_path": "a", "trace_window": "soon"}, "'soon' is not a window"),
        ({"dataset_path": "a", "trace_window": "9s:3s"}, "the window 9s:3s is empty"),
        ({"dataset_path": "a", "dataset_columns": "prompt"}, "dataset_columns is FIELD=COLUMN"),
        ({"multi_turn": True}, "multi_turn is about a dataset"),
    ],
)
def test_what_makes_no_sense_of_lengths_and_datasets_is_refused(fields: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Experiment(**fields)


def test_lengths_and_windows_are_read_as_people_write_them() -> None:
    assert Lengths.parse("256") == Lengths.parse(256) == Lengths(256, 256)
    assert Lengths.parse("normal(512, 128)") == Lengths(128, 896, (512.0, 128.0))
    assert Lengths.around(100, 0.25) == Lengths(75, 125)
    assert Window.parse("10m:11m") == Window(600, 660)
    assert Window.parse("1.5") == Window(0, 1.5)


def test_results_are_of_another_experiment_where_it_is_read_in_another_way(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.csv", *AZURE)
    plain = Experiment(dataset_path=path)
    others = [
        Experiment(dataset_path=path, **fields)
        for fields in (
            {"trace_speed": 2.0},
            {"trace_window": "6s"},
            {"skip_invalid": True},
            {"multi_turn": True},
        )
    ]
    assert len({identity_of(one) for one in (plain, *others)}) == 5
    assert identity_of(Experiment(range_ratio=0.5)) != identity_of(Experiment())


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90.0), ("90s", 90.0), ("10m", 600.0), ("1.5h", 5400.0), (30, 30.0)],
)
def test_a_time_to_wait_is_written_with_its_unit(text: object, expected: float) -> None:
    assert Experiment(wait_for_resources=text).wait_for_resources == expected


@pytest.mark.parametrize("text", ["soon", "-5s", "10 parsecs", "", "1e9"])
def test_a_time_to_wait_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="wait_for_resources"):
        Experiment(wait_for_resources=text)
