"""Continuous batching: who is let in, who is in which step, and what is given back at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from workers.engines.native.pages import PAGE
from workers.engines.native.scheduler import Limits, Scheduler, Step
from workers.line import Line
from workers.messages import Request, Work, dealt
from workers.records import DECODE

PLENTY = 1000


def requests(*lengths: tuple[int, int], arrivals: tuple[float, ...] = ()) -> tuple[Request, ...]:
    """Requests of (prompt tokens, output tokens)."""
    times = arrivals or (0.0,) * len(lengths)
    return tuple(
        Request(i, (1,) * prompt, output, at)
        for i, ((prompt, output), at) in enumerate(zip(lengths, times, strict=True))
    )


def scheduler(
    asked: tuple[Request, ...],
    seats: int = 4,
    micro_batches: int = 1,
    pages: int = PLENTY,
    prefill_tokens: int = PLENTY,
    chunked: bool = True,
) -> Scheduler:
    limits = Limits(micro_batches, pages, prefill_tokens, chunked)
    return Scheduler(asked, seats, limits, is_open=any(one.arrival_s for one in asked))


def steps(scheduler: Scheduler) -> Iterator[Step]:
    """Every step until all is served."""
    while (micro_batch := scheduler.next_micro_batch()) is not None:
        step = scheduler.next_step(micro_batch)
        if step is not None:
            yield step


def phases(found: Iterator[Step]) -> str:
    """P for a prefill, D for a decode."""
    return "".join(step.phase[0].upper() for step in found)


def sampled(step: Step) -> list[int]:
    return [sequence.request.index for sequence in step.sampled]


def read(step: Step) -> list[tuple[int, int, int]]:
    """(request, first token, tokens) of each chunk."""
    return [(c.sequence.request.index, c.start, c.count) for c in step.chunks]


# -- who is let in


def test_a_request_gets_its_prompt_read_and_then_a_token_a_step() -> None:
    found = list(steps(scheduler(requests((3, 4)))))
    assert phases(iter(found)) == "PDDD"  # the first token comes out of the prefill
    assert [step.num_tokens for step in found] == [3, 1, 1, 1]
    assert [step.index for step in found] == [0, 1, 2, 3]
    assert [sampled(step) for step in found] == [[0]] * 4


def test_as_many_are_let_in_as_there_are_seats() -> None:
    one = scheduler(requests(*[(2, 3)] * 5), seats=2)
    assert max(len(step.sampled) for step in steps(one)) == 2
    one = scheduler(requests(*[(2, 3)] * 5), seats=2)
    one.next_micro_batch()
    assert (one.queued, one.held()[:2]) == (3, (2, 3))


def test_a_seat_is_given_back_and_the_next_request_knows_whose_it_was() -> None:
    found = list(steps(scheduler(requests((2, 1), (2, 5), (2, 1)), seats=2)))
    sequences = {s.request.index: s for step in found for s in step.sampled}
    assert [sequences[i].seat for i in range(3)] == [0, 1, 0]
    assert sequences[2].after is sequences[0]
    assert sequences[0].after is sequences[1].after is None


def test_in_the_end_every_seat_and_page_is_free_and_every_token_made() -> None:
    lengths = [(5, 3), (70, 9), (1, 1), (130, 2), (3, 12)]
    one = scheduler(requests(*lengths), seats=3, micro_batches=2, prefill_tokens=32)
    made = Counter(index for step in steps(one) for index in sampled(step))
    assert made == {i: output for i, (_, output) in enumerate(lengths)}
    assert one.held() == (0, 0, 0)
    assert one.is_idle()


def test_a_request_waits_for_pages_and_those_behind_it_wait_too() -> None:
    long, short = (PAGE, PAGE), (1, 1)  # two pages, and one
    one = scheduler(requests(long, long, short), pages=3)
    one.next_micro_batch()
    assert one.held() == (1, 2, 2)  # the short one would fit, but requests stay in order
    order = [sampled(step) for step in steps(one)]
    assert order.index([1]) > order.index([0])


def test_a_request_that_can_never_fit_is_an_error() -> None:
    one = scheduler(requests((1, 1), (2 * PAGE, 1)), pages=2)
    with pytest.raises(ValueError, match="request 1 needs more KV pages than there are"):
        list(steps(one))


def test_a_sequence_that_is_stopped_leaves_before_its_length_is_reached() -> None:
    one = scheduler(requests((2, 50), (2, 3)))
    found = []
    for step in steps(one):
        found.append(sampled(step))
        for sequence in step.sampled:
            sequence.stopped |= sequence.request.index == 0 and sequence.generated == 2
    assert found == [[0, 1], [0, 1], [1]]


# -- prompts


def test_prompts_fill_the_budget_and_the_last_is_cut() -> None:
    found = steps(scheduler(requests((6, 1), (7, 1)), prefill_tokens=8))
    assert [read(step) for step in found] == [[(0, 0, 6), (1, 0, 2)], [(1, 2, 5)]]


def test_a_token_is_sampled_where_a_prompt_ends() -> None:
    found = steps(scheduler(requests((20, 1)), prefill_tokens=8))
    assert [(step.num_tokens, sampled(step)) for step in found] == [(8, []), (8, []), (4, [0])]


def test_without_chunks_prompts_go_whole_and_one_that_is_too_long_goes_alone() -> None:
    lengths = requests((5, 1), (4, 1), (20, 1), (2, 1))
    found = steps(scheduler(lengths, prefill_tokens=8, chunked=False))
    assert [read(step) for step in found] == [[(0, 0, 5)], [(1, 0, 4)], [(2, 0, 20)], [(3, 0, 2)]]


def test_in_a_closed_loop_the_first_prompts_are_read_before_anyone_decodes() -> None:
    assert phases(steps(scheduler(requests((8, 3), (8, 3)), prefill_tokens=4))) == "PPPPDD"


@pytest.mark.parametrize("prompt", [4, 9, 100])
def test_nobody_in_the_middle_of_an_output_waits_for_more_than_one_chunk(prompt: int) -> None:
    """A long prompt comes in when the short request beside it has ended; request 0 goes on."""
    one = scheduler(requests((1, 40), (1, 2), (prompt, 1)), seats=2, prefill_tokens=4)
    waited = longest = 0
    for step in steps(one):
        waited = 0 if 0 in sampled(step) else waited + 1
        longest = max(longest, waited)
    assert longest == 1


def test_without_chunks_prompts_go_before_decoding() -> None:
    one = scheduler(requests((1, 6), (1, 2), (4, 1), (4, 1)), seats=2, chunked=False)
    assert phases(steps(one)) == "PDPPDDDD"


# -- micro-batches


def test_micro_batches_take_turns_and_are_even() -> None:
    one = scheduler(requests(*[(1, 4)] * 7), seats=7, micro_batches=3)
    found = list(steps(one))
    assert [step.micro_batch for step in found[:6]] == [0, 1, 2, 0, 1, 2]
    assert [len(step.sampled) for step in found[:3]] == [3, 2, 2]


def test_a_request_goes_to_the_micro_batch_that_has_fewest() -> None:
    one = scheduler(requests((1, 9), (1, 2), (1, 9), (1, 9), (1, 3)), seats=4, micro_batches=2)
    where = {s.request.index: step.micro_batch for step in steps(one) for s in step.sampled}
    assert where == {0: 0, 1: 1, 2: 0, 3: 1, 4: 1}  # 4 takes the place of 1


def test_there_are_no_more_micro_batches_than_seats() -> None:
    one = scheduler(requests((1, 2), (1, 2)), seats=1, micro_batches=4)
    assert {step.micro_batch for step in steps(one)} == {0}


def test_a_replica_without_seats_serves_nothing() -> None:
    assert list(steps(scheduler((), seats=0, micro_batches=4))) == []


# -- open loops


def test_in_an_open_loop_only_those_who_have_arrived_are_let_in() -> None:
    one = scheduler(requests((2, 2), (2, 2), arrivals=(0.5, 3.0)))
    one.arrive(0.6)
    assert one.next_micro_batch() == 0
    assert one.held() == (1, 0, 1)
    step = one.next_step(0)
    assert step is not None
    assert [s.admitted_s for s in step.sampled] == [0.6]
    one.arrive(3.1)
    one.next_micro_batch()
    assert one.held()[:2] == (2, 0)
    assert one.queued == 0


def test_those_who_have_arrived_and_have_no_seat_wait() -> None:
    one = scheduler(requests(*[(2, 2)] * 3, arrivals=(0.1, 0.2, 9.0)), seats=1)
    one.arrive(0.3)
    one.next_micro_batch()
    assert one.held()[:2] == (1, 1)
    assert not one.is_idle()


def test_in_an_open_loop_a_first_token_is_not_waited_for_by_all() -> None:
    """The one that has its first token decodes between the chunks of the other's prompt."""
    one = scheduler(requests((2, 4), (8, 1), arrivals=(0.1, 0.2)), prefill_tokens=2)
    one.arrive(0.3)
    assert phases(steps(one)) == "PDPDPDPP"


