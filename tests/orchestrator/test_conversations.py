"""Conversations of a dataset as work: every turn a request after the one before it, the same under
every layout and engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from dataset_inputs import TEMPLATE, checkpoint, lines, workload

from orchestrator.cli import main
from orchestrator.errors import UserError
from orchestrator.plan.arrival_times import arrival_times
from orchestrator.plan.models import ResolvedModel
from orchestrator.run.observing import short
from workers.messages import Request, Work

HELLO, WORLD, HI = 5, 6, 7
GREETING = [("human", "hello"), ("gpt", "hi hi"), ("human", "world"), ("gpt", "hi hi hi")]
FAREWELL = [("human", "world world"), ("gpt", "hi")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    return checkpoint(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    return checkpoint(tmp_path_factory.mktemp("chatty"), TEMPLATE)


def talk(turns: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": text} for who, text in turns]}


def messages(*texts: str) -> dict[str, Any]:
    """Of user and assistant in turn."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)]}


def work(path: Path, model: ResolvedModel, **fields: Any) -> Work:
    made = workload(path, model, multi_turn=True, **fields)
    return made.work(made.experiment.scenarios[0], 4)


def test_a_turn_has_all_that_was_said_before_it_and_the_length_of_its_own_reply(
    tmp_path: Path, model: ResolvedModel
) -> None:
    path = lines(tmp_path / "a.jsonl", talk(GREETING), talk(FAREWELL))
    made = work(path, model)
    assert made.requests == (
        Request(0, (HELLO,), 2),
        Request(1, (HELLO, HI, HI, WORLD), 3, after=0),
        Request(2, (WORLD, WORLD), 1),
    )
    assert (made.ignore_eos, made.reuse, made.num_conversations) == (True, "conversation", 2)
    alone = workload(path, model)
    (scenario,) = alone.experiment.scenarios
    first = alone.work(scenario, 4)
    assert first.requests == (Request(0, (HELLO,), 2), Request(1, (WORLD, WORLD), 1))
    assert (first.ignore_eos, first.reuse) == (False, None)


@pytest.mark.parametrize(
    ("turns", "found"),
    [
        # what nobody asked for, and what a system says, is read all the same
        ([("gpt", "hi"), *FAREWELL], [((HI, WORLD, WORLD), 1, None)]),
        ([("system", "hello"), *FAREWELL], [((HELLO, WORLD, WORLD), 1, None)]),
        # a question is answered once all of it was asked
        ([("human", "hello"), *FAREWELL], [((HELLO, WORLD, WORLD), 1, None)]),
        # a reply without tokens is left out, and the next turn waits for the one before it
        (
            [*FAREWELL, ("human", "hello"), ("gpt", ""), ("human", "hi"), ("gpt", "hi hi")],
            [((WORLD, WORLD), 1, None), ((WORLD, WORLD, HI, HELLO, HI), 2, 0)],
        ),
        ([*FAREWELL, ("human", "hello")], [((WORLD, WORLD), 1, None)]),
        ([("human", ""), ("gpt", "hi"), *FAREWELL], [((HI, WORLD, WORLD), 1, None)]),
    ],
)
def test_only_what_a_human_was_answered_is_a_turn(
    tmp_path: Path, model: ResolvedModel, turns: Any, found: Any
) -> None:
    made = work(lines(tmp_path / "a.jsonl", talk(turns)), model)
    assert [(one.prompt, one.output_len, one.after) for one in made.requests] == found


def test_messages_go_through_the_chat_template_turn_by_turn(
    tmp_path: Path, chatty: ResolvedModel
) -> None:
    row = messages("hello", "hi hi", "world", "hi", "hello")
    made = work(lines(tmp_path / "a.jsonl", {**row, "max_tokens": 6}), chatty)
    first = (1, 3, 8, HELLO, 4, 8)  # <s> user : hello assistant :
    second = (*first, HI, HI, 3, 8, WORLD, 4, 8)
    third = (*second, HI, 3, 8, HELLO, 4, 8)
    assert [one.prompt for one in made.requests] == [first, second, third]
    assert [(one.output_len, one.after) for one in made.requests] == [(6, None), (6, 0), (6, 1)]
    answered = lines(tmp_path / "b.jsonl", {"messages": row["messages"][:4]})
    assert [one.output_len for one in work(answered, chatty).requests] == [2, 1]


