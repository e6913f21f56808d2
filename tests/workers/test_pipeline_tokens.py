"""When the first stage of a pipeline joins the broadcasts of the last one's tokens."""

from __future__ import annotations

import time

import pytest
import torch
from ranks import BASE, FAMILIES, engine_plan

from strategies.shapes import ModelShape
from workers.communicator import Communicator
from workers.engines.native.generator import Generator
from workers.engines.native.scheduler import Limits, Step
from workers.messages import Request, Work
from workers.rank import RankContext

SHAPE = ModelShape.from_config(
    {**BASE, **FAMILIES["Qwen2"], "architectures": ["Qwen2ForCausalLM"]}, "small"
)


class Alone(RankContext):
    """The first of two stages, without the other."""

    def barrier(self) -> None:
        pass

    def smallest(self, value: int) -> int:
        return value


class Listening(Communicator):
    """Notes the broadcasts that are joined, with the moment: `joined` step -> seconds."""

    def broadcast_last(self, x: torch.Tensor) -> None:
        assert self.step is not None
        joined[self.step] = time.perf_counter()
        order.append(("joined", self.step))


class Idle:
    """A runner that computes nothing."""

    def run(self, step: Step) -> None:
        order.append(("sampled" if step.sampled else "taken", step.index))

    def room_for_tokens(self, count: int) -> torch.Tensor:
        return torch.full((count,), 9)

    def set_tokens(self, sequences: object, tokens: torch.Tensor) -> None:
        pass


joined: dict[int, float] = {}
order: list[tuple[str, int]] = []


def serve(work: Work) -> int:
    """Fill `order` and `joined`; how many steps the stage may be ahead."""
    joined.clear()
    order.clear()
    plan = engine_plan("pp2", SHAPE, None, work)
    communicator = Listening(Alone(0, plan.placement, torch.device("cpu")))
    limits = Limits(micro_batches=2, pages=99, prefill_tokens=4)
    generator = Generator(Idle(), communicator, limits, eos=(7,))  # type: ignore[arg-type]
    generator._replica_group = (None, 0)
    generator.run(work)
    return communicator.context.most_ahead


@pytest.mark.parametrize("ignore_eos", [True, False])
def test_tokens_are_joined_while_long_prompts_are_read(ignore_eos: bool) -> None:
    """The last stage's broadcast would fail at the timeout of a collective, were it joined only
    when all prompts are read and decoding begins."""
    requests = (Request(0, (8,), 3), Request(1, (8,) * 160, 3), Request(2, (8,) * 160, 3))
    ahead = serve(Work(requests, 3, ignore_eos=ignore_eos))
    sampled = [step for what, step in order if what == "sampled"]
    assert sorted(joined) == sampled
    for step in sampled:
        passed = order[order.index(("sampled", step)) : order.index(("joined", step))]
        assert sum(what != "joined" for what, _ in passed) <= ahead
    assert order.index(("joined", sampled[0])) < 10 < len(order)


def test_tokens_are_joined_before_an_idle_stage_waits_for_the_next_request() -> None:
    arrival_s, began = 0.3, time.perf_counter()
    serve(Work((Request(0, (8,), 2, 0.01), Request(1, (8,), 2, arrival_s)), 2))
    assert len(joined) == 4
    assert [step for step, at in joined.items() if at - began < arrival_s] == [0, 1]