# -- conversations


def talks(*turns: int, output: int = 2, arrivals: tuple[float, ...] = ()) -> tuple[Request, ...]:
    """Conversations of so many turns each, one after the other."""
    times, made = arrivals or (0.0,) * len(turns), list[Request]()
    for count, at in zip(turns, times, strict=True):
        for turn in range(count):
            after = made[-1].index if turn else None
            made.append(Request(len(made), (1, 2), output, 0.0 if turn else at, after))
    return tuple(made)


def order(found: Iterator[Step]) -> list[int]:
    """Requests by their first tokens."""
    return list(dict.fromkeys(index for step in found for index in sampled(step)))


@pytest.mark.parametrize("micro_batches", [1, 2, 3])
@pytest.mark.parametrize("seats", [1, 2, 3, 9])
def test_a_turn_goes_in_only_after_the_last_token_of_the_reply_before_it(
    seats: int, micro_batches: int
) -> None:
    asked = talks(3, 1, 4, 2, 1)
    one = scheduler(asked, seats, micro_batches)
    made: Counter[int] = Counter()
    for step in steps(one):
        for chunk in step.chunks:
            request = chunk.sequence.request
            if request.after is not None:
                assert made[request.after] == asked[request.after].output_len
                assert chunk.sequence.reply is not None
                assert chunk.sequence.reply.request.index == request.after
                assert chunk.sequence.reply.done
        made.update(sampled(step))
        assert one.held()[0] <= seats
    assert made == {one.index: one.output_len for one in asked}
    assert one.held() == (0, 0, 0)
    assert (one.queued, one.is_idle()) == (0, True)


