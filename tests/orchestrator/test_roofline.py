"""The least time for a load, against arithmetic done by hand."""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import pytest

from orchestrator.analysis.least import least, least_decode_s
from orchestrator.analysis.roofline import Closed, Rates, Stage, stages_of
from orchestrator.plan import models
from strategies import Load, Topology, plan_layout
from strategies.precision import Precision

HUGE = 1e30  # a rate that costs nothing
HBM = Rates(memory=4.2e12, flops=HUGE, cache_bytes=0)


def stages(layout, model="llama-70b", dtype="bfloat16"):
    shape = models.resolve(model, "dummy").shape
    return stages_of(
        plan_layout(layout, shape, Load(256, 128, 100), Topology.uniform(8)).placement,
        shape,
        Precision(dtype),
    )


def one_token(layout, model="llama-70b", requests=1):
    """Seconds from the first to the second token, without the KV of a prompt."""
    return least(stages(layout, model), Closed.equal(0, 2, requests, requests), HBM).decode_s


# -- what the reference of the project says


@pytest.mark.parametrize(("model", "weights"), [("llama-70b", 139.0e9), ("qwen2.5-32b", 64.0e9)])
def test_a_decode_step_streams_every_weight_but_the_embedding(model, weights):
    assert sum(s.weight_bytes for s in stages("tp4", model)) * 4 == pytest.approx(weights, rel=1e-3)
    assert sum(s.weight_bytes for s in stages("pp4", model)) == pytest.approx(weights, rel=1e-3)


@pytest.mark.parametrize(
    ("layout", "model", "milliseconds"),
    [
        ("tp4", "llama-70b", 8.3),
        ("pp4", "llama-70b", 33.1),
        ("tp2pp2", "llama-70b", 16.55),
        ("tp4", "qwen2.5-32b", 3.8),
        ("pp4", "qwen2.5-32b", 15.2),
    ],
)
def test_a_decode_step_at_4_2_terabytes_a_second(layout, model, milliseconds):
    assert 1e3 * one_token(layout, model) == pytest.approx(milliseconds, rel=5e-3)


@pytest.mark.parametrize("requests", [1, 2, 3, 4, 7, 100])
def test_a_round_through_a_pipeline_streams_all_weights_however_many_requests_there_are(requests):
    """Alone, the stages run one after another; in four micro_batches, each streams its weights four
    times."""
    assert (
        one_token("pp4", requests=requests)
        >= 0.999 * sum(s.weight_bytes for s in stages("pp4")) / 4.2e12
    )


def test_kv_is_320_kib_a_token_in_all():
    assert sum(s.kv_bytes for s in stages("pp4")) == 320 << 10
    assert stages("tp4")[0].kv_bytes == (320 << 10) // 4


def test_a_tied_head_is_read_by_the_last_stage_alone():
    first, last = stages("pp2", "tiny", "float32")
    assert (first.head_flops, last.head_flops) == (0, 2 * 2048 * 256)
    assert last.weight_bytes - first.weight_bytes == 4 * (2048 * 256 + 256)  # and the last norm


# -- the formula

UNIT = Rates(memory=1.0, flops=1.0, cache_bytes=0)  # a byte and an operation a second
READING = Rates(memory=1.0, flops=HUGE, cache_bytes=0)  # a byte a second, operations for nothing
STREAM = Stage(weight_bytes=100, kv_bytes=1, token_flops=0, head_flops=0, attention_flops=0)


def test_kv_is_read_once_for_each_token_of_each_request():
    """Tokens 2, 3, 4 of a prompt of 10 read 10, 11 and 12 tokens of KV; two requests share the
    weights."""
    assert least([STREAM], Closed.equal(10, 4, 1, 1), READING).decode_s == 3 * 100 + 10 + 11 + 12
    assert least([STREAM], Closed.equal(10, 4, 2, 2), READING).decode_s == 3 * 100 + 2 * (
        10 + 11 + 12
    )


def test_a_second_wave_of_requests_is_served_after_the_first():
    assert Closed.equal(10, 4, 6, 2).rounds == 9
    assert (
        Closed.equal(10, 4, 3, 2).rounds == 4.5
    )  # a full wave and half a one: no engine does with fewer passes
    assert Closed.equal(10, 4, 1, 8).rounds == 3


def test_prefill_computes_every_token_and_attends_to_those_before():
    stage = Stage(0, 0, token_flops=5, head_flops=7, attention_flops=2)
    assert stage.prefill_flops(Closed.equal(3, 1, 2, 2)) == 2 * (3 * 5 + 7 + 2 * (1 + 2 + 3))
    assert least([stage], Closed.equal(3, 1, 2, 2), UNIT).seconds == 68