def test_num_prompts_counts_conversations_and_goes_round(
    tmp_path: Path, model: ResolvedModel
) -> None:
    path = lines(tmp_path / "a.jsonl", talk(GREETING), talk(FAREWELL))
    assert [one.after for one in work(path, model, num_prompts=1).requests] == [None, 0]
    many = work(path, model, num_prompts=3).requests
    assert [(one.index, one.after) for one in many] == [
        (0, None),
        (1, 0),
        (2, None),
        (3, None),
        (4, 3),
    ]


def test_at_a_rate_conversations_arrive_and_their_turns_follow(
    tmp_path: Path, model: ResolvedModel
) -> None:
    path = lines(tmp_path / "a.jsonl", talk(GREETING), talk(FAREWELL))
    made = work(path, model, request_rate=2.0)
    first, second = arrival_times(2, 2.0, 1.0, 0)
    assert [one.arrival_s for one in made.requests] == [first, 0.0, second]
    assert made.request_rate == pytest.approx(2.0)


def test_a_conversation_ends_before_a_turn_that_cannot_run(
    tmp_path: Path, model: ResolvedModel
) -> None:
    long = [*GREETING, ("human", "hello " * 80), ("gpt", "hi"), *FAREWELL]
    path = lines(tmp_path / "a.jsonl", talk(long), talk(FAREWELL))
    with pytest.raises(
        UserError, match=r"a\.jsonl, line 1, turn 6: 87 prompt \+ 1 output"
    ) as error:
        work(path, model)
    assert str(error.value).endswith("; --skip-invalid ends such conversations before it")
    made = workload(path, model, multi_turn=True, skip_invalid=True)
    requests = made.work(made.experiment.scenarios[0], 4).requests
    assert [one.after for one in requests] == [None, 0, None]
    told = list(made.remarks())
    assert told[0].startswith("dataset: conversations cut before a turn that cannot run: 1 (")
    assert told[1].startswith("dataset: 2 conversations with 3 turns; each is sent when the reply")


def test_a_conversation_without_a_turn_that_can_run_is_a_row_left_out(
    tmp_path: Path, model: ResolvedModel
) -> None:
    whole = talk([("human", "hello " * 99), ("gpt", "hi")])
    empty = talk([("human", "hello"), ("gpt", " "), *GREETING])
    path = lines(tmp_path / "a.jsonl", whole, empty)
    told = list(workload(path, model, multi_turn=True, skip_invalid=True).remarks())
    assert told[0] == "dataset: turns left out because their reply has no tokens: 1"
    assert told[1].startswith("dataset: rows left out because they cannot run: 1 (")
    assert told[2].startswith("dataset: 1 conversations with 2 turns;")


def test_a_dataset_without_conversations_is_refused(tmp_path: Path, model: ResolvedModel) -> None:
    path = lines(tmp_path / "a.jsonl", {"prompt": "hello", "output_len": 3})
    with pytest.raises(UserError, match=r"the format prompts of .* has none \(sharegpt, chat have"):
        work(path, model)


def test_nothing_waits_in_a_warm_up_or_where_steps_are_taken_apart(
    tmp_path: Path, model: ResolvedModel
) -> None:
    path = lines(tmp_path / "a.jsonl", talk(GREETING), talk(FAREWELL))
    made = workload(path, model, multi_turn=True)
    (scenario,) = made.experiment.scenarios
    for one in (made.warmup(scenario, 4), short(made.work(scenario, 4))):
        assert {request.after for request in one.requests} == {None}
        assert one.reuse is None


def test_the_dry_run_says_how_many_turns_there_are_and_when_they_are_sent(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", talk(GREETING), talk(FAREWELL))
    command = ["submit", "--dry-run", "--device", "cpu", "--multi-turn"]
    asked = [*command, "--dataset-path", str(path), "--num-prompts", "2"]
    shown = CliRunner().invoke(main, [*asked, "--strategy", "tp2,dp2", "--json"])
    assert shown.exit_code == 0, shown.output
    for one in json.loads(shown.stdout)["deployments"]:
        (cell,) = one["cells"]
        assert (cell["num_prompts"], cell["num_conversations"]) == (3, 2)
    assert "2 conversations with 3 turns; each is sent when" in " ".join(shown.stderr.split())
    refused = CliRunner().invoke(main, [*asked, "--strategy", "tp1", "--engine", "transformers"])
    assert refused.exit_code == 2
    said = " ".join(refused.output.split())
    assert "transformers cannot run tp1 with conversations: in it no request waits" in said
    assert "leave --multi-turn out, or use --engine torch or vllm" in said
