"""Steps of a fixed size on tensors that stay where they are: a GPU captures each once and replays
it, elsewhere it runs as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.communicator import Communicator, Recording
from workers.device import synchronize
from workers.engines.native.contexts import PrefillContext
from workers.engines.native.model import Batch, Decoder
from workers.engines.native.scheduler import Chunk

# Prompts that one captured prefill step can have.
PROMPTS = 16
# Weights times tokens that a Hopper GPU multiplies while the host launches a layer: 1 ms of 520
# TFLOP/s, two operations each.
LAUNCHED = 260 * 10**9


@dataclass(slots=True)
class Replay:
    """A function without arguments, and its graph once it is captured.

    forward: reads and writes tensors that stay where they are. output: what it has returned last;
    a graph overwrites it. recording: the collectives in the graph.
    """

    forward: Callable[[], Tensor]
    output: Tensor | None = None
    graph: torch.cuda.CUDAGraph | None = None
    recording: Recording = field(default_factory=Recording)

    def __call__(self, communicator: Communicator) -> Tensor:
        """Run it. The output is valid until the next run of any graph."""
        if self.graph is not None:
            self.graph.replay()
            communicator.count(self.recording)
        else:
            self.output = self.forward()
        assert self.output is not None
        return self.output

    def capture(self, communicator: Communicator, pool: Any) -> Any:
        """Capture it in the memory `pool`, None for a new one; returns the pool. `warm_up` comes
        before."""
        self.graph = torch.cuda.CUDAGraph()
        with (
            communicator.recorded() as self.recording,
            torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"),
        ):
            self.output = self.forward()
        return self.graph.pool()


def warm_up(replays: Sequence[Replay], decoder: Decoder, communicator: Communicator) -> None:
    """Launch, on a stream that no graph has, all that graphs of a decoder will have in them: it is
    compiled then, and cuBLAS and NCCL have allocated what they need."""
    device, side = communicator.context.device, torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    compiling = decoder.compiled_together
    with torch.cuda.stream(side), communicator.recorded(), decoder.in_brief():
        if compiling is not None:
            with compiling():
                _forward(replays)
        _forward(replays)
    torch.cuda.current_stream().wait_stream(side)
    synchronize(device)


def _forward(replays: Sequence[Replay]) -> None:
    for replay in replays:
        replay.forward()


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """One new token of each of `size` requests.

    rows: [size] int64, rows of the state. inputs: [size, hidden], activations of the stage before,
    None on the first stage.
    """

    rows: Tensor
    inputs: Tensor | None


@dataclass(frozen=True, slots=True)
class PromptStep:
    """Whole prompts, PROMPTS at most, of `size` tokens together. Padding is one more prompt, whose
    tokens all lie in slot 0.

    fields: [3 x size + 4 x PROMPTS + 2] int64, everything that the host tells it, in one copy.
    inputs: [size, hidden], activations of the stage before, None on the first stage.
    """

    size: int
    fields: Tensor
    inputs: Tensor | None

    @classmethod
    def empty(cls, size: int, inputs: Tensor | None, device: torch.device) -> PromptStep:
        """All zero."""
        fields = torch.zeros(3 * size + 4 * PROMPTS + 2, dtype=torch.int64, device=device)
        return cls(size, fields, inputs)

    def batch(self) -> Batch:
        """Views of the fields as a forward pass wants them."""
        tokens, positions, slots, ends, sampled, *_ = self._parts()
        ends = ends.int()
        context = PrefillContext(slots, ends, ends, self.size, self.size)
        inputs = tokens if self.inputs is None else self.inputs
        return Batch(inputs, positions, slots, context, sampled)

    @property
    def rows(self) -> Tensor:
        """[PROMPTS] int64, the row of the state of each prompt."""
        return self._parts()[5]

    @property
    def lengths(self) -> Tensor:
        """[PROMPTS] int64, 0 where there is no prompt."""
        return self._parts()[6]

    def _parts(self) -> tuple[Tensor, ...]:
        sizes = [*[self.size] * 3, PROMPTS + 2, *[PROMPTS] * 3]
        return torch.split(self.fields, sizes)


def takes(chunks: Sequence[Chunk]) -> bool:
    """Whether a captured step can read them: whole prompts, and not too many."""
    whole = all(chunk.start == 0 and chunk.is_last for chunk in chunks)
    return whole and len(chunks) <= PROMPTS


def prompt_fields(
    chunks: Sequence[Chunk], slots: Sequence[np.ndarray], size: int, padding_row: int
) -> np.ndarray:
    """The fields of a `PromptStep`. slots: those of each chunk's tokens."""
    counts = np.array([chunk.count for chunk in chunks])
    prompts = [np.asarray(c.sequence.request.prompt, dtype=np.int64) for c in chunks]
    ends = np.cumsum(counts)
    seats = [chunk.sequence.seat for chunk in chunks]
    return np.concatenate(
        (
            _filled(np.concatenate(prompts), size, 0),
            _filled(np.concatenate([np.arange(count) for count in counts]), size, 0),
            _filled(np.concatenate(slots), size, 0),
            _filled(np.concatenate(([0], ends)), PROMPTS + 2, size),
            _filled(ends - 1, PROMPTS, 0),
            _filled(np.array(seats), PROMPTS, padding_row),
            _filled(counts, PROMPTS, 0),
        )
    )


def _filled(values: np.ndarray, size: int, padding: int) -> np.ndarray:
    out = np.full(size, padding, dtype=np.int64)
    out[: len(values)] = values
    return out


def decode_sizes(largest: int) -> list[int]:
    """Batch sizes to capture up to `largest`: fine where a step is short, coarse where padding
    costs little."""
    fine = (1, 2, 4, 8, 16, 24, 32, 48, *range(64, 129, 16))
    sizes = (*fine, *range(160, 513, 32), *range(576, 4097, 64))
    return [*(size for size in sizes if size < largest), largest]


def prompt_sizes(most: int, weights: int) -> list[int]:
    """Tokens of the prefill steps to capture, where a step has at most `most`. weights: of a layer
    of one rank. Beyond 1024 tokens they end where the device takes longer than the host, and a
    graph saves nothing."""
    sizes = (64, 128, 192, 256, 384, 512, 640, 768, 1024)
    more = (size for size in (1536, 2048) if size * weights <= LAUNCHED)
    known = (*sizes, *more)
    return [n for n in known if n < most] + [n for n in known if n >= most][:1]
