"""Where values stop being finite: a run is taken again, and every layer looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workers.messages import BROKEN, NotFinite

if TYPE_CHECKING:
    from torch import Tensor

    from workers.communicator import Communicator
    from workers.engines.native.log import Log
    from workers.engines.native.model import Decoder

NEVER = 2**62
REQUESTS = 2**32  # more than a run has
PLACES = 2**20  # more than a forward pass has
PARTS = ("attention, before it is summed", "attention", "MLP, before it is summed", "MLP")
HEAD = PLACES - 1


def first_broken(log: Log) -> int:
    """The first sampled token of a run whose logits were not finite, as step x REQUESTS + request;
    NEVER where there is none. Only a rank that reports tokens knows of any."""
    for step, tokens in zip(log.steps, log.tokens, strict=True):
        if tokens is not None and bool((tokens == BROKEN).any()):
            at = tokens.tolist().index(BROKEN)
            return step.index * REQUESTS + step.sampled[at].request.index
    return NEVER


@dataclass(slots=True)
class Examination:
    """What a rank sees of its layers. first: the first place where it saw a value that is not
    finite, as step x PLACES + place; places are counted along a forward pass, from the embedding
    (0) to the head."""

    communicator: Communicator
    first: int = NEVER
    place: int = 0

    @contextmanager
    def of(self, decoder: Decoder) -> Iterator[None]:
        """Look at all that `decoder` computes. The host waits for the device at each look."""
        index = {
            id(layer): number for of in decoder.layers.values() for number, layer in of.items()
        }
        places: dict[str, Callable[[Any], int]] = {
            "_embed": lambda _: 0,
            "_attention": lambda layer: 1 + 4 * index[id(layer)],
            "_mlp": lambda layer: 3 + 4 * index[id(layer)],
            "_logits": lambda _: HEAD,
        }
        methods = {
            name: self._watched(getattr(decoder, name), place_of)
            for name, place_of in places.items()
        }
        backend = self.communicator.backend
        summing: dict[str, Callable[..., Any]] = {
            "all_reduce": self._looking(backend.all_reduce),
            "fuses": lambda *_: False,  # else a sum and the norm behind it could not be told apart
            "outbox": lambda *_: None,
        }
        in_one = {"_in_halves": decoder._in_one}  # a sum that goes on cannot be looked at
        with _replaced(decoder, methods), _replaced(decoder, in_one), _replaced(backend, summing):
            yield

    def look(self, x: Tensor, place: int) -> None:
        """Note `place` if it is the first at which a value is not finite."""
        if self.first == NEVER and not bool(x.isfinite().all()):
            self.first = (self.communicator.step or 0) * PLACES + place

    def _watched(
        self, call: Callable[..., Tensor], place_of: Callable[[Any], int]
    ) -> Callable[..., Tensor]:
        def watched(first: Any, *rest: Any) -> Tensor:
            self.place = place_of(first)
            out = call(first, *rest)
            self.look(out, self.place if self.place in (0, HEAD) else self.place + 1)
            return out

        return watched

    def _looking(self, all_reduce: Callable[[Tensor, str], Tensor]) -> Callable[..., Tensor]:
        """It looks at what this rank adds to a sum."""

        def looking(x: Tensor, axis: str) -> Tensor:
            self.look(x, self.place)
            return all_reduce(x, axis)

        return looking

    def tell(self, step: int, request: int) -> None:
        """Raise NotFinite on the rank that saw it first; on every rank where none saw it again."""
        found = self.communicator.context.smallest(self.first)
        where = f"the logits of step {step}, request {request}, are not finite (NaN or infinity)"
        if found == NEVER:
            raise NotFinite(
                f"{where}, but were when the run was taken again without CUDA graphs; look at the "
                "GPU and its driver"
            )
        if found == self.first:
            again, place = divmod(found, PLACES)
            raise NotFinite(
                f"{where}. Taken again, the first such value comes from {_named(place)} in step "
                f"{again}; look at the weights there, or use another --dtype"
            )


@contextmanager
def _replaced(owner: object, methods: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Inside, `owner` has these instead of the methods of its class."""
    for name, method in methods.items():
        setattr(owner, name, method)
    try:
        yield
    finally:
        for name in methods:
            delattr(owner, name)


def _named(place: int) -> str:
    if place in (0, HEAD):
        return "the embedding" if place == 0 else "the final norm or the head"
    layer, part = divmod(place - 1, 4)
    return f"layer {layer} ({PARTS[part]})"
