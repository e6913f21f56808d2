"""The requests of a cell: the same under every strategy and engine.

Fixed lengths are random token ids from a seed of (seed, lengths, concurrency); a dataset is served
in its own order.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.analysis import arrivals
from orchestrator.errors import UserError
from orchestrator.experiment import Experiment, Scenario
from orchestrator.plan import tokenizer
from orchestrator.plan.models import ResolvedModel
from strategies.shapes import Load
from workers.messages import Request, Work

DEFAULT_OUTPUT_LEN = 128
# A warm-up fills every slot of the closed batch with prompts of full length, and makes this many
# tokens of each.
WARMUP_OUTPUT_LEN = 16
# Tells the warm-up's random prompts from the measured ones.
MEASURED, WARMUP = 0, 1


@dataclass(frozen=True, slots=True)
class Prompt:
    """One entry of a dataset; `where` names its file and line."""

    tokens: tuple[int, ...]
    output_len: int
    where: str


class Workload:
    """Makes the work of each cell of an experiment. Reads the dataset, if there is one, once.

    Raises UserError for prompts that `model` cannot serve: empty, too long, or with unknown token
    ids.
    """

    def __init__(self, experiment: Experiment, model: ResolvedModel) -> None:
        self.experiment = experiment
        self.model = model
        self.ignore_eos = (
            experiment.dataset_path is None
            if experiment.ignore_eos is None
            else experiment.ignore_eos
        )
        self._dataset = self._read_dataset() if experiment.dataset_path else ()

    def cell(self, scenario: Scenario, max_concurrency: int) -> tuple[Work, Work]:
        """(measured work, warm-up) of one cell; equal for equal seed, lengths and concurrency."""
        requests = self._timed(self._requests(scenario, max_concurrency, MEASURED))
        warmup = [
            replace(request, output_len=min(request.output_len, WARMUP_OUTPUT_LEN))
            for request in self._requests(scenario, max_concurrency, WARMUP)[:max_concurrency]
        ]
        return (
            Work(tuple(requests), max_concurrency, self.ignore_eos),
            Work(tuple(warmup), max_concurrency, self.ignore_eos),
        )

    def load(self) -> Load:
        """The heaviest load of all cells: the longest request at the highest concurrency."""
        if self._dataset:
            longest = max(self._dataset, key=lambda prompt: len(prompt.tokens) + prompt.output_len)
            lengths = (len(longest.tokens), longest.output_len)
        else:
            for scenario in self.experiment.scenarios:
                self._check_lengths(
                    f"scenario {scenario.name}", scenario.input_len, scenario.output_len
                )
            lengths = max(((s.input_len, s.output_len) for s in self.experiment.scenarios), key=sum)
        return Load(*lengths, max(self.experiment.max_concurrency))

    def longest_prompt(self) -> int:
        """Tokens of the longest prompt of all cells."""
        return max(
            (len(p.tokens) for p in self._dataset),
            default=max(s.input_len for s in self.experiment.scenarios),
        )

    def _requests(self, scenario: Scenario, max_concurrency: int, stream: int) -> list[Request]:
        if self._dataset:
            count = self.experiment.num_prompts or len(self._dataset)
            prompts = itertools.islice(itertools.cycle(self._dataset), count)
            return [
                Request(i, prompt.tokens, prompt.output_len) for i, prompt in enumerate(prompts)
            ]
        self._check_lengths(f"scenario {scenario.name}", scenario.input_len, scenario.output_len)
        count = self.experiment.num_prompts or max_concurrency
        seed = (
            self.experiment.seed,
            scenario.input_len,
            scenario.output_len,
            max_concurrency,
            stream,
        )
        rows = random_tokens(seed, count, scenario.input_len, self.model)
        return [Request(i, tuple(row), scenario.output_len) for i, row in enumerate(rows)]

    def _timed(self, requests: list[Request]) -> list[Request]:
        """With times of arrival where a rate is asked for: alike for every layout."""
        rate = self.experiment.request_rate
        if rate is None:
            return requests
        times = arrivals.times(
            len(requests), rate, self.experiment.burstiness, self.experiment.seed
        )
        return [replace(request, arrival_s=at) for request, at in zip(requests, times, strict=True)]

    def _read_dataset(self) -> tuple[Prompt, ...]:
        path = self.experiment.dataset_path
        assert path is not None
        default = self.experiment.output_len
        prompts = tuple(
            itertools.islice(read_prompts(path, self.model, default), self.experiment.num_prompts)
        )
        if not prompts:
            raise UserError(f"{path}: there is no prompt in it")
        for prompt in prompts:
            self._check_prompt(prompt)
        return prompts

    def _check_prompt(self, prompt: Prompt) -> None:
        if not prompt.tokens:
            raise UserError(f"{prompt.where}: the prompt is empty")
        last = self.model.shape.vocab_size - 1
        wrong = next((token for token in prompt.tokens if not 0 <= token <= last), None)
        if wrong is not None:
            raise UserError(
                f"{prompt.where}: the token id {wrong} is outside the vocabulary of "
                f"{self.model.name} (0 to {last})"
            )
        self._check_lengths(prompt.where, len(prompt.tokens), prompt.output_len)

    def _check_lengths(self, what: str, input_len: int, output_len: int) -> None:
        limit = self.model.shape.max_positions
        if input_len + output_len > limit:
            raise UserError(
                f"{what}: {input_len} prompt + {output_len} output tokens = "
                f"{input_len + output_len}, "
                f"but {self.model.name} has {limit} positions; use shorter lengths"
            )


def random_tokens(
    seed: Sequence[int], count: int, length: int, model: ResolvedModel
) -> list[list[int]]:
    """`count` rows of `length` token ids, uniform over the vocabulary without the special
    tokens."""
    allowed = np.setdiff1d(
        np.arange(model.shape.vocab_size), np.array(model.special_ids, dtype=np.int64)
    )
    picks = np.random.default_rng(seed).integers(len(allowed), size=(count, length))
    rows: list[list[int]] = allowed[picks].tolist()
    return rows


def read_prompts(path: Path, model: ResolvedModel, output_len: int | None) -> Iterator[Prompt]:
    """Prompts of a dataset in file order: JSON lines, or ShareGPT's one JSON list.

    `output_len` replaces what the file does not say (128) or, for ShareGPT, the length of the
    reply. Raises UserError with file and line for what cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"the dataset {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the dataset {path} is not UTF-8 text (byte {error.start})") from error
    if text.lstrip().startswith("["):
        return _sharegpt(path, text, model, output_len)
    return _json_lines(path, text.split("\n"), model, output_len or DEFAULT_OUTPUT_LEN)