def test_a_conversation_goes_on_before_another_one_begins() -> None:
    assert order(steps(scheduler(talks(2, 3, 2), seats=1))) == [0, 1, 2, 3, 4, 5, 6]
    assert order(steps(scheduler(talks(2, 3, 2), seats=2))) == [0, 2, 1, 3, 4, 5, 6]


def test_a_waiting_turn_holds_no_seat() -> None:
    """Of two seats one is always free for the other conversation's request."""
    one = scheduler(talks(2, 1, output=3), seats=1)
    one.next_micro_batch()
    assert (one.held()[:2], one.queued) == ((1, 1), 2)  # the second turn has not arrived


def test_no_step_waits_for_a_reply_on_its_way_through_the_stages() -> None:
    """Under a pipeline a reply's micro-batch comes round again before the turn after it goes in,
    even into another one, which is free: so its tokens have left the last stage."""
    lengths, after = (9, 1, 2, 2), {3: 2}
    asked = tuple(Request(i, (1, 2), n, 0.0, after.get(i)) for i, n in enumerate(lengths))
    found = list(steps(scheduler(asked, seats=3, micro_batches=3)))
    ended = next(step for step in found if sampled(step) == [2] and step.phase == DECODE)
    began = next(step for step in found if any(c.sequence.request.index == 3 for c in step.chunks))
    assert began.micro_batch != ended.micro_batch
    assert began.index - ended.index == 3


def test_in_an_open_loop_a_turn_arrives_with_the_reply_before_it() -> None:
    one = scheduler(talks(2, 1, arrivals=(0.5, 9.0)))
    assert (one.is_idle(), one.next_arrival_s) == (True, 0.5)
    found = []
    for now in (0.6, 0.7, 0.8, 0.9):
        one.arrive(now)
        assert not one.is_idle()  # the turn after the reply that has ended is to come at once
        micro_batch = one.next_micro_batch()
        assert micro_batch is not None
        step = one.next_step(micro_batch)
        assert step is not None
        found.append([(s.request.index, s.admitted_s) for s in step.sampled])
    assert found == [[(0, 0.6)], [(0, 0.6)], [(1, 0.8)], [(1, 0.8)]]
    assert (one.is_idle(), one.next_arrival_s) == (True, 9.0)


def test_those_who_have_arrived_go_in_the_order_of_their_arrival() -> None:
    line = Line(talks(2, 1, 1, arrivals=(0.1, 0.2, 0.9)), is_open=True)
    line.arrive(0.1)
    assert line.take().index == 0
    line.arrive(0.3)
    line.end(0)
    line.arrive(1.0)
    assert [line.take().index for _ in range(3)] == [2, 1, 3]
    assert (line.next, line.waiting, len(line)) == (None, 0, 0)


