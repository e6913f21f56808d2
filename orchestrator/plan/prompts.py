"""The prompts of a dataset for one model: its entries as tokens, checked."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from orchestrator.errors import UserError
from orchestrator.experiment import Experiment
from orchestrator.plan.arrival_times import replayed
from orchestrator.plan.datasets.registry import Source, read
from orchestrator.plan.datasets.rows import CannotRun, Chat, Drawn, Entry, Said
from orchestrator.plan.models import ResolvedModel
from orchestrator.plan.tokenizer import load_chat_template, load_tokenizer

DEFAULT_OUTPUT_LEN = 128
ROW, BLOCK = 3, 4  # tell random tokens of rows and of blocks from those without a dataset
REASONS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Prompt:
    """One entry of a dataset. arrival_s: of a trace, in seconds since the start of a run; None
    elsewhere. shared: whether it begins with blocks of tokens that others may begin with too."""

    tokens: tuple[int, ...]
    output_len: int
    where: str
    arrival_s: float | None = None
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Prompts:
    """What is served of a dataset, and what was left out.

    conversations: the turns of each; one alone where they are not asked for. silent: entries whose
    reply has no tokens. unasked: rows that ask for nothing. invalid: why each of the others
    cannot run. cut: why each of the turns cannot run before which a conversation ends.
    """

    conversations: tuple[tuple[Prompt, ...], ...]
    silent: int = 0
    unasked: int = 0
    invalid: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()

    @property
    def served(self) -> tuple[Prompt, ...]:
        """Every prompt, in order."""
        return tuple(itertools.chain.from_iterable(self.conversations))

    @property
    def is_trace(self) -> bool:
        """Whether they have times of arrival."""
        return bool(self.conversations) and self.conversations[0][0].arrival_s is not None

    @property
    def reuse(self) -> Literal["conversation", "all"] | None:
        """Where a prompt may find its beginning in a prefix cache; see `Work`."""
        if any(len(turns) > 1 for turns in self.conversations):
            return "conversation"
        return "all" if any(one.shared for one in self.served) else None

    def remarks(self) -> Iterator[str]:
        """What a user should know of what was left out."""
        entries = "turns" if self.reuse == "conversation" else "rows"
        if self.silent:
            yield f"dataset: {entries} left out because their reply has no tokens: {self.silent}"
        if self.unasked:
            asks = "ask for nothing, as conversations without a question and a reply"
            yield f"dataset: rows left out because they {asks}: {self.unasked}"
        if self.invalid:
            yield f"dataset: rows left out because they cannot run: {_counted(self.invalid)}"
        if self.cut:
            yield f"dataset: conversations cut before a turn that cannot run: {_counted(self.cut)}"
        if self.reuse == "conversation":
            yield (
                f"dataset: {len(self.conversations)} conversations with {len(self.served)} turns; "
                "each is sent when the reply before it has ended, with the replies of the dataset "
                "in its prompt. An engine without a prefix cache, as torch is, reads the whole "
                "prompt of every turn"
            )
        if self.reuse == "all":
            yield (
                "dataset: equal hash_ids are equal tokens; an engine without a prefix cache, as "
                "torch is, reads them again for each request"
            )


def _counted(reasons: Sequence[str]) -> str:
    """How many they are, and the first of them."""
    more = len(reasons) - REASONS_SHOWN
    rest = f"; and {more} more" if more > 0 else ""
    return f"{len(reasons)} ({'; '.join(reasons[:REASONS_SHOWN])}{rest})"


def read_prompts(experiment: Experiment, model: ResolvedModel) -> Prompts:
    """The prompts of the dataset of `experiment`, as many as it asks for, in order: of its
    conversations where these are asked for.

    Raises UserError with file and line for what cannot be read and, unless they are to be left out,
    for rows that cannot run: empty, too long, with unknown token ids.
    """
    assert experiment.dataset_path is not None
    reader = _Reader(experiment, model, _Vocabulary.of(experiment.seed, model))
    served = tuple(itertools.islice(reader.conversations(), experiment.num_prompts))
    invalid, cut = tuple(reader.invalid), tuple(reader.cut)
    found = Prompts(served, reader.silent, reader.unasked, invalid, cut)
    if not served:
        window = experiment.trace_window
        what = f"the window {window} of it" if window else "it"
        why = "".join(f"; {remark.removeprefix('dataset: ')}" for remark in found.remarks())
        raise UserError(f"{experiment.dataset_path}: there is no prompt in {what}{why}")
    return found


@dataclass(slots=True)
class _Reader:
    """One pass over a dataset. It counts what it leaves out."""

    experiment: Experiment
    model: ResolvedModel
    vocabulary: _Vocabulary
    silent: int = 0
    unasked: int = 0
    invalid: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)

    def conversations(self) -> Iterator[tuple[Prompt, ...]]:
        """Those that can run."""
        for index, turns in enumerate(self._entries()):
            if prompts := self._prompts(turns, index):
                yield prompts

    def _prompts(self, turns: Sequence[Entry], index: int) -> tuple[Prompt, ...]:
        """Of the turns of a conversation, up to one that cannot run."""
        prompts: list[Prompt] = []
        for entry in turns:
            try:
                prompt = self._prompt(entry, index)
            except CannotRun as error:
                self._leave_out(error, self.cut if prompts else self.invalid)
                break
            if prompt is None:
                self.silent += 1
            else:
                prompts.append(prompt)
        return tuple(prompts)

    def _entries(self) -> Iterator[Sequence[Entry]]:
        asked = self.experiment
        assert asked.dataset_path is not None
        source = Source(
            asked.dataset_path,
            asked.dataset_format,
            asked.dataset_columns,
            asked.dataset_split,
            asked.multi_turn,
        )
        return replayed(self._valid(read(source)), asked.trace_window, asked.trace_speed)

    def _valid(self, found: Iterable[Sequence[Entry] | CannotRun]) -> Iterator[Sequence[Entry]]:
        for one in found:
            if isinstance(one, CannotRun):
                self._leave_out(one, self.invalid)
            elif one:
                yield one
            else:
                self.unasked += 1

    def _leave_out(self, error: CannotRun, among: list[str]) -> None:
        if not self.experiment.skip_invalid:
            done = (
                "ends such conversations before it" if among is self.cut else "leaves such rows out"
            )
            raise UserError(f"{error}; --skip-invalid {done}") from error
        among.append(str(error))

    def _prompt(self, entry: Entry, index: int) -> Prompt | None:
        """None where the reply has no tokens."""
        output_len = self._output_len(entry)
        if not output_len:  # a text can be without tokens, as white space is to some tokenizers
            return None
        limit = self.model.shape.max_positions
        if isinstance(entry.prompt, Drawn):  # before any is drawn: a trace may say any number
            self._check_lengths(entry.where, entry.prompt.length, output_len, limit)
        tokens = self._tokens(entry, index)
        if not tokens:
            raise CannotRun(f"{entry.where}: the prompt is empty")
        self._check_lengths(entry.where, len(tokens), output_len, limit)
        shared = isinstance(entry.prompt, Drawn) and bool(entry.prompt.blocks)
        return Prompt(tokens, output_len, entry.where, entry.arrival_s, shared)

    def _output_len(self, entry: Entry) -> int:
        """What the row says; else what was asked for; else the length of the reply."""
        if entry.output_len is not None:
            return entry.output_len
        asked = self.experiment.output_len
        if asked is not None or entry.reply is None:
            return int(asked or DEFAULT_OUTPUT_LEN)
        return len(self._encode(entry.reply, entry.where, special=False)) if entry.reply else 0

    def _tokens(self, entry: Entry, index: int) -> tuple[int, ...]:
        prompt = entry.prompt
        if isinstance(prompt, CannotRun):
            raise prompt
        if isinstance(prompt, Drawn):
            return self.vocabulary.drawn(prompt, index)
        if isinstance(prompt, Chat):
            return self._chat(prompt, entry.where)
        if isinstance(prompt, Said):
            return self._said(prompt, entry.where)
        if isinstance(prompt, str):
            return self._encode(prompt, entry.where) if prompt else ()
        last = self.model.shape.vocab_size - 1
        wrong = next((token for token in prompt if not 0 <= token <= last), None)
        if wrong is not None:
            raise CannotRun(
                f"{entry.where}: the token id {wrong} is outside the vocabulary of "
                f"{self.model.name} (0 to {last})"
            )
        return prompt

    def _said(self, said: Said, where: str) -> tuple[int, ...]:
        """Only the first text gets what a tokenizer puts around one."""
        texts = [text for text in said.texts if text]
        parts = (self._encode(text, where, special=not i) for i, text in enumerate(texts))
        return tuple(itertools.chain.from_iterable(parts))

    def _chat(self, chat: Chat, where: str) -> tuple[int, ...]:
        """A template writes the special tokens itself."""
        for _, content in chat.messages:
            check_characters(content, where)
        if self.model.tokenizer is None:
            raise self._without_tokenizer(where)
        text_of = load_chat_template(self.model.tokenizer)
        try:
            text = text_of(chat.messages)
        except ValueError as error:
            raise CannotRun(f"{where}: the chat template refuses it: {error}") from error
        return self._encode(text, where, special=False)

    def _encode(self, text: str, where: str, special: bool = True) -> tuple[int, ...]:
        check_characters(text, where)
        if self.model.tokenizer is None:
            raise self._without_tokenizer(where)
        return tuple(load_tokenizer(self.model.tokenizer).encode(text, special))

    def _without_tokenizer(self, where: str) -> UserError:
        return UserError(
            f"{where}: {self.model.name} comes without a tokenizer; use prompt_token_ids instead "
            "of prompt"
        )

    def _check_lengths(self, where: str, input_len: int, output_len: int, limit: int) -> None:
        if input_len + output_len > limit:
            raise CannotRun(too_long(where, input_len, output_len, self.model))


def too_long(what: str, input_len: int, output_len: int, model: ResolvedModel) -> str:
    """Why a request cannot run, with the arithmetic."""
    return (
        f"{what}: {input_len} prompt + {output_len} output tokens = {input_len + output_len}, but "
        f"{model.name} has {model.shape.max_positions} positions; use shorter lengths"
    )


def check_characters(text: str, where: str) -> None:
    """Raise CannotRun for half of a surrogate pair, which JSON can hold: that is not a character,
    and no tokenizer accepts it."""
    half = next((char for char in text if "\ud800" <= char <= "\udfff"), None)
    if half is not None:
        raise CannotRun(f"{where}: the text holds {half!a}, which is half of a character")


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """Random tokens of a dataset that has lengths alone. allowed: int64, ids that are not
    special."""

    seed: int
    allowed: np.ndarray

    @classmethod
    def of(cls, seed: int, model: ResolvedModel) -> _Vocabulary:
        return cls(seed, allowed_tokens(model))

    def drawn(self, prompt: Drawn, index: int) -> tuple[int, ...]:
        """The tokens of a prompt: those of its blocks, the rest by its place in the dataset."""
        needed = -(-prompt.length // prompt.block_size)
        parts = [
            self._picked((BLOCK, number), prompt.block_size) for number in prompt.blocks[:needed]
        ]
        left = prompt.length - sum(map(len, parts))
        parts.append(self._picked((ROW, index), max(left, 0)))
        tokens: list[int] = np.concatenate(parts)[: prompt.length].tolist()
        return tuple(tokens)

    def _picked(self, stream: Sequence[int], count: int) -> np.ndarray:
        random = np.random.default_rng((self.seed, *stream))
        picked: np.ndarray = self.allowed[random.integers(len(self.allowed), size=count)]
        return picked


def allowed_tokens(model: ResolvedModel) -> np.ndarray:
    """int64, the vocabulary without the special tokens."""
    special = np.array(model.special_ids, dtype=np.int64)
    return np.setdiff1d(np.arange(model.shape.vocab_size), special)
