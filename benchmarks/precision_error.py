"""What a model loses in FP8: its logits and its greedy tokens beside those of another precision.

    python benchmarks/precision_error.py
    python benchmarks/precision_error.py --model FOLDER --device cuda --dtype bfloat16

The texts are sampled from the model itself, at temperature 1 and in float32, so that they are of
the kind that it knows. Each precision reads the same texts, all tokens at once, and then writes
greedily after the same beginnings. A line for each:

- error: norm of the difference of all logits over that of the reference's, their means left out
- KL: of the distribution of the next token from the reference's, mean, in nats
- first choice: tokens whose most likely successor is the reference's
- written: tokens written that are the reference's, up to the first one that is not; of --tokens
- weights: bytes of the model
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from orchestrator.plan import models
from strategies import Placement
from workers.communicator import Communicator
from workers.engines.native.build import load_decoder, make_cache
from workers.engines.native.cache import PagedCache
from workers.engines.native.contexts import Context, DecodeContext, PrefillContext
from workers.engines.native.model import Batch, Decoder
from workers.engines.native.pages import PAGE, pages_for
from workers.messages import EnginePlan
from workers.rank import RankContext

# (quantization, dtype of the KV cache)
PRECISIONS = (
    ("none", "auto"),
    ("none", "fp8"),
    ("fp8", "auto"),
    ("fp8", "fp8"),
    ("fp8-prefill", "auto"),
    ("fp8-decode", "auto"),
)
BEGINNING = 16  # tokens of a text after which precisions write on by themselves


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder with room for one text."""

    decoder: Decoder
    cache: PagedCache
    device: torch.device

    @classmethod
    def of(cls, plan: EnginePlan) -> Model:
        """Load it."""
        device = torch.device(plan.device)
        context = RankContext(0, plan.placement, device)
        decoder = load_decoder(context, plan, Communicator(context))
        return cls(decoder, make_cache(context, plan, pages_for(plan.max_len)), device)

    def read(self, text: Sequence[int]) -> Tensor:
        """The logits of all tokens at once: [tokens, vocabulary] float32."""
        count = len(text)
        ends = torch.tensor([0, count], dtype=torch.int32, device=self.device)
        at = torch.arange(count, device=self.device)
        return self._forward(text, at, PrefillContext(at + PAGE, ends, ends, count, count))

    def next(self, token: int, position: int) -> Tensor:
        """The logits of one more token: [vocabulary] float32."""
        pages = torch.arange(1, self.cache.pages + 1, dtype=torch.int32, device=self.device)
        length = torch.tensor([position + 1], dtype=torch.int32, device=self.device)
        at = torch.tensor([position], device=self.device)
        return self._forward([token], at, DecodeContext(pages[None], length))[0]

    def _forward(self, tokens: Sequence[int], at: Tensor, context: Context) -> Tensor:
        inputs = torch.tensor(tokens, device=self.device)
        return self.decoder.forward(Batch(inputs, at, at + PAGE, context), self.cache).float()

    def write(self, beginning: Sequence[int], count: int, temperature: float = 0.0) -> list[int]:
        """The beginning and `count` tokens more: the most likely ones, or sampled."""
        text = list(beginning)
        logits = self.read(text)[-1]
        while True:
            text.append(_choice(logits, temperature))
            if len(text) == len(beginning) + count:
                return text
            logits = self.next(text[-1], len(text) - 1)


def _choice(logits: Tensor, temperature: float) -> int:
    if not temperature:
        return int(logits.argmax())
    return int(torch.multinomial(torch.softmax(logits.cpu() / temperature, 0), 1))


@dataclass(frozen=True, slots=True)
class Reading:
    """What one precision makes of the texts: logits of each, and what it writes after each
    beginning."""

    logits: list[Tensor]
    written: list[list[int]]

    @classmethod
    def of(cls, model: Model, texts: Sequence[Sequence[int]], tokens: int) -> Reading:
        """Read and write."""
        beginnings = [text[:BEGINNING] for text in texts]
        written = [model.write(text, tokens)[BEGINNING:] for text in beginnings]
        return cls([model.read(text).cpu() for text in texts], written)


@dataclass(frozen=True, slots=True)
class Error:
    """How far a reading is from another; see the top of this file."""

    error: float
    kl: float
    first_choice: float
    written: float

    @classmethod
    def between(cls, found: Reading, reference: Reading) -> Error:
        """That of `found`."""
        ours, theirs = torch.cat(found.logits), torch.cat(reference.logits)
        mine, wanted = (x - x.mean(1, keepdim=True) for x in (ours, theirs))
        p, q = (torch.log_softmax(x, 1) for x in (theirs, ours))
        return cls(
            error=float((mine - wanted).norm() / wanted.norm()),
            kl=float((p.exp() * (p - q)).sum(1).mean()),
            first_choice=float((ours.argmax(1) == theirs.argmax(1)).float().mean()),
            written=agreement(found.written, reference.written),
        )


def agreement(found: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> float:
    """The share of tokens up to the first one of each text that differs."""
    same = total = 0
    for ours, theirs in zip(found, reference, strict=True):
        equal = [a == b for a, b in zip(ours, theirs, strict=True)]
        same += equal.index(False) if False in equal else len(equal)
        total += len(equal)
    return same / total


def measured(plan: EnginePlan, texts: int, tokens: int) -> Iterator[tuple[str, int, Error]]:
    """(precision, bytes of weights, error against `plan`) of every precision that a model has."""
    torch.manual_seed(plan.seed)
    exact = Model.of(replace(plan, dtype="float32"))
    vocabulary = plan.model.vocab_size
    starts = torch.randint(vocabulary // 8, vocabulary, (texts, 4)).tolist()
    sampled = [exact.write(start, tokens + BEGINNING - 4, temperature=1.0) for start in starts]
    found = Reading.of(exact, sampled, tokens)
    reference = Reading.of(Model.of(plan), sampled, tokens)
    yield "float32", exact.decoder.weight_bytes, Error.between(found, reference)
    for one in _precisions(plan):
        model = Model.of(one)
        error = Error.between(Reading.of(model, sampled, tokens), reference)
        yield f"{one.dtype} {one.precision.name}", model.decoder.weight_bytes, error


def _precisions(plan: EnginePlan) -> Iterator[EnginePlan]:
    for quantization, kv_cache_dtype in PRECISIONS:
        yield replace(plan, quantization=quantization, kv_cache_dtype=kv_cache_dtype)


def plan_of(asked: argparse.Namespace) -> EnginePlan:
    """The plan of the reference."""
    model = models.resolve(asked.model)
    return EnginePlan(
        model=model.shape,
        layout="tp1",
        placement=Placement.single(model.shape),
        checkpoint=str(model.checkpoint),
        dtype=asked.dtype,
        device=asked.device,
        max_concurrency=1,
        max_len=asked.tokens + 2 * BEGINNING,
        prefill_tokens=asked.tokens + 2 * BEGINNING,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help="a folder, or the demo's model")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=96)
    asked = parser.parse_args()
    plan = plan_of(asked)
    print(f"{plan.model.name} on {asked.device} beside {asked.dtype}; {asked.texts} texts")
    print(f"{'':24} {'error':>8} {'KL':>9} {'first choice':>13} {'written':>8} {'weights':>12}")
    with torch.inference_mode():
        for name, size, error in measured(plan, asked.texts, asked.tokens):
            print(
                f"{name:24} {error.error:8.2%} {error.kl:9.5f} {error.first_choice:13.2%} "
                f"{error.written:8.2%} {size:10} B"
            )


if __name__ == "__main__":
    main()