@pytest.mark.parametrize("after", [{1: 2}, {1: 1}, {1: 9}, {1: 0, 2: 0}])
def test_a_turn_that_would_wait_for_ever_is_an_error(after: dict[int, int]) -> None:
    asked = [Request(i, (1,), 1, after=after.get(i)) for i in range(3)]
    with pytest.raises(ValueError, match=rf"request {max(after)} waits for .*, and would for ever"):
        Line(asked)


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_reply_that_ends_early_lets_the_next_turn_in(micro_batches: int, is_open: bool) -> None:
    """As at an end-of-text token: all of the first turns stop at their second token."""
    asked = talks(3, 2, output=6, arrivals=(0.1, 0.2) if is_open else ())
    one = scheduler(asked, 4, micro_batches)
    if is_open:
        one.arrive(0.3)
    made: Counter[int] = Counter()
    for step in steps(one):
        made.update(sampled(step))
        for sequence in step.sampled:
            awaited = sequence.request.index in (0, 1, 3)
            sequence.stopped |= awaited and sequence.generated == 2
    assert made == {0: 2, 1: 2, 2: 6, 3: 2, 4: 6}
    assert (one.queued, one.held(), one.is_idle()) == (0, (0, 0, 0), True)


def test_a_replica_without_conversations_serves_nothing() -> None:
    work = Work(talks(3), max_concurrency=8, reuse="conversation")
    shares = [work.share(replica, 3) for replica in range(3)]
    assert [len(share.requests) for share in shares] == [3, 0, 0]
    for share in shares:
        found = steps(scheduler(share.requests, share.max_concurrency))
        assert order(found) == [one.index for one in share.requests]


def test_all_turns_of_a_conversation_are_dealt_to_one_replica() -> None:
    work = Work(talks(3, 1, 2, 1), max_concurrency=2, reuse="conversation")
    shares = [work.share(replica, 2) for replica in range(2)]
    assert [[one.index for one in share.requests] for share in shares] == [[0, 1, 2, 4, 5], [3, 6]]
    assert [share.max_concurrency for share in shares] == [1, 1]
    assert shares[0].cache_of() == {0: 0, 1: 0, 2: 0, 4: 4, 5: 4}
    assert work.num_conversations == 4


def test_whose_blocks_a_prompt_may_find_is_said_by_the_work() -> None:
    alone, every = Work(talks(2, 1), 1), Work(talks(2, 1), 1, reuse="all")
    assert list(alone.cache_of().values()) == [0, 1, 2]
    assert list(every.cache_of().values()) == [0, 0, 0]


# -- what is dealt to replicas


@pytest.mark.parametrize(
    ("count", "seats", "replicas"), [(7, 4, 2), (9, 3, 4), (0, 5, 2), (8, 8, 8)]
)
def test_every_request_and_seat_is_dealt_to_one_replica(
    count: int, seats: int, replicas: int
) -> None:
    hands = [dealt(count, seats, replica, replicas) for replica in range(replicas)]
    assert sorted(i for hand in hands for i in hand.conversations) == list(range(count))
    assert sum(hand.seats for hand in hands) == seats
    assert max(len(hand.conversations) for hand in hands) == len(hands[0].conversations)
    assert max(hand.seats for hand in hands) == hands[0].seats


def test_a_replica_gets_the_requests_of_its_seats() -> None:
    assert dealt(8, 4, 0, 2) == ([0, 2, 4, 6], 2)
    assert dealt(8, 3, 1, 2) == ([1, 4, 7], 1)
    assert dealt(8, 2, 2, 3) == ([], 0)


# -- static batching


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_static_batch_is_let_in_when_the_one_before_has_ended_entirely(
    micro_batches: int,
) -> None:
    asked = requests((2, 5), (2, 1), (2, 1), (2, 3), (2, 2))
    limits = Limits(micro_batches, PLENTY, PLENTY, static=True)
    order = [index for step in steps(Scheduler(asked, 2, limits)) for index in sampled(step)]
    assert Counter(order) == {0: 5, 1: 1, 2: 1, 3: 3, 4: 2}
    batches = [{0, 1}, {2, 3}, {4}]
    assert [index // 2 for index in order] == sorted(index // 2 for index in order)
    assert [set(order[:6]), set(order[6:10]), set(order[10:])] == batches


def test_a_static_batch_in_an_open_loop_is_of_those_that_have_arrived() -> None:
    asked = requests((2, 3), (2, 3), (2, 3), arrivals=(0.1, 0.2, 0.2))
    one = Scheduler(asked, 3, Limits(1, PLENTY, PLENTY, static=True), is_open=True)
    one.arrive(0.1)
    one.next_micro_batch()
    one.arrive(0.3)
    assert [one.next_micro_batch(), one.held()[:2]] == [0, (1, 2)]
    for _ in range(3):
        one.next_step(0)
    assert [one.next_micro_batch(), one.held()[:2]] == [0, (2, 0)]