def _json_lines(
    path: Path, lines: Iterable[str], model: ResolvedModel, default: int
) -> Iterator[Prompt]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{where}: not valid JSON: {error.msg} (column {error.colno})"
            ) from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: the JSON cannot be read: {error}") from error
        if not isinstance(row, dict) or ("prompt" in row) == ("prompt_token_ids" in row):
            raise UserError(
                f"{where}: expected an object with either 'prompt' or 'prompt_token_ids'"
            )
        output_len = row.get("output_len", default)
        if not _is_int(output_len) or output_len < 1:
            raise UserError(
                f"{where}: output_len is {output_len!r}; it must be a whole number, 1 or more"
            )
        yield Prompt(_prompt_tokens(row, where, model), output_len, where)


def _prompt_tokens(row: dict[str, Any], where: str, model: ResolvedModel) -> tuple[int, ...]:
    if "prompt" in row:
        if not isinstance(row["prompt"], str):
            raise UserError(f"{where}: prompt is {type(row['prompt']).__name__}; it must be text")
        return _encode(row["prompt"], where, model) if row["prompt"] else ()
    ids = row["prompt_token_ids"]
    if not isinstance(ids, list) or not all(map(_is_int, ids)):
        raise UserError(f"{where}: prompt_token_ids must be a list of whole numbers")
    return tuple(ids)


def _sharegpt(
    path: Path, text: str, model: ResolvedModel, output_len: int | None
) -> Iterator[Prompt]:
    try:
        conversations = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: the JSON cannot be read: {error}") from error
    for number, entry in enumerate(conversations, start=1):
        where = f"{path}, conversation {number}"
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise UserError(f"{where}: expected an object with 'conversations', a list of turns")
        question, answer = _first_exchange(turns)
        if not question or not answer:
            continue  # the published file has conversations that open with a reply, or have none
        reply = output_len or len(_encode(answer, where, model, special=False))
        yield Prompt(_encode(question, where, model), reply, where)


def _first_exchange(turns: Sequence[dict[str, Any]]) -> tuple[str, str]:
    for turn, reply in itertools.pairwise(turns):
        if turn.get("from") in ("human", "user"):
            return str(turn.get("value") or ""), str(reply.get("value") or "")
    return "", ""


def _encode(text: str, where: str, model: ResolvedModel, special: bool = True) -> tuple[int, ...]:
    """The tokens of `text`. JSON can hold half of a surrogate pair, which is no character and no
    tokenizer takes."""
    half = next((char for char in text if "\ud800" <= char <= "\udfff"), None)
    if half is not None:
        raise UserError(
            f"{where}: the text holds {half!a}, which is half of a character; leave it out"
        )
    return tuple(_codec(where, model).encode(text, special))


def _codec(where: str, model: ResolvedModel) -> tokenizer.TextCodec:
    if model.tokenizer is None:
        raise UserError(
            f"{where}: {model.name} comes without a tokenizer; use prompt_token_ids instead of "
            "prompt"
        )
    return tokenizer.load(model.tokenizer)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
