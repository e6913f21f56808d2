"""Single steps of a tiny decoder on a CPU: what they compute, and what they leave in the state."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from ranks import engine_plan, read_shape

from workers.communicator import Communicator
from workers.engines.native import runner as runner_module
from workers.engines.native.build import bytes_for_pages, load_decoder, make_cache, make_runner
from workers.engines.native.cache import PagedCache
from workers.engines.native.contexts import PrefillContext, slots_of
from workers.engines.native.graphs import PROMPTS, decode_sizes, prompt_sizes, takes
from workers.engines.native.model import Batch, Decoder
from workers.engines.native.pages import PAGE
from workers.engines.native.runner import Runner
from workers.engines.native.scheduler import Chunk, Limits, Scheduler, Sequence, Step
from workers.messages import EnginePlan, Request, Work
from workers.rank import RankContext
from workers.records import DECODE, PREFILL

LONG = PAGE + 6  # a prompt that fills one page and begins another
PAGES = 6
PROMPT = tuple(int(t) for t in torch.arange(LONG) * 7 % 120)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


class Rank:
    """One rank that is alone, with room for three requests at once."""

    def __init__(self, folder: Path) -> None:
        self.plan: EnginePlan = engine_plan(
            "tp1", read_shape(folder), folder, Work((Request(0, PROMPT, 20),), max_concurrency=3)
        )
        context = RankContext(0, self.plan.placement, torch.device("cpu"))
        communicator = Communicator(context)
        self.decoder: Decoder = load_decoder(context, self.plan, communicator)
        self.cache: PagedCache = make_cache(context, self.plan, PAGES)
        self.runner: Runner = make_runner(self.plan, communicator, self.decoder, self.cache)

    def prefill(self, *chunks: Chunk) -> list[int]:
        """One prefill step; the tokens that it samples."""
        sampled = tuple(chunk.sequence for chunk in chunks if chunk.is_last)
        tokens = self.runner.run(Step(0, PREFILL, 0, chunks, sampled))
        return [] if tokens is None else tokens.tolist()

    def decode(self, *sequences: Sequence) -> list[int]:
        """One decode step; a token of each sequence."""
        tokens = self.runner.run(Step(0, DECODE, 0, (), sequences))
        assert tokens is not None
        made: list[int] = tokens.tolist()
        return made

    def greedy(self, prompt: tuple[int, ...], count: int) -> list[int]:
        """The same by hand: a forward pass over the whole sequence for every token, in a cache of
        its own."""
        tokens = list(prompt)
        for _ in range(count):
            cache = PagedCache.allocate(
                self.plan.model, self.plan.placement, 0, 2, torch.float32, torch.device("cpu")
            )
            n = len(tokens)
            at, ends = torch.arange(n), torch.tensor([0, n], dtype=torch.int32)
            context = PrefillContext(at + PAGE, ends, ends, n, n)
            last = torch.tensor([n - 1])
            batch = Batch(torch.tensor(tokens), at, at + PAGE, context, sampled=last)
            tokens.append(int(self.decoder.forward(batch, cache).argmax()))
        return tokens[len(prompt) :]


@pytest.fixture
def rank(checkpoint: Callable[[str], Path]) -> Rank:
    return Rank(checkpoint("Qwen3"))


def sequence(
    prompt: tuple[int, ...] = PROMPT, seat: int = 0, pages: tuple[int, ...] = (3, 5)
) -> Sequence:
    return Sequence(Request(9, prompt, 20), seat, list(pages))


def whole(one: Sequence) -> Chunk:
    return Chunk(one, 0, len(one.request.prompt))


# -- what is computed


def test_decoding_after_a_prefill_equals_a_forward_pass_over_the_whole_sequence(rank: Rank) -> None:
    one = sequence()
    made = rank.prefill(whole(one)) + [rank.decode(one)[0] for _ in range(8)]
    assert made == rank.greedy(PROMPT, 9)
    assert len(set(made)) > 3  # weights that tell tokens apart


@pytest.mark.parametrize("cuts", [(1, 2), (10, PAGE), (PAGE, PAGE + 1), (PAGE - 1, PAGE + 3)])
def test_a_prompt_in_chunks_gives_the_token_of_the_whole_prompt(
    rank: Rank, cuts: tuple[int, int]
) -> None:
    one = sequence()
    ends = (0, *cuts, LONG)
    made = [rank.prefill(Chunk(one, a, b - a)) for a, b in itertools.pairwise(ends)]
    assert made == [[], [], rank.greedy(PROMPT, 1)]
    assert rank.decode(one) == rank.greedy(PROMPT, 2)[1:]


def test_requests_in_one_step_do_not_see_each_other(rank: Rank) -> None:
    prompts = (PROMPT, PROMPT[:1], PROMPT[5:50])
    pages = ((3, 5), (1,), (6,))
    sequences = [sequence(p, i, pages[i]) for i, p in enumerate(prompts)]
    expected = [rank.greedy(prompt, 3) for prompt in prompts]
    first = rank.prefill(*map(whole, sequences))
    made = [first, rank.decode(*sequences), rank.decode(*sequences)]
    assert [list(tokens) for tokens in zip(*made, strict=True)] == expected


def test_the_order_of_a_decode_step_is_that_of_its_sequences(rank: Rank) -> None:
    one, other = sequence(PROMPT[:20], 0, (1,)), sequence(PROMPT[30:45], 2, (2,))
    rank.prefill(whole(one), whole(other))
    tokens = [rank.greedy(s.request.prompt, 3) for s in (one, other)]
    assert rank.decode(one, other) == [tokens[0][1], tokens[1][1]]
    assert rank.decode(other, one) == [tokens[1][2], tokens[0][2]]


@pytest.mark.parametrize("size", [LONG + 46, 192])
def test_prompts_in_a_padded_step_make_the_same_tokens(rank: Rank, size: int) -> None:
    """As in the graph of a larger size, of which one may fit to the token."""
    prompts, pages = (PROMPT, PROMPT[:1], PROMPT[5:50]), ((3, 5), (1,), (6,))
    sequences = [sequence(p, i, pages[i]) for i, p in enumerate(prompts)]
    expected = [rank.greedy(prompt, 3) for prompt in prompts]
    rank.runner._prompt_steps[size] = rank.runner._new_prompt_step(size)
    first = rank.prefill(*map(whole, sequences))
    made = [first, rank.decode(*sequences), rank.decode(*sequences)]
    assert [list(tokens) for tokens in zip(*made, strict=True)] == expected
    assert rank.runner.state.position.tolist() == [LONG + 2, 3, 47, 0]
    assert rank.runner._prompt_steps[size][1].output is not None


def test_a_padded_step_leaves_the_pages_of_others_alone(rank: Rank) -> None:
    rank.runner._prompt_steps[64] = rank.runner._new_prompt_step(64)
    before = {layer: keys.clone() for layer, keys in rank.cache.keys.items()}
    rank.prefill(whole(sequence(PROMPT[:20], 0, (4,))))
    for layer, keys in rank.cache.keys.items():
        touched = (keys != before[layer]).flatten(1).any(1).nonzero()[:, 0].tolist()
        assert {4} <= set(touched) <= {0, 4}


def test_a_padded_step_reads_whole_prompts_and_not_too_many() -> None:
    one = sequence()
    assert takes([whole(one)] * PROMPTS)
    assert not takes([whole(one)] * (PROMPTS + 1))
    assert not takes([Chunk(one, 0, 10)])
    assert not takes([whole(one), Chunk(one, 10, LONG - 10)])


# -- the state


def test_a_request_that_enters_fills_its_row(rank: Rank) -> None:
    one = sequence(seat=1)
    (token,) = rank.prefill(whole(one))
    state = rank.runner.state
    assert state.tables[1].tolist() == [3, 5]
    assert (state.request[1], state.position[1], state.token[1]) == (9, LONG, token)
    (token,) = rank.decode(one)
    assert (state.position[1], state.token[1]) == (LONG + 1, token)


def test_until_a_prompt_has_ended_its_position_stays(rank: Rank) -> None:
    rank.prefill(Chunk(sequence(), 0, 10))
    assert rank.runner.state.position.tolist() == [0, 0, 0, 0]


def test_rows_of_others_and_of_padding_are_left_alone(rank: Rank) -> None:
    state = rank.runner.state
    assert state.padding_row == 3
    one, other = sequence(PROMPT[:20], 0, (1,)), sequence(PROMPT[30:45], 2, (2,))
    rank.prefill(whole(one), whole(other))
    before = [table.clone() for table in (state.token, state.position, state.request)]
    rank.decode(one)
    for table, old in zip((state.token, state.position, state.request), before, strict=True):
        assert table[1:].tolist() == old[1:].tolist()


def test_a_step_that_is_padded_writes_to_page_0_and_to_the_pages_of_its_requests(
    rank: Rank,
) -> None:
    """As a graph of a larger size does."""
    one = sequence(PROMPT[:20], 0, (4,))
    (first,) = rank.prefill(whole(one))
    rank.runner._decode_steps[3] = rank.runner._new_decode_step(3)
    before = {layer: keys.clone() for layer, keys in rank.cache.keys.items()}
    assert [first, *rank.decode(one)] == rank.greedy(PROMPT[:20], 2)
    for layer, keys in rank.cache.keys.items():
        touched = (keys != before[layer]).flatten(1).any(1).nonzero()[:, 0].tolist()
        assert {4} <= set(touched) <= {0, 4}
    assert rank.runner.state.position.tolist() == [21, 0, 0, 0]


def test_a_seat_that_is_taken_again_begins_anew(rank: Rank) -> None:
    for prompt, pages in ((PROMPT, (3, 5)), (PROMPT[:7], (5,)), (PROMPT[3:], (1, 2))):
        one = sequence(prompt, 0, pages)
        assert [rank.prefill(whole(one)), rank.decode(one)] == [
            [token] for token in rank.greedy(prompt, 2)
        ]


def test_the_steps_of_a_scheduler_make_the_tokens_of_each_request(rank: Rank) -> None:
    prompts = (PROMPT[:30], PROMPT[:9], PROMPT[20:], PROMPT[4:12])
    asked = tuple(Request(i, prompt, 4) for i, prompt in enumerate(prompts))
    scheduler = Scheduler(asked, 2, Limits(micro_batches=2, pages=PAGES, prefill_tokens=16))
    made: dict[int, list[int]] = {}
    while (micro_batch := scheduler.next_micro_batch()) is not None:
        step = scheduler.next_step(micro_batch)
        tokens = rank.runner.run(step) if step is not None else None
        if step is not None and tokens is not None:
            for one, token in zip(step.sampled, tokens.tolist(), strict=True):
                made.setdefault(one.request.index, []).append(token)
    assert made == {i: rank.greedy(prompt, 4) for i, prompt in enumerate(prompts)}


# -- sizes and slots


GIB = 1 << 30


@pytest.mark.parametrize(
    ("taken", "room"),
    [
        (0.5, 200 * 0.92 - 150 - 3),  # as planned: what the context took is part of the reserve
        (2.0, 200 * 0.92 - 150 - 3),
        (5.0, 200 * 0.92 - 150 - 5 - 1),  # more than the reserve; graphs still need room
    ],
)
def test_pages_get_what_was_planned_for_them_whatever_the_context_took(
    taken: float, room: float
) -> None:
    free = int((200 - 150 - taken) * GIB)
    assert bytes_for_pages(free, 200 * GIB, 150 * GIB) == pytest.approx(room * GIB, abs=2)


def test_graphs_are_captured_up_to_the_largest_batch_and_fine_below() -> None:
    assert decode_sizes(1) == [1]
    assert decode_sizes(20) == [1, 2, 4, 8, 16, 20]
    assert decode_sizes(100)[-5:] == [48, 64, 80, 96, 100]
    assert decode_sizes(512)[-3:] == [448, 480, 512]
    assert max(b - a for a, b in itertools.pairwise(decode_sizes(4096))) == 64


def test_prefill_steps_are_captured_up_to_what_the_load_can_ask_for() -> None:
    assert prompt_sizes(40, 1) == [64]
    assert prompt_sizes(256, 1) == [64, 128, 192, 256]
    assert prompt_sizes(257, 1)[-1] == 384
    assert prompt_sizes(1030, 1)[-1] == 1536
    assert prompt_sizes(8192, 1)[-2:] == [1536, 2048]


@pytest.mark.parametrize(
    ("layer", "ranks", "largest"),
    [  # millions of weights of a layer: qwen2.5-32b, llama-70b, llama-8b
        (488, 1, 1024),
        (488, 2, 1024),
        (488, 4, 2048),
        (856, 4, 1024),
        (218, 2, 2048),
    ],
)
def test_prefill_steps_are_captured_up_to_what_the_device_takes_longer_for(
    layer: int, ranks: int, largest: int
) -> None:
    assert prompt_sizes(2048, layer * 10**6 // ranks)[-1] == largest


def test_slots_follow_the_pages_in_their_order() -> None:
    slots = slots_of([3, 1])
    assert slots.shape == (2 * PAGE,)
    assert slots[[0, PAGE - 1, PAGE, -1]].tolist() == [3 * PAGE, 4 * PAGE - 1, PAGE, 2 * PAGE - 1]


# -- for Nsight Compute


def test_the_fullest_decode_step_is_taken_once_more_and_leaves_no_trace(
    rank: Rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = sequence(), sequence(PROMPT[:5], seat=1, pages=(2, 4))
    rank.prefill(Chunk(first, 0, LONG), Chunk(second, 0, 5))
    steps = [
        Step(1, DECODE, 0, (), (first,)),
        Step(2, DECODE, 0, (), (first, second)),
        Step(3, DECODE, 0, (), (second,)),
    ]
    taken: list[tuple[bool, int, bool]] = []
    inside = False

    @contextmanager
    def counted(device: torch.device) -> Iterator[None]:
        nonlocal inside
        inside = True
        yield
        inside = False

    forward = rank.decoder.forward

    def seen(batch: Batch, cache: PagedCache) -> torch.Tensor:
        ablated = rank.runner._communicator.ablated
        taken.append((inside, len(batch.positions), ablated))
        return forward(batch, cache)

    monkeypatch.setattr(runner_module, "counted", counted)
    monkeypatch.setattr(rank.decoder, "forward", seen)
    before = rank.runner.state.position.clone()
    rank.runner.count_kernels(steps)
    assert taken == [(False, 2, True), (True, 2, True)]
    assert torch.equal(rank.runner.state.position, before)
    assert not rank.runner._communicator.ablated


def test_a_run_without_decoding_has_no_step_to_count(
    rank: Rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank.decoder, "forward", None)
    rank.runner.count_kernels([Step(0, PREFILL, 0, (), (sequence(),))])