def test_a_window_is_read_for_the_tokens_that_it_holds_beside_the_new_one():
    """Tokens 2 to 5 of a prompt of 10 would read 10 to 13; a window of 12 holds 11 others."""
    windowed = replace(STREAM, windows=((12, 1),))
    load = Closed.equal(10, 5, 2, 2)
    assert least([windowed], load, READING).decode_s == 4 * 100 + 2 * (10 + 11 + 11 + 11)
    half = replace(STREAM, windows=((12, 3), (None, 3)))
    assert half.context(load) == (10 + 11 + 11 + 11 + 10 + 11 + 12 + 13) / 8
    for window in (1, 5, 100):
        one = replace(STREAM, windows=((window, 1),))
        assert one.context(load) == sum(min(c, window - 1) for c in range(10, 14)) / 4


def test_in_prefill_a_token_attends_to_its_window():
    stage = Stage(0, 0, token_flops=5, head_flops=7, attention_flops=2, windows=((2, 1),))
    assert stage.prefill_flops(Closed.equal(4, 1, 1, 1)) == 4 * 5 + 7 + 2 * (1 + 2 + 2 + 2)


def test_each_stage_has_the_windows_of_its_layers():
    shape = replace(
        models.resolve("tiny", "dummy").shape,
        sliding_window=64,
        sliding_layers=(False, False, False, True),
    )
    placement = plan_layout("pp2", shape, Load(256, 128, 1), Topology.uniform(2)).placement
    first, last = stages_of(placement, shape, Precision("float32"))
    assert (first.windows, last.windows) == (((None, 2),), ((None, 1), (64, 1)))
    assert last.kv_bytes == first.kv_bytes  # what is kept is whole
    load = Closed.equal(256, 2, 1, 1)
    assert (first.context(load), last.context(load)) == (256, (256 + 63) / 2)


def test_a_pass_takes_the_longer_of_reading_and_computing():
    both = Stage(100, 0, token_flops=30, head_flops=0, attention_flops=0)
    assert both.pass_s(1, 0, UNIT) == 100
    assert both.pass_s(10, 0, UNIT) == 300


def test_what_a_cache_can_hold_is_not_read():
    for cache_bytes, seconds in ((60, 40), (500, 0)):
        found = least([STREAM], Closed.equal(0, 2, 1, 1), replace(READING, cache_bytes=cache_bytes))
        assert (found.prefill_s, found.decode_s) == (seconds, seconds)


def test_micro_batches_share_out_the_kv_of_a_pipeline():
    """Two stages, two requests with 50 tokens each: a micro-batch streams the weights of both
    stages for its prompt and for its token, and reads the KV of one request in each."""
    found = least([STREAM, STREAM], Closed.equal(50, 2, 2, 2), READING)
    assert (found.micro_batches, found.prefill_s, found.decode_s) == (2, 200, 2 * (100 + 50))
    alone = least([STREAM, STREAM], Closed.equal(50, 2, 1, 1), READING)
    assert (alone.prefill_s, alone.decode_s) == (200, 2 * (100 + 50))


# -- prompts stream the weights


def test_a_short_prompt_takes_as_long_as_streaming_the_weights_and_a_long_one_as_computing():
    stage = Stage(100, 0, token_flops=5, head_flops=0, attention_flops=0)
    assert least([stage], Closed.equal(4, 1, 1, 1), UNIT).seconds == 100
    assert least([stage], Closed.equal(40, 1, 1, 1), UNIT).seconds == 40 * 5


def test_each_wave_of_requests_streams_the_weights_for_its_prompts():
    """Seven requests in three seats: the fullest seat has three prompts after one another."""
    assert Closed.equal(4, 1, 7, 3).waves == 3
    found = least([STREAM], Closed.equal(4, 1, 7, 3), READING)
    assert (found.prefill_passes, found.prefill_s) == (3, 300)


