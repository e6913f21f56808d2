"""Runs single steps on a device: the state of every request, prompts in chunks, decoding in
captured graphs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.communicator import Communicator, Recording
from workers.engines.native.cache import PAGE, PagedCache, pages_for
from workers.engines.native.model import Batch, DecodeContext, Decoder, PrefillContext
from workers.engines.native.sampling import Sampler
from workers.engines.native.scheduler import Chunk, Sequence, Step


@dataclass(slots=True)
class State:
    """What the device knows of every slot; the last slot is nobody's, for padding.

    token: the newest token; position: where it goes; request: index of the request; all [slots + 1]
    int64.
    tables: [slots + 1, pages] int32, the pages of a slot in order.
    """

    token: Tensor
    position: Tensor
    request: Tensor
    tables: Tensor

    @classmethod
    def empty(cls, slots: int, max_len: int, device: torch.device) -> State:
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        return cls(
            zeros(slots + 1),
            zeros(slots + 1),
            zeros(slots + 1),
            zeros(slots + 1, pages_for(max_len), dtype=torch.int32),
        )

    @property
    def nobody(self) -> int:
        return self.token.shape[0] - 1


@dataclass(slots=True)
class Graph:
    """A decode step of one batch size. On a GPU it is captured once; elsewhere it runs as it is.

    slots: [bucket] int64 and inputs: [bucket, hidden] (None on the first stage) are read by every
    run.
    """

    slots: Tensor
    inputs: Tensor | None
    output: Tensor | None = None
    graph: torch.cuda.CUDAGraph | None = None
    recording: Recording = field(default_factory=Recording)


class Runner:
    """One rank's model, cache and state. Every method only launches work on a GPU; nothing
    waits."""

    def __init__(
        self,
        decoder: Decoder,
        cache: PagedCache,
        sampler: Sampler,
        communicator: Communicator,
        slots: int,
        max_len: int,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._decoder, self._cache, self._sampler, self._communicator = (
            decoder,
            cache,
            sampler,
            communicator,
        )
        self._hidden_size, self._dtype, self._device = hidden_size, dtype, device
        self.state = State.empty(slots, max_len, device)
        self._graphs: dict[int, Graph] = {}
        self._memory: Any = None
        self._micro_batches: dict[int, tuple[tuple[int, ...], Tensor]] = {}

    # -- steps

    def run(self, step: Step) -> Tensor | None:
        """One step of this rank's stages, activations received and handed on. Returns tokens
        [sampled] on the last stage."""
        return self._prefill(step.chunks) if step.chunks else self._decode(step)

    def _prefill(self, chunks: tuple[Chunk, ...]) -> Tensor | None:
        starting = [chunk.sequence for chunk in chunks if chunk.start == 0]
        if starting:
            self._enter(starting)
        output = self._decoder.forward(self._prompt_batch(chunks), self._cache)
        ending = [chunk for chunk in chunks if chunk.is_last]
        slots = self.upload(np.array([chunk.sequence.slot for chunk in ending], dtype=np.int64))
        self.state.position[slots] = self.upload(
            np.array([chunk.start + chunk.count for chunk in ending], dtype=np.int64)
        )
        if not self._decoder.has_head:
            self._communicator.send_next(output)
            return None
        return self._sample(output, slots) if ending else None

    def _decode(self, step: Step) -> Tensor | None:
        count = len(step.sampled)
        graph = self._graph_for(count)
        graph.slots.copy_(
            self._micro_batch_rows(step.micro_batch, step.sampled, graph.slots.shape[0])
        )
        if graph.inputs is not None:
            self._communicator.receive_previous(graph.inputs[:count])
        if graph.graph is not None:
            graph.graph.replay()
            self._communicator.count(graph.recording)
        else:
            graph.output = self._decode_forward(graph)
        assert graph.output is not None
        # A copy, for the next micro-batch overwrites the graph's own output while this one is still
        # on its way.
        output = graph.output[:count].clone()
        if not self._decoder.has_head:
            self._communicator.send_next(output)
            return None
        return output

    def _decode_forward(self, graph: Graph) -> Tensor:
        slots, state = graph.slots, self.state
        position, tables = state.position[slots], state.tables[slots]
        page = tables.gather(1, (position // PAGE)[:, None])[:, 0].long()
        context = DecodeContext(tables, (position + 1).int())
        inputs = state.token[slots] if graph.inputs is None else graph.inputs
        output = self._decoder.forward(
            Batch(inputs, position, page * PAGE + position % PAGE, context), self._cache
        )
        state.position[slots] = position + (slots < state.nobody)
        return self._sample(output, slots) if self._decoder.has_head else output

    def _sample(self, logits: Tensor, slots: Tensor) -> Tensor:
        tokens = self._sampler(logits, self.state.request[slots], self.state.position[slots])
        self.state.token[slots] = tokens
        return tokens

    # -- state

    def set_tokens(self, sequences: tuple[Sequence, ...], tokens: Tensor) -> None:
        """On the first stage of a pipeline: the tokens [n] that the last stage has sampled."""
        slots = self.upload(np.array([s.slot for s in sequences], dtype=np.int64))
        self.state.token[slots] = tokens

    def upload(self, values: np.ndarray) -> Tensor:
        """A small array on the device, without waiting for it."""
        host = torch.from_numpy(values)
        return (
            host.pin_memory().to(self._device, non_blocking=True)
            if self._device.type == "cuda"
            else host
        )

    def _enter(self, sequences: list[Sequence]) -> None:
        slots = self.upload(np.array([s.slot for s in sequences], dtype=np.int64))
        tables = np.zeros((len(sequences), self.state.tables.shape[1]), dtype=np.int32)
        for row, sequence in zip(tables, sequences, strict=True):
            row[: len(sequence.pages)] = sequence.pages
        self.state.tables[slots] = self.upload(tables)
        self.state.request[slots] = self.upload(
            np.array([s.request.index for s in sequences], dtype=np.int64)
        )

    def _micro_batch_rows(
        self, micro_batch: int, sequences: tuple[Sequence, ...], bucket: int
    ) -> Tensor:
        """The slots of a micro_batch's sequences, padded to `bucket`; uploaded only when they
        change."""
        wanted = tuple(s.slot for s in sequences) + (self.state.nobody,) * (bucket - len(sequences))
        held = self._micro_batches.get(micro_batch)
        if held is None or held[0] != wanted:
            held = self._micro_batches[micro_batch] = (
                wanted,
                self.upload(np.array(wanted, dtype=np.int64)),
            )
        return held[1]

    def _prompt_batch(self, chunks: tuple[Chunk, ...]) -> Batch:
        contexts = [_slots(chunk.sequence.pages, chunk.start + chunk.count) for chunk in chunks]
        counts = np.array([chunk.count for chunk in chunks])
        lengths = np.array([len(context) for context in contexts])
        rows = np.cumsum(counts)[[chunk.is_last for chunk in chunks]] - 1
        return Batch(
            inputs=self._prompt_tokens(chunks)
            if self._decoder.has_embedding
            else self._received(int(counts.sum())),
            positions=self.upload(
                np.concatenate(
                    [np.arange(c.start, c.start + c.count, dtype=np.int64) for c in chunks]
                )
            ),
            slots=self.upload(
                np.concatenate(
                    [slots[chunk.start :] for slots, chunk in zip(contexts, chunks, strict=True)]
                )
            ),
            context=PrefillContext(
                self.upload(np.concatenate(contexts)),
                self.upload(_ends(counts)),
                self.upload(_ends(lengths)),
                int(counts.max()),
                int(lengths.max()),
            ),
            rows=self.upload(rows.astype(np.int64)),
        )

    def _prompt_tokens(self, chunks: tuple[Chunk, ...]) -> Tensor:
        tokens = [
            chunk.sequence.request.prompt[chunk.start : chunk.start + chunk.count]
            for chunk in chunks
        ]
        return self.upload(np.concatenate([np.asarray(t, dtype=np.int64) for t in tokens]))

    def _received(self, tokens: int) -> Tensor:
        inputs = torch.empty(tokens, self._hidden_size, dtype=self._dtype, device=self._device)
        self._communicator.receive_previous(inputs)
        return inputs

    # -- graphs

    def capture(self, sizes: list[int]) -> None:
        """Capture a decode step for each batch size, largest first, in one memory pool; on a CPU
        nothing is to be done."""
        if self._device.type != "cuda":
            return
        for size in sorted(set(sizes), reverse=True):
            self._graphs[size] = self._captured(self._new_graph(size))

    def close(self) -> None:
        """Graphs go before the process groups whose collectives they hold."""
        self._graphs.clear()

    def _captured(self, graph: Graph) -> Graph:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), self._communicator.recorded():
            self._decode_forward(
                graph
            )  # compiles kernels and makes cuBLAS and NCCL allocate what they need
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph.graph = torch.cuda.CUDAGraph()
        with (
            self._communicator.recorded() as graph.recording,
            torch.cuda.graph(graph.graph, pool=self._memory, capture_error_mode="thread_local"),
        ):
            graph.output = self._decode_forward(graph)
        self._memory = graph.graph.pool()
        return graph

    def _graph_for(self, count: int) -> Graph:
        fits = [size for size in self._graphs if size >= count]
        return self._graphs[min(fits)] if fits else self._new_graph(count)

    def _new_graph(self, size: int) -> Graph:
        slots = torch.full((size,), self.state.nobody, device=self._device)
        shape = (size, self._hidden_size)
        inputs = (
            None
            if self._decoder.has_embedding
            else torch.zeros(shape, dtype=self._dtype, device=self._device)
        )
        return Graph(slots, inputs)


def bucket_sizes(largest: int) -> list[int]:
    """Batch sizes to capture up to `largest`: fine where a step is short, coarse where padding
    costs little."""
    steps = [
        1,
        2,
        4,
        8,
        16,
        24,
        32,
        48,
        64,
        80,
        96,
        112,
        128,
        *range(160, 513, 32),
        *range(576, 4097, 64),
    ]
    return [*(size for size in steps if size < largest), largest]


def _slots(pages: list[int], tokens: int) -> np.ndarray:
    """Places in the cache of the first `tokens` tokens of a request with these pages."""
    return (np.array(pages, dtype=np.int64)[:, None] * PAGE + np.arange(PAGE)).ravel()[:tokens]


def _ends(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
