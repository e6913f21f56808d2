"""Runs single steps on a device: the state of every request, prompts in chunks, decoding and short
prompts in captured graphs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workers.communicator import Communicator
from workers.device import counted
from workers.engines.native.attention_time import attention_times
from workers.engines.native.cache import PagedCache
from workers.engines.native.contexts import DecodeContext, prefill_context, slots_of
from workers.engines.native.examining import Examination
from workers.engines.native.graphs import (
    DecodeStep,
    PromptStep,
    Replay,
    prompt_fields,
    takes,
    warm_up,
)
from workers.engines.native.model import Batch, Decoder
from workers.engines.native.pages import PAGE, pages_for
from workers.engines.native.sampling import Sampler
from workers.engines.native.scheduler import Chunk, Sequence, Step
from workers.records import DECODE, AttentionTime


@dataclass(slots=True)
class State:
    """What the device knows of each request in flight: a row for every seat, and a last one for
    padding, which belongs to no request.

    token: the newest token. position: where it goes in its sequence. request: index of the request.
    All [rows + 1] int64. tables: [rows + 1, most pages] int32, the request's pages in order.
    """

    token: Tensor
    position: Tensor
    request: Tensor
    tables: Tensor

    @classmethod
    def empty(cls, rows: int, max_len: int, device: torch.device) -> State:
        """State of `rows` requests of at most `max_len` tokens, all zero."""
        token, position, request = (
            torch.zeros(rows + 1, dtype=torch.int64, device=device) for _ in range(3)
        )
        shape = (rows + 1, pages_for(max_len))
        return cls(token, position, request, torch.zeros(shape, dtype=torch.int32, device=device))

    @property
    def padding_row(self) -> int:
        """The row that belongs to no request."""
        return self.token.shape[0] - 1


class Runner:
    """One rank's model, cache and state. On a GPU every method launches work and none waits for
    it.

    rows: requests that are served at once. max_len: tokens of the longest one.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: PagedCache,
        sampler: Sampler,
        communicator: Communicator,
        rows: int,
        max_len: int,
    ) -> None:
        self._decoder, self._cache, self._sampler = decoder, cache, sampler
        self._communicator, self._device = communicator, communicator.context.device
        self.state = State.empty(rows, max_len, self._device)
        self._decode_steps: dict[int, tuple[DecodeStep, Replay]] = {}
        self._prompt_steps: dict[int, tuple[PromptStep, Replay]] = {}
        self._micro_batches: dict[int, tuple[tuple[int, ...], Tensor]] = {}

    # -- steps

    def run(self, step: Step) -> Tensor | None:
        """Take one step through this rank's stage, activations received and handed on.

        Returns the tokens [sampled] int64 on the last stage, None on the others and where none is
        sampled.
        """
        return self._prefill(step.chunks) if step.chunks else self._decode(step)

    def _prefill(self, chunks: tuple[Chunk, ...]) -> Tensor | None:
        self._enter([chunk.sequence for chunk in chunks if chunk.start == 0])
        count = sum(chunk.count for chunk in chunks)
        size = _smallest(self._prompt_steps, count)
        if size is not None and takes(chunks):
            return self._prefill_padded(chunks, count, *self._prompt_steps[size])
        output = self._decoder.forward(self._prompt_batch(chunks), self._cache)
        ending = [chunk for chunk in chunks if chunk.is_last]
        rows = self._rows_of(chunk.sequence for chunk in ending)
        self.state.position[rows] = self._int64(chunk.start + chunk.count for chunk in ending)
        if not self._decoder.has_head:
            self._communicator.send_next(output)
            return None
        return self._sample(output, rows) if ending else None

    def _prefill_padded(
        self, chunks: tuple[Chunk, ...], count: int, step: PromptStep, replay: Replay
    ) -> Tensor | None:
        slots = [slots_of(chunk.sequence.pages)[: chunk.count] for chunk in chunks]
        fields = prompt_fields(chunks, slots, step.size, self.state.padding_row)
        step.fields.copy_(self.upload(fields))
        if step.inputs is not None:
            self._communicator.receive_previous(step.inputs[:count])
        output = replay(self._communicator)
        return self._hand_on(output[: len(chunks) if self._decoder.has_head else count])

    def _decode(self, step: Step) -> Tensor | None:
        count = len(step.sampled)
        held, replay = self._decode_step_for(count)
        held.rows.copy_(self._padded_rows(step, held.rows.shape[0]))
        if held.inputs is not None:
            self._communicator.receive_previous(held.inputs[:count])
        return self._hand_on(replay(self._communicator)[:count])

    def _hand_on(self, output: Tensor) -> Tensor | None:
        """Tokens, or None where activations go to the next stage. A copy: the next step overwrites
        the output of a graph while this one is still on its way."""
        output = output.clone()
        if self._decoder.has_head:
            return output
        self._communicator.send_next(output)
        return None

    def _decode_forward(self, step: DecodeStep) -> Tensor:
        state = self.state
        tokens, positions, slots, tables, lengths = self._decoder.ends.begun(
            step.rows, state.token, state.position, state.tables, PAGE
        )
        inputs = tokens if step.inputs is None else step.inputs
        batch = Batch(inputs, positions, slots, DecodeContext(tables, lengths))
        output = self._decoder.forward(batch, self._cache)
        return self._sample(output, step.rows) if self._decoder.has_head else output

    def _prompt_forward(self, step: PromptStep) -> Tensor:
        output = self._decoder.forward(step.batch(), self._cache)
        self.state.position[step.rows] = step.lengths
        return self._sample(output, step.rows) if self._decoder.has_head else output

    def _sample(self, logits: Tensor, rows: Tensor) -> Tensor:
        tokens = self._sampler(logits, self.state.request, self.state.position, rows)
        self.state.token[rows] = tokens.clamp(min=0)  # BROKEN has no embedding
        return tokens

    # -- state

    def set_tokens(self, sequences: tuple[Sequence, ...], tokens: Tensor) -> None:
        """On the first stage of a pipeline: the tokens [n] int64 that the last stage has
        sampled."""
        self.state.token[self._rows_of(sequences)] = tokens.clamp(min=0)

    def room_for_tokens(self, count: int) -> Tensor:
        """[count] int64 on the device, for tokens that are received."""
        return torch.empty(count, dtype=torch.int64, device=self._device)

    def upload(self, values: np.ndarray) -> Tensor:
        """A small array on the device; the host does not wait for the copy."""
        host = torch.from_numpy(values)
        if self._device.type != "cuda":
            return host
        return host.pin_memory().to(self._device, non_blocking=True)

    def _int64(self, values: Iterable[int]) -> Tensor:
        return self.upload(np.fromiter(values, dtype=np.int64))

    def _rows_of(self, sequences: Iterable[Sequence]) -> Tensor:
        return self._int64(sequence.seat for sequence in sequences)

    def _enter(self, sequences: list[Sequence]) -> None:
        """Fill the rows of requests that are about to begin."""
        if not sequences:
            return
        tables = np.zeros((len(sequences), self.state.tables.shape[1]), dtype=np.int32)
        for table, sequence in zip(tables, sequences, strict=True):
            table[: len(sequence.pages)] = sequence.pages
        rows = self._rows_of(sequences)
        self.state.tables[rows] = self.upload(tables)
        self.state.request[rows] = self._int64(s.request.index for s in sequences)

    def _padded_rows(self, step: Step, size: int) -> Tensor:
        """The rows of a decode step, padded to `size`; uploaded only when they change."""
        rows = tuple(sequence.seat for sequence in step.sampled)
        wanted = rows + (self.state.padding_row,) * (size - len(rows))
        held = self._micro_batches.get(step.micro_batch)
        if held is None or held[0] != wanted:
            held = self._micro_batches[step.micro_batch] = (wanted, self._int64(wanted))
        return held[1]

    # -- prompts

    def _prompt_batch(self, chunks: tuple[Chunk, ...]) -> Batch:
        counts = np.array([chunk.count for chunk in chunks])
        positions = [np.arange(c.start, c.start + c.count, dtype=np.int64) for c in chunks]
        slots = [slots_of(c.sequence.pages)[: c.start + c.count] for c in chunks]
        new = [of_chunk[c.start :] for of_chunk, c in zip(slots, chunks, strict=True)]
        ends = np.cumsum(counts)[[chunk.is_last for chunk in chunks]]
        embeds = self._decoder.has_embedding
        return Batch(
            inputs=self._prompt_tokens(chunks) if embeds else self._received(int(counts.sum())),
            positions=self.upload(np.concatenate(positions)),
            slot_mapping=self.upload(np.concatenate(new)),
            context=prefill_context(counts, slots, self.upload),
            sampled=self._int64(ends - 1),
        )

    def _prompt_tokens(self, chunks: tuple[Chunk, ...]) -> Tensor:
        prompts = ((c.sequence.request.prompt, c) for c in chunks)
        tokens = [prompt[c.start : c.start + c.count] for prompt, c in prompts]
        return self.upload(np.concatenate([np.asarray(t, dtype=np.int64) for t in tokens]))

    def _received(self, tokens: int) -> Tensor:
        shape, dtype = (tokens, self._decoder.hidden_size), self._decoder.dtype
        inputs = torch.empty(shape, dtype=dtype, device=self._device)
        self._communicator.receive_previous(inputs)
        return inputs

    def attention_times(self, steps: list[Step]) -> tuple[AttentionTime, ...]:
        """The attention of the fullest step of each phase, by itself."""
        return attention_times(self._decoder, self._cache, steps, self.state.tables.shape[1])

    def count_kernels(self, steps: list[Step]) -> None:
        """Take the fullest decode step of a run that has ended once more, for Nsight Compute. This
        rank takes it by itself: the profiler runs each kernel several times, and one that waits for
        other ranks would wait for ever."""
        fullest = fullest_decode(steps)
        if fullest is None:
            return
        held = self._new_decode_step(len(fullest.sampled))[0]
        held.rows.copy_(self._rows_of(fullest.sampled))
        with self._communicator.left_out():
            self._again(held)  # what is compiled and looked up is no part of the step
            with counted(self._device):
                self._again(held)

    def _again(self, step: DecodeStep) -> None:
        """Decode without going on to the next position."""
        position = self.state.position.clone()
        self._decode_forward(step)
        self.state.position.copy_(position)

    # -- graphs

    def capture(self, decode_sizes: list[int], prompt_sizes: list[int]) -> None:
        """Capture a step for each number of requests that decode and of prompt tokens, largest
        first, in one memory pool."""
        self._decode_steps = {size: self._new_decode_step(size) for size in _falling(decode_sizes)}
        self._prompt_steps = {size: self._new_prompt_step(size) for size in _falling(prompt_sizes)}
        steps = (*self._prompt_steps.values(), *self._decode_steps.values())
        warm_up([replay for _, replay in steps], self._decoder, self._communicator)
        pool = None
        for _, replay in steps:
            pool = replay.capture(self._communicator, pool)

    def close(self) -> None:
        """Free the graphs. Call it before the process groups whose collectives they hold are
        destroyed."""
        self._decode_steps.clear()
        self._prompt_steps.clear()

    @contextmanager
    def examined(self) -> Iterator[Examination]:
        """Steps inside are looked at layer by layer, without graphs, which are gone afterwards."""
        self.close()
        examination = Examination(self._communicator)
        with examination.of(self._decoder):
            yield examination

    def _decode_step_for(self, count: int) -> tuple[DecodeStep, Replay]:
        size = _smallest(self._decode_steps, count)
        return self._new_decode_step(count) if size is None else self._decode_steps[size]

    def _new_decode_step(self, size: int) -> tuple[DecodeStep, Replay]:
        rows = torch.full((size,), self.state.padding_row, device=self._device)
        step = DecodeStep(rows, self._inputs(size))
        return step, Replay(lambda: self._decode_forward(step))

    def _new_prompt_step(self, size: int) -> tuple[PromptStep, Replay]:
        step = PromptStep.empty(size, self._inputs(size), self._device)
        return step, Replay(lambda: self._prompt_forward(step))

    def _inputs(self, size: int) -> Tensor | None:
        """Room for activations of the stage before."""
        if self._decoder.has_embedding:
            return None
        shape, dtype = (size, self._decoder.hidden_size), self._decoder.dtype
        return torch.zeros(shape, dtype=dtype, device=self._device)


def fullest_decode(steps: Iterable[Step]) -> Step | None:
    """The decode step of most requests, and of several such the last; None where none decodes."""
    decoding = (step for step in steps if step.phase == DECODE)
    return max(decoding, key=lambda step: (len(step.sampled), step.index), default=None)


def _smallest(sizes: Iterable[int], count: int) -> int | None:
    """The smallest of `sizes` that holds `count`."""
    return min((size for size in sizes if size >= count), default=None)


def _falling(sizes: Iterable[int]) -> list[int]:
    return sorted(set(sizes), reverse=True)