def test_8_tokens_in_and_2_out_read_the_weights_twice():
    """Qwen2.5-32B under tp2, one request, at the rates of two H200: 4296.3 GB/s, 702.6 TFLOP/s.

    A GPU has half of 64 layers of (2 x 5120 x 5120 + 2 x 5120 x 1024 + 3 x 5120 x 27648) and of a
    head of 5120 x 152064 parameters, in 2 bytes each: 32.0 GB, 7.45 ms. The prompt computes 8 x 2
    operations a parameter but one head alone: 0.35 ms, which reading hides. Two tokens in two
    passes of 7.45 ms are 134 a second. Were the prompt's arithmetic all that it costs, they would
    be 257; were it never hidden, 131, which is no bound, as kernels read while they compute.
    """
    layer = 2 * 5120 * 5120 + 2 * 5120 * 1024 + 3 * 5120 * 27648
    head = 5120 * 152064
    stream = (64 * layer + head) / 4296.3e9
    prompt = (8 * 64 * layer + head) / 702.6e12
    assert (1e3 * stream, 1e3 * prompt) == (pytest.approx(7.45, 1e-3), pytest.approx(0.35, 0.05))
    rates = Rates(memory=4296.3e9, flops=702.6e12, cache_bytes=60 << 20)
    found = least(stages("tp2", "qwen2.5-32b"), Closed.equal(8, 2, 1, 1), rates)
    assert found.prefill_s == pytest.approx(found.decode_s, rel=1e-3)
    assert 2 / found.seconds == pytest.approx(2 / (2 * stream), rel=5e-3)
    assert 2 / found.seconds == pytest.approx(134.5, abs=0.2)
    assert 2 / (prompt + found.decode_s) == pytest.approx(257, abs=1)
    assert 2 / (prompt + found.seconds) == pytest.approx(131, abs=1)


def test_engines_that_mix_prompts_and_tokens_hide_prompts_in_the_passes_that_read():
    """A decode pass reads for 100 and computes for 50, so two of them can compute 100 of a prompt's
    200; the first pass of all has no decoded tokens."""
    stage = Stage(100, 0, token_flops=50, head_flops=0, attention_flops=0)
    assert least([stage], Closed.equal(4, 3, 1, 1), UNIT).seconds == 200 + 2 * 100
    assert least([stage], Closed.equal(4, 3, 1, 1), UNIT, separate=False).seconds == 100 + 2 * 100


def test_engines_that_mix_need_one_pass_of_prompts_alone_however_many_waves_there_are():
    mixed = least([STREAM], Closed.equal(4, 2, 6, 2), READING, separate=False)
    assert (mixed.prefill_passes, mixed.prefill_s) == (1, 100)
    assert least([STREAM], Closed.equal(4, 2, 6, 2), READING).prefill_s == 300


def test_a_decode_that_computes_for_longer_than_it_reads_hides_no_prompt():
    stage = Stage(100, 0, token_flops=200, head_flops=0, attention_flops=0)
    for separate in (True, False):
        assert least([stage], Closed.equal(4, 3, 1, 1), UNIT, separate).seconds == 4 * 200 + 2 * 200


@pytest.mark.parametrize("layout", ["tp4", "pp4", "tp2pp2"])
@pytest.mark.parametrize(
    "load", [Closed.equal(8, 2, 1, 1), Closed.equal(256, 128, 96, 32), Closed.equal(8, 1, 9, 4)]
)
def test_no_bound_is_longer_for_an_engine_that_may_do_more(layout, load):
    rates = Rates(memory=4.2e12, flops=8e14, cache_bytes=0)
    mixed, alone = (least(stages(layout), load, rates, separate) for separate in (False, True))
    assert mixed.seconds <= alone.seconds
    assert mixed.decode_s > 0 or not load.decoded


# -- no schedule is faster


def passes(requests, seats, budget, mix) -> Iterator[list[tuple[int, int]]]:
    """The passes of a micro-batch of `seats`: of each the positions that it computes, with the
    length of the prompt that each belongs to.

    requests: (tokens in, tokens out) of each. budget: most prompt tokens in a pass. mix: prompts
    and decoded tokens may share a pass.
    """
    waiting = deque(requests)
    # of each seat: the position that it computes next, its prompt's length, its last position
    running: list[tuple[int, int, int]] = []
    while waiting or running:
        while waiting and len(running) < seats:
            inputs, outputs = waiting.popleft()
            running.append((0, inputs, inputs + outputs - 2))
        computed, left, after = [], budget, []
        in_prompts = any(at < inputs for at, inputs, _ in running)
        for at, inputs, last in running:
            stop = at
            if at < inputs:
                stop = min(inputs, at + left)
                left -= stop - at
            elif mix or not in_prompts:
                stop = at + 1
            computed += [(place, inputs) for place in range(at, stop)]
            after += [(stop, inputs, last)] if stop <= last else []
        yield computed
        running = after


