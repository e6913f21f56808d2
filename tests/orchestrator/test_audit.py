"""Verdicts on claimed figures, against arithmetic done by hand."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.analysis.least import least
from orchestrator.analysis.roofline import Ceilings, Closed, stages_of
from orchestrator.audit.claims import Claim, claim_of
from orchestrator.audit.limits import Card, Deployed, Placed
from orchestrator.audit.verdicts import (
    AGGREGATE,
    BITS,
    IMPOSSIBLE,
    NO_FIT,
    POSSIBLE,
    UNJUDGED,
    Audited,
    judge,
)
from orchestrator.commands.audits import audited
from orchestrator.errors import Refused
from orchestrator.plan import models
from orchestrator.plan.layouts import layouts_of

# Llama-70B by hand: hidden size 8192, 80 layers, 64 heads and 8 KV heads of 128, MLP 28672,
# vocabulary 128256.
LAYERS = 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192)
TABLE = 128256 * 8192
READ = 2 * (LAYERS + TABLE + 8192)  # bytes a pass: all but the embedding
HELD = READ + 2 * TABLE
KV_TOKEN = 2 * 80 * 8 * 128 * 2
RTX = 960e9  # bytes/s of RTX 6000 Ada
CACHE = 96 << 20
GIB = 1 << 30
RESERVE = 3 * GIB


def said(**fields: Any) -> Audited:
    """The verdict on a claim of a 70B on RTX 6000 Ada."""
    return audited([claim_of({"model": "llama-70b", "gpu": "RTX 6000 Ada", **fields}, "claim")])[0]


def placed(layout: str = "tp4", model: str = "llama-70b") -> Placed:
    shape = models.resolve(model, "dummy").shape
    return Placed(layouts_of(shape, layout, None)[0], shape, "bfloat16")


def card(**changes: Any) -> Card:
    ceilings = Ceilings(changes.pop("hbm", RTX), {"bfloat16": 364.2e12}, CACHE, "datasheet")
    fields: Mapping[str, Any] = {"memory": 48 * GIB, "link": 32e9, **changes}
    return Card("card", ceilings, **fields)


def deployed(layout: str = "tp4", on: Card | None = None, **changes: Any) -> Deployed:
    return Deployed(placed(layout), on or card(), **{"bits": 16.0, "kv_bits": 16.0, **changes})


# -- each verdict


def test_one_request_reads_all_weights_a_token_and_is_no_faster_than_that():
    found = said(strategy="tp4", per_request_throughput=27.0, concurrency=1)
    assert found.verdict == POSSIBLE
    assert found.limit == pytest.approx(RTX / (READ / 4 - CACHE), rel=1e-3)  # 27.7


def test_the_article_under_tp4_is_of_at_least_three_requests():
    found = said(strategy="tp4", output_throughput=68.2)
    one = RTX / (READ / 4 - CACHE)
    assert 2 * one < 68.2 < 3 * one
    assert (found.verdict, found.requests) == (AGGREGATE, 3)
    assert found.sentence == "only as an aggregate over >= 3 requests"


def test_the_stages_of_a_pipeline_take_turns_for_one_request():
    found = said(strategy="pp4", output_throughput=61.7)
    one = RTX / (READ - 4 * CACHE)  # 6.9
    assert found.limit == pytest.approx(one, rel=1e-3)
    assert (found.verdict, found.requests) == (AGGREGATE, math.ceil(61.7 / one))


@pytest.mark.parametrize("bits", [16, 8])
def test_a_gpu_that_keeps_a_quarter_of_the_weights_gets_the_others_over_its_link(bits: int):
    found = said(strategy="dp4zero3", per_request_throughput=0.2, bits=bits)
    brought = (READ - HELD / 4) * bits / 16 / 32e9  # at PCIe's rate: 3.3 s in 16 bits
    assert found.limit == pytest.approx(1 / brought, rel=1e-3)
    assert f"sends for {brought:.3g} s" in found.arithmetic[-1]
    assert found.verdict == POSSIBLE


def test_fewer_bits_are_named_to_a_tenth():
    found = said(strategy="tp4", tpot_ms=20.0)
    bits = 16 * (20e-3 * RTX + CACHE) / (READ / 4)
    assert found.verdict == BITS
    assert found.bits == math.floor(10 * bits) / 10
    assert found.sentence == f"needs <= {found.bits:g} bits a weight"


def test_weights_that_do_not_fit_are_refused_before_any_rate():
    found = said(output_throughput=19.9)
    assert (found.verdict, found.limit) == (NO_FIT, None)
    bits = 16 * (48 * GIB - RESERVE) / HELD
    assert found.bits == math.floor(10 * bits) / 10
    missing = (HELD + RESERVE - 48 * GIB) / 32e9
    assert f"take {missing:.3g} s of each pass" in found.arithmetic[-1]


def test_what_one_bit_a_weight_cannot_reach_is_impossible():
    found = said(strategy="tp4", per_request_throughput=5000.0, concurrency=2)
    assert RTX / (READ / 4 / 16 - CACHE) < 5000
    assert (found.verdict, found.bits) == (IMPOSSIBLE, None)


@pytest.mark.parametrize(
    ("figure", "needed"),
    [
        ({"comm_pct": 22}, "time of a step"),
        ({"speedup": 2.3}, "baseline"),
        ({"change_pct": -35}, "baseline"),
        ({"utilization_pct": 75}, "tok/s would"),
        ({"best_concurrency": 32}, "levels beside it"),
    ],
)
def test_what_no_arithmetic_can_judge_says_what_would_be_needed(figure, needed):
    alone, with_model = audited([Claim(**figure)])[0], said(strategy="tp4", **figure)
    assert alone.verdict == with_model.verdict == UNJUDGED
    assert needed in alone.arithmetic[-1]
    assert said(gpus=1, **figure).verdict == NO_FIT  # memory comes first


def test_a_claim_without_a_figure_is_one_of_memory():
    assert said(strategy="tp2pp2").verdict == POSSIBLE
    assert said(strategy="dp4", model="qwen2.5-32b").verdict == NO_FIT


# -- memory


def test_the_reserve_and_the_kv_of_one_request_count():
    tokens = 8192 + 2048 - 1
    on = deployed(lengths=(8192, 2048))
    assert on.needed == pytest.approx(HELD / 4 + tokens * KV_TOKEN / 4, rel=1e-3)
    enough = on.needed + RESERVE
    assert deployed(on=card(memory=enough), lengths=(8192, 2048)).fits
    short = deployed(on=card(memory=enough - 1), lengths=(8192, 2048))
    assert not short.fits
    found = judge(Claim(model="llama-70b", gpu="L40S"), [short])
    assert found.verdict == NO_FIT
    assert "it would fit without that reserve" in found.arithmetic[0]


def test_the_fullest_gpu_of_a_pipeline_is_that_of_one_stage():
    """Most weights and most KV need not be on the same GPU."""
    on = deployed("pp4", lengths=(30_000, 1))
    stages = zip(on.placed.weights, on.stages, strict=True)
    assert on.needed == max(weights + 30_000 * stage.kv_bytes for weights, stage in stages)
    assert len({stage.kv_bytes for stage in on.stages}) == 2  # 19 or 21 layers


def test_no_cache_makes_weights_fit():
    ceilings = Ceilings(RTX, {"bfloat16": 364.2e12}, 100 * GIB, "datasheet")
    assert not deployed("tp1", Card("card", ceilings, 48 * GIB, None)).fits
    assert not deployed("tp1", lengths=(1000, 10), prefix_hits=0.99).fits


def test_requests_whose_kv_does_not_fit_together_are_not_at_once():
    on = deployed(lengths=(100_000, 1001))
    held = (100_000 + 500) * KV_TOKEN / 4
    free = 48 * GIB - RESERVE - on.fullest[0]
    assert on.seats == int(free / held) == 1
    found = said(strategy="tp4", input_len=100_000, output_len=1001, output_throughput=60.0)
    assert found.verdict == BITS  # more requests have no room


def test_a_card_whose_memory_is_not_known_holds_everything():
    assert deployed("tp1", card(memory=None)).fits
    assert said(gpu="H800", gpus=1).verdict == POSSIBLE


def test_claimed_memory_lies_between_what_is_needed_and_what_there_is():
    needed = HELD / 4 / GIB  # 32.9 GiB
    verdicts = {gb: said(strategy="tp4", memory_gb=gb).verdict for gb in (60, 40, 30, 1)}
    assert 30 < needed < 40
    assert verdicts == {60: NO_FIT, 40: POSSIBLE, 30: BITS, 1: IMPOSSIBLE}


# -- time


def test_all_parts_of_the_context_are_read_by_each_request():
    on = deployed(lengths=(256, 128))
    context = 256 + 126 / 2  # the first token comes from the prompt
    read = READ / 4 + 32 * context * KV_TOKEN / 4 - CACHE
    assert on.token_s(32) == pytest.approx(read / RTX, rel=1e-3)


def test_many_requests_are_bound_by_arithmetic():
    on = deployed("tp1", card(memory=None, link=None))
    assert on.throughput(10_000) == pytest.approx(
        364.2e12 / READ, rel=1e-3
    )  # 2 operations a weight


def test_the_first_token_waits_for_the_prompt_or_for_the_weights():
    long = deployed(on=card(link=None), lengths=(4096, 1))
    pairs = 4096 * 4097 / 2
    flops = (2 * LAYERS * 4096 + 2 * TABLE + 4 * 80 * 8192 * pairs) / 4
    assert long.first_token_s() == pytest.approx(flops / 364.2e12, rel=1e-3)
    short = deployed(on=card(link=None), lengths=(16, 1))
    assert short.first_token_s() == pytest.approx((READ / 4 - CACHE) / RTX, rel=1e-3)


def test_a_prefix_that_is_cached_is_not_computed_again():
    whole, most = (deployed(lengths=(16384, 16), prefix_hits=share) for share in (0.0, 0.75))
    assert (most.computed, most.cached) == (4096, 12288)
    pairs = sum(range(12289, 16385))
    flops = (2 * LAYERS * 4096 + 2 * TABLE + 4 * 80 * 8192 * pairs) / 4
    assert most.prompt_s(1) == pytest.approx(flops / 364.2e12, rel=1e-3)
    assert most.first_token_s() < whole.first_token_s() / 3
    assert most.throughput(8) > whole.throughput(8)
    assert deployed(lengths=(100, 16), prefix_hits=0.9999).computed == 1


def test_a_prefix_that_is_cached_makes_a_claim_possible():
    fields = {"strategy": "tp4", "input_len": 16384, "output_len": 16, "ttft_ms": 800.0}
    assert said(**fields).verdict == BITS
    assert said(**fields, prefix_hits=0.75).verdict == POSSIBLE


def test_messages_take_their_time_over_the_slowest_way():
    on = deployed("tp4")
    summed = 161 * 1024 * 8192 * 2  # two a layer, and the embedding
    assert on.sent_s(1024, 1) == pytest.approx(summed / 32e9, rel=1e-3)
    assert deployed("tp4", card(link=None)).sent_s(1024, 1) == 0.0
    assert deployed("tp4", card(link=1e6)).token_s(1) == pytest.approx(161 * 16384 / 1e6, rel=1e-3)


@pytest.mark.parametrize(
    ("concurrency", "words"),
    [
        (2, "With 1 request at once in each of 2 of 4 replicas,"),
        (4, "With 1 request at once in each of 4 replicas,"),
        (6, "With 1 or 2 requests at once in each of 4 replicas,"),
        (8, "With 2 requests at once in each of 4 replicas,"),
    ],
)
def test_the_words_deal_requests_out_as_the_limit_does(concurrency, words):
    found = said(strategy="dp4", model="llama-8b", concurrency=concurrency, output_throughput=1.0)
    assert words in found.arithmetic[-1]


def test_replicas_share_requests_and_add_up():
    one, four = (deployed(layout, card(memory=None)) for layout in ("tp1", "tp1dp4"))
    assert four.throughput(8) == pytest.approx(4 * one.throughput(2))
    assert four.throughput(3) == pytest.approx(3 * one.throughput(1))
    assert four.token_s(8) == one.token_s(2)


def test_guessed_tokens_make_a_pass_worth_several():
    assert said(strategy="tp4", per_request_throughput=60.0, concurrency=2).verdict == BITS
    fields = {"per_request_throughput": 60.0, "concurrency": 2, "tokens_per_pass": 2.5}
    assert said(strategy="tp4", **fields).verdict == POSSIBLE


def test_more_requests_and_fewer_bits_never_make_less():
    for layout in ("tp4", "pp4", "tp2pp2"):
        on = deployed(layout, lengths=(256, 128))
        made = [on.throughput(requests) for requests in range(1, 130)]
        assert made == sorted(made)
        speeds = [on.with_bits(bits).token_s(3) for bits in range(1, 17)]
        assert speeds == sorted(speeds)


def test_the_speed_of_one_request_among_several_is_no_sum():
    found = said(strategy="tp4", concurrency=8, per_request_throughput=40.0)
    assert (found.verdict, found.requests) == (BITS, None)


def test_a_model_that_stays_in_the_cache_has_no_limit():
    found = said(model="tiny", bits=4, per_request_throughput=1e9)
    assert (found.verdict, found.limit) == (POSSIBLE, None)
    assert "nothing limits the rate" in found.arithmetic[-1]
    assert said(model="tiny", bits=4, tpot_ms=1e-9).verdict == POSSIBLE


@pytest.mark.parametrize("layout", ["tp4", "pp4", "tp2pp2"])
def test_no_limit_is_below_the_bound_of_runs(layout):
    """That bound counts a batch from its first prompt on, this one a steady state."""
    on = deployed(layout, card(link=None), lengths=(1024, 64))
    stages = stages_of(on.placed.placement, on.placed.model, on.placed.precision)
    for requests in (1, 2, 5, 32):
        load = Closed.equal(1024, 64, requests * 20, requests)
        bound = load.output_tokens / least(stages, load, on.rates, separate=False).seconds
        assert 0.95 * on.throughput(requests) < bound <= on.throughput(requests) * (1 + 1e-9)


# -- candidates


def test_of_several_cards_and_layouts_the_kindest_counts():
    both = said(gpu="L40S, RTX 6000 Ada", strategy="tp4", output_throughput=68.2)
    assert both.gpu == "RTX 6000 Ada"  # 960 GB/s, not 864
    any_layout = said(gpus=4, output_throughput=20.0)
    assert (any_layout.verdict, any_layout.layout) == (POSSIBLE, "tp4")


def test_fp8_is_eight_bits_a_weight_and_of_kv():
    found = said(strategy="tp4", dtype="fp8", per_request_throughput=50.0, concurrency=1)
    assert found.verdict == POSSIBLE
    assert found.limit == pytest.approx(RTX / (READ / 8 - CACHE), rel=1e-3)
    assert Claim(dtype="fp8", speedup=2).cache_bits == 8
    assert Claim(bits=4, speedup=2).cache_bits == 8
    assert Claim(dtype="float32", speedup=2).cache_bits == 32


def test_all_that_was_measured_is_possible():
    table = Path(__file__).parents[2] / "docs" / "results" / "peers-4xh200.csv"
    rows = [row for row in csv.DictReader(table.open()) if row["engine"] == "vllm"]
    claims = [
        Claim(
            model=row["model"],
            gpu="H200",
            strategy=row["strategy"],
            dtype="fp8" if row["quantization"] == "fp8" else "bfloat16",
            scenario=row["scenario"],
            concurrency=int(row["max_concurrency"]),
            output_throughput=float(row["output_throughput"]),
        )
        for row in rows
    ]
    assert len(claims) > 20
    assert {one.verdict for one in audited(claims)} == {POSSIBLE}


# -- what cannot be audited


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "lama-70b"}, "there is no model 'lama-70b'"),
        ({"gpu": "L41S"}, "there is no data sheet of the GPU 'L41S'; known are GB200"),
        ({"strategy": "xx3"}, "there is no strategy 'xx'"),
        ({"strategy": "tp4", "gpus": 8}, "tp4 is a layout of 4 GPUs, and 8 are named"),
        ({"strategy": "tp64pp80dp64"}, "is a layout of 327680 GPUs"),
        ({"gpus": 4096}, "name the strategy"),
    ],
)
def test_what_is_not_known_is_said_in_one_line(fields, words):
    with pytest.raises(Refused) as caught:
        said(**fields)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        ("tp3", "64 heads of llama-70b do not divide over tp=3; use 1, 2, 4, 8, 16, 32, 64."),
        ("pp100", "pp=100 is more stages than llama-70b has layers; use 1 to 80."),
    ],
)
def test_a_layout_that_the_model_cannot_have_is_impossible(strategy, reason):
    found = said(strategy=strategy, output_throughput=1.0)
    assert (found.verdict, found.layout, found.arithmetic) == (IMPOSSIBLE, strategy, (reason,))


def test_beyond_a_bridge_bytes_go_over_pcie():
    switched = card(link=300e9, host_link=64e9)
    bridged = card(link=300e9, host_link=64e9, bridge=2)
    for layout, times in (("tp2", 1.0), ("tp4", 300 / 64)):
        slow, fast = (deployed(layout, one).sent_s(1, 1) for one in (bridged, switched))
        assert slow == pytest.approx(times * fast)