def cost(stage, computed, rates):
    """Seconds of one pass: it reads the weights and the KV of what is decoded, and computes."""
    read = stage.weight_bytes
    read += stage.kv_bytes * sum(place for place, inputs in computed if place >= inputs)
    flops = len(computed) * stage.token_flops
    flops += sum(place >= inputs - 1 for place, inputs in computed) * stage.head_flops
    seen = sum(place + (place < inputs) for place, inputs in computed)
    flops += seen * stage.attention_flops
    return max(read / rates.memory, flops / rates.flops)


def simulated(stages, dealt, rates, budget, mix):
    """Seconds of a schedule: each micro-batch takes its passes one after another, through the
    stages in order; a stage takes one at a time, as they come. dealt: (requests, seats) of each."""
    left = [passes(requests, seats, budget, mix) for requests, seats in dealt]
    free, end = [0.0] * len(stages), 0.0
    events = [(0.0, batch, 0, next(left[batch])) for batch in range(len(dealt))]
    heapq.heapify(events)
    while events:
        ready, batch, index, computed = heapq.heappop(events)
        free[index] = max(ready, free[index]) + cost(stages[index], computed, rates)
        end = max(end, free[index])
        following = computed if index + 1 < len(stages) else next(left[batch], None)
        if following is not None:
            heapq.heappush(events, (free[index], batch, (index + 1) % len(stages), following))
    return end


def some_stages(dice):
    return [
        Stage(*(dice.choice((1, 20, 400)) for _ in range(2)), *dice.choices((0, 1, 7, 60), k=3))
        for _ in range(dice.randint(1, 3))
    ]


def check_against_schedules(parts, load, dealt):
    for mix, budget in itertools.product((False, True), (1, 5, 1000)):
        took = simulated(parts, dealt, UNIT, budget, mix)
        assert least(parts, load, UNIT, separate=not mix).seconds <= took * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(60))
def test_no_schedule_is_faster_than_the_bound(seed):
    """Micro-batches, chunks of prompts and mixed passes of every kind, in one to three stages."""
    dice = random.Random(seed)
    parts = some_stages(dice)
    micro_batches, waves, seats = dice.randint(1, 4), dice.randint(1, 3), dice.randint(1, 3)
    lengths = dice.randint(1, 30), dice.randint(1, 12)
    load = Closed.equal(*lengths, waves * seats * micro_batches, seats * micro_batches)
    check_against_schedules(parts, load, [([lengths] * waves * seats, seats)] * micro_batches)


@pytest.mark.parametrize("seed", range(120))
def test_no_schedule_of_mixed_lengths_is_faster_than_the_bound(seed):
    """Micro-batches are of any size too, and requests are dealt out in any way."""
    dice = random.Random(seed)
    dealt = [
        (
            [(dice.randint(1, 30), dice.choice((1, 2, 12, 40))) for _ in range(dice.randint(1, 5))],
            dice.randint(1, 3),
        )
        for _ in range(dice.randint(1, 4))
    ]
    every = [one for requests, _ in dealt for one in requests]
    load = Closed.of(every, sum(seats for _, seats in dealt))
    check_against_schedules(some_stages(dice), load, dealt)


def test_a_batch_lasts_as_long_as_its_longest_request():
    """Nine requests of 2 tokens and one of 101, all at once: 100 decode passes, not 11."""
    load = Closed.of([(0, 2)] * 9 + [(0, 101)], seats=10)
    assert (load.decoded, load.rounds, load.longest.passes) == (109, 10.9, 100)
    assert least([STREAM], load, READING).decode_s >= 100 * 100


# -- decode alone


@pytest.mark.parametrize("cache_bytes", [0, 50, 500])
def test_decode_alone_takes_what_it_takes_where_prompts_weigh_nothing(cache_bytes):
    """Looked for over every number of micro-batches, and not over those that can be best alone."""
    draw = random.Random(5)
    for _ in range(200):
        found = tuple(
            Stage(draw.randint(1, 400), draw.randint(0, 9), 0, draw.randint(0, 9), 0)
            for _ in range(draw.randint(1, 4))
        )
        free = tuple(replace(stage, prompt_weight_bytes=0) for stage in found)
        requests = draw.randint(1, 12)
        load = Closed.equal(0, draw.randint(2, 9), requests, requests)
        rates = Rates(memory=1.0, flops=draw.choice([0.1, 1.0, 10.0]), cache_bytes=cache_bytes)
        whole = least(tuple(replace(one, head_flops=0) for one in free), load, rates)
        rates = Rates(rates.memory, HUGE, cache_bytes)
        assert least_decode_s(found, load, rates) == pytest.approx(whole.decode_s)
