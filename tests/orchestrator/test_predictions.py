"""The cost model against arithmetic by hand, and against what was measured."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from ideal import IDEAL

from orchestrator.analysis.roofline import Ceilings
from orchestrator.plan import models
from orchestrator.predict import factors
from orchestrator.predict.hardware import EAGER, GRAPH, Fabric, Hardware, Link, Span, of_sheet
from orchestrator.predict.interval import estimate
from orchestrator.predict.layouts import Case, rankings
from orchestrator.predict.load import Asked, Share, median
from orchestrator.predict.parts import NAMES, Parts
from orchestrator.predict.passes import PREFILL, Placed, Setting, Work
from orchestrator.predict.prediction import IMPOSSIBLE, UNKNOWN, NoPrediction, Prediction, predict
from orchestrator.predict.replica import Lengths, Phase, Wave
from strategies import Load, Placement, Topology, memory, plan_layout, with_stages
from strategies.precision import Precision
from strategies.registry import factorisations

BF16 = Precision("bfloat16")
KNOWN = factors.load()
TORCH = KNOWN.of("torch")
# 4.2 TB/s and 800 TFLOP/s, joined by links without latency.
ROUND = Hardware(
    name="H200",
    ceilings=Ceilings(4.2e12, {"bfloat16": 8e14, "float8_e4m3fn": 16e14}, 0, "calibrated"),
    memory_bytes=141 * 10**9,
    power_w=700,
    fabric=Fabric(Link(4e11, 0.0, "test"), Link(5e10, 1e-6, "test")),
)
H200 = of_sheet("h200", KNOWN.attainable, KNOWN.calibrations["H200"], 8)
SHORT = Lengths(256, 128, 2048)


def setting(
    layout: str,
    model: str = "llama-70b",
    engine: factors.EngineFactors = IDEAL,
    hardware: Hardware = ROUND,
    precision: Precision = BF16,
) -> Setting:
    shape = models.resolve(model, "dummy").shape
    ranks = math.prod(int(n) for n in "".join(c if c.isdigit() else " " for c in layout).split())
    topology = Topology.uniform(ranks, hardware.memory_bytes or 0)
    found = plan_layout(layout, shape, Load(256, 128, 1), topology)
    return Setting(Placed(found.placement, shape, precision, hardware), engine)


VLLM = KNOWN.of("vllm")


def predicted(layout: str, concurrency: int, num_prompts: int | None = None, **at) -> Prediction:
    lengths = at.pop("lengths", SHORT)
    found = predict(setting(layout, **at), layout, Asked(lengths, concurrency, num_prompts, 3.0))
    assert isinstance(found, Prediction), found
    return found


@pytest.mark.parametrize(
    ("layout", "model", "ms"),
    [
        ("tp4", "llama-70b", 8.3),
        ("pp4", "llama-70b", 33.1),
        ("tp4", "qwen2.5-32b", 3.8),
        ("pp4", "qwen2.5-32b", 15.2),
        ("dp4", "qwen2.5-32b", 15.2),
        ("tp2pp2", "llama-70b", 16.6),
    ],
)
def test_an_ideal_step_streams_the_weights_that_a_user_waits_for(layout, model, ms):
    # 139.0 and 64.0 GB at 4.2 TB/s, of one GPU in turn or of four at once; KV adds next to nothing
    assert predicted(layout, 1, model=model).tpot_ms.value == pytest.approx(ms, rel=0.02)


@pytest.mark.parametrize(
    ("layout", "model", "ms"),
    [
        ("tp4", "llama-70b", 12.8),
        ("pp4", "llama-70b", 36.0),
        ("tp2pp2", "llama-70b", 20.6),
        ("tp4", "qwen2.5-32b", 7.4),
        ("pp4", "qwen2.5-32b", 17.4),
        ("tp2pp2", "qwen2.5-32b", 11.1),
        ("dp4", "qwen2.5-32b", 17.1),
    ],
)
def test_steps_that_were_measured_on_four_gpus_are_predicted_within_a_tenth(layout, model, ms):
    found = predicted(layout, 1, model=model, engine=TORCH, hardware=H200)
    assert found.tpot_ms.value == pytest.approx(ms, rel=0.1)


def test_a_pipeline_with_fewer_requests_than_stages_is_used_for_a_share_of_the_time():
    # one, two and four micro-batches in flight over four stages: a round takes as long, and the
    # weights are streamed once for each
    lengths = Lengths(16, 512, 2048)
    alone, both, full = (predicted("pp4", n, lengths=lengths) for n in (1, 2, 4))
    assert both.decode_ms_per_step == pytest.approx(alone.decode_ms_per_step, rel=0.01)
    assert full.decode_ms_per_step == pytest.approx(alone.decode_ms_per_step, rel=0.05)
    for found, used in ((alone, 1 / 4), (both, 2 / 4), (full, 1.0)):
        share = 1 - found.parts.bubble / found.device_ms_per_token
        assert share == pytest.approx(used, abs=0.05)
    # for each token as many GPU-ms of weights, however many are in flight
    assert full.parts.weights == pytest.approx(alone.parts.weights, rel=0.05)


def test_more_requests_than_stages_share_the_weights_of_a_micro_batch():
    four, eight = predicted("pp4", 4), predicted("pp4", 8)
    assert eight.parts.weights == pytest.approx(four.parts.weights / 2, rel=0.05)


def test_prompts_fill_a_pipeline_once():
    # eight prompts of 2048 tokens are eight passes of p stages: 8 + 4 - 1 times that of a stage
    lengths = Lengths(2048, 2, 2048)
    whole, one = (
        predicted(name, 8, model="qwen2.5-32b", lengths=lengths).prefill_s
        for name in ("pp4", "tp1")
    )
    assert whole == pytest.approx(one / 4 / 8 * 11, rel=0.05)


def test_prompts_beyond_a_pass_are_cut_into_chunks():
    found = setting("tp1", "qwen2.5-32b")
    whole = predicted("tp1", 8, model="qwen2.5-32b", lengths=Lengths(1024, 2, 8192)).prefill_s
    cut = predicted("tp1", 8, model="qwen2.5-32b", lengths=Lengths(1024, 2, 2048)).prefill_s
    assert cut == pytest.approx(whole, rel=0.01)  # bound by arithmetic either way
    short = predicted("tp1", 8, model="qwen2.5-32b", lengths=Lengths(1024, 2, 128)).prefill_s
    weights = found.stages[0].weight_bytes / 4.2e12
    assert short == pytest.approx(64 * weights, rel=0.02)  # 8192 / 128 times the weights


def test_a_request_whose_prompt_is_read_early_waits_for_the_others():
    found = predicted("tp1", 16, model="qwen2.5-32b")  # two passes of eight prompts
    step, prefill = found.decode_ms_per_step, 1e3 * found.prefill_s
    assert found.ttft_ms.value == pytest.approx(0.75 * prefill, rel=0.01)
    assert found.tpot_ms.value == pytest.approx(step + 0.25 * prefill / 127, rel=0.01)


def test_a_closed_loop_of_more_requests_is_one_wave_after_another():
    once, thrice = predicted("tp4", 8), predicted("tp4", 8, 24)
    assert thrice.output_throughput.value == pytest.approx(once.output_throughput.value)
    assert thrice.duration_s == pytest.approx(3 * once.duration_s)


def test_the_next_prompt_enters_a_pipeline_while_the_last_token_leaves_it():
    real = {"engine": TORCH, "hardware": H200}
    first, later = predicted("pp4", 1, **real), predicted("pp4", 1, 8, **real)
    early = 3 / 4 * first.decode_ms_per_step
    assert later.ttft_ms.value == pytest.approx(first.ttft_ms.value - early, rel=0.02)


def test_a_first_token_takes_time_where_prompts_are_read_faster_than_tokens_are_made():
    mixed = Precision("bfloat16", "fp8-prefill")
    found = predicted("pp4", 1, 8, lengths=Lengths(16, 128, 2048), precision=mixed)
    assert found.ttft_ms is not None
    assert found.ttft_ms.value >= 0.2 * found.decode_ms_per_step / 2
    assert found.parts.bubble > 0


def test_requests_that_find_no_room_for_kv_wait_for_a_wave():
    small = replace(ROUND, memory_bytes=80 * 10**9)
    found = predicted("tp1", 64, model="qwen2.5-32b", hardware=small)
    assert found.in_flight < 64
    beside = memory.OVERHEAD_BYTES - memory.RESERVE_BYTES
    assert found.memory.total <= memory.UTILIZATION * 80e9 + beside < 80e9
    free = predicted("tp1", 64, model="qwen2.5-32b")
    assert found.output_throughput.value < free.output_throughput.value
    few = predicted("tp1", 100, model="qwen2.5-32b", hardware=small)
    assert few.ttft_ms.value > 1e3  # most of them find no seat


@pytest.mark.parametrize("layout", ["tp4", "pp4", "tp2pp2", "dp4", "tp2dp2", "pp2dp2"])
@pytest.mark.parametrize("concurrency", [1, 3, 32])
def test_the_parts_sum_to_the_time_of_all_gpus(layout, concurrency):
    found = predicted(
        layout, concurrency, 3 * concurrency, model="qwen2.5-32b", engine=TORCH, hardware=H200
    )
    whole = found.parts.seconds + found.outside_ms_per_token
    assert whole == pytest.approx(found.device_ms_per_token)
    total = 1e3 * found.duration_s * 4 / (3 * concurrency * 128)
    assert found.device_ms_per_token == pytest.approx(total)
    assert min(found.parts.bubble, found.parts.gaps, found.parts.transfer) >= -1e-9


def test_replicas_beyond_the_concurrency_serve_nothing():
    found = predicted("dp4", 1, model="qwen2.5-32b")
    assert found.outside_ms_per_token == pytest.approx(0.75 * found.device_ms_per_token)


def test_no_prediction_exceeds_the_bound():
    for layout in ("tp4", "pp4", "tp2pp2", "tp2dp2"):
        for concurrency in (1, 4, 32, 100):
            found = predicted(layout, concurrency)
            bound = found.bound_output_throughput
            assert 0.5 * bound < found.output_throughput.value <= 1.001 * bound


@pytest.mark.parametrize("layout", ["tp4", "pp4", "tp2pp2", "pp2dp2"])
@pytest.mark.parametrize("engine", ["torch", "vllm"])
@pytest.mark.parametrize("lengths", [(1, 1), (1, 2), (64, 3), (4096, 1), (256, 128)])
def test_no_prediction_of_short_requests_in_many_waves_exceeds_the_bound(layout, engine, lengths):
    asked = Lengths(*lengths, KNOWN.of(engine).prefill_tokens)
    for concurrency, prompts in ((1, 100), (2, 7), (4, 40), (30, 100)):
        at = {"lengths": asked, "model": "llama-8b", "engine": KNOWN.of(engine), "hardware": H200}
        found = predicted(layout, concurrency, prompts, **at)
        assert found.output_throughput.value <= (1 + 1e-9) * found.bound_output_throughput
        whole = found.parts.seconds + found.outside_ms_per_token
        assert whole == pytest.approx(found.device_ms_per_token)


@pytest.mark.parametrize(
    ("model", "hardware", "layout", "concurrency", "precision"),
    [
        ("llama-8b", "h100", "tp1", 64, BF16),
        ("llama-70b", "h200", "tp8", 256, Precision("bfloat16", "fp8")),
    ],
)
@pytest.mark.parametrize("engine", ["torch", "vllm"])
def test_no_part_of_a_prediction_is_negative(
    model, hardware, layout, concurrency, precision, engine
):
    gpus = of_sheet(hardware, KNOWN.attainable, KNOWN.calibrations[hardware.upper()], 8)
    asked = {"lengths": Lengths(4096, 1, 16384), "precision": precision, "hardware": gpus}
    found = predicted(layout, concurrency, model=model, engine=KNOWN.of(engine), **asked)
    assert min(getattr(found.parts, name) for name in NAMES) >= 0


@pytest.mark.parametrize("layout", ["pp4", "pp2dp2", "tp2pp2"])
def test_a_part_that_is_only_rounding_is_none(layout):
    for prompts in (3, 10, 33):
        found = predicted(layout, 3, prompts, model="qwen2.5-32b", engine=TORCH, hardware=H200)
        for part in (*map(found.parts.__getattribute__, NAMES), found.outside_ms_per_token):
            assert part == 0 or part > 1e-9 * found.device_ms_per_token
    assert Parts(weights=1.0, bubble=-6.9e-17).without_noise() == Parts(weights=1.0)


def test_no_engine_streams_or_computes_faster_than_the_hardware():
    for engine in KNOWN.engines.values():
        assert max(engine.stream, engine.math, engine.kv) <= 1


def waits_of(wanted: int, seats: int, served: int) -> float:
    """The median time to a first token in waves of 1 s each, of which that is a tenth."""
    blank = Phase(0.5, Parts(weights=0.5))
    one = Wave(blank, blank, ((0.1, seats),), 0.01)
    share = Share(1, wanted, seats, served, one, None, 0.0)
    assert sum(n for _, n in share.first_tokens) == served
    return median(share.first_tokens)


@pytest.mark.parametrize(
    ("wanted", "seats", "waits"),
    [(4, 4, 0), (8, 4, 1), (12, 4, 2), (10, 4, 1), (9, 4, 1), (11, 4, 2)],
)
def test_a_request_waits_for_those_that_were_sent_before_it(wanted, seats, waits):
    # each finds wanted - seats others before it; only those that are sent at the start do not
    assert waits_of(wanted, seats, 400) == pytest.approx(waits + 0.1)


def test_requests_of_a_closed_batch_wait_for_the_waves_before_theirs():
    assert waits_of(12, 4, 12) == pytest.approx(1.1)  # the second of three waves


def test_prompts_of_more_passes_than_are_worked_out_have_no_prediction():
    unknown = replace(ROUND, memory_bytes=None)
    for lengths, requests in ((Lengths(100_000, 10, 2048), 65536), (Lengths(100_000, 10, 1), 1)):
        found = predict(
            setting("tp1", "llama-8b", hardware=unknown), "tp1", Asked(lengths, requests)
        )
        assert isinstance(found, NoPrediction)
        assert found.kind == UNKNOWN
        assert "--chunked-prefill-size" in found.reason


def test_a_prediction_follows_the_placement_and_not_its_name():
    even = setting("pp2")
    uneven = with_stages(Placement.single(even.placed.model), (60, 20))
    other = Setting(replace(even.placed, placement=uneven), IDEAL)
    asked = Asked(SHORT, 2)
    fast, slow = (predict(one, "pp2", asked) for one in (even, other))
    assert isinstance(fast, Prediction)
    assert isinstance(slow, Prediction)
    assert slow.decode_ms_per_step == pytest.approx(1.5 * fast.decode_ms_per_step, rel=0.05)
    assert slow.parts.bubble > fast.parts.bubble


def test_kv_is_held_by_every_rank_where_there_are_more_of_them_than_heads():
    eight, sixteen = predicted("tp8", 32), predicted("tp16", 32)
    assert sixteen.memory.kv == eight.memory.kv
    assert sixteen.memory.weights < 0.6 * eight.memory.weights


def test_weights_in_fp8_take_half_the_time():
    plain = predicted("tp4", 1)
    eight = predicted("tp4", 1, precision=Precision("bfloat16", "fp8"))
    assert eight.parts.weights == pytest.approx(plain.parts.weights / 2, rel=0.05)
    assert "quantization fp8" in eight.outside


def test_memory_is_that_of_the_plan():
    found = predicted("tp4", 32).memory
    assert found.weights == pytest.approx(35.3e9, rel=0.01)
    assert found.kv == 32 * 384 * 2 * 80 * 2 * 128 * 2
    assert found.total == found.weights + found.kv + found.activations + found.reserve


def test_a_layout_that_does_not_fit_is_impossible_with_its_arithmetic():
    found = predict(setting("dp4"), "dp4", Asked(SHORT, 4))
    assert isinstance(found, NoPrediction)
    assert found.kind == IMPOSSIBLE
    assert "141.1 GB of weights" in found.reason
    assert "no room for KV" in found.reason


def test_a_link_of_which_nothing_is_known_has_no_prediction():
    alone = replace(ROUND, fabric=Fabric(Link(4e11, 0.0, "test"), None), gpus_per_node=8)
    found = predict(setting("tp16", hardware=alone), "tp16", Asked(SHORT, 4))
    assert isinstance(found, NoPrediction)
    assert found.kind == UNKNOWN
    assert "between nodes" in found.reason
    assert "--network" in found.reason
    known = predict(setting("tp16", hardware=alone.with_network(50e9)), "tp16", Asked(SHORT, 4))
    assert isinstance(known, Prediction)


def nodes_of(layout: str) -> tuple[int, ...]:
    """That a send from each stage spans."""
    return tuple(one.nodes for one in setting(layout).placed.hops)


def test_a_stage_pays_the_network_only_where_its_next_one_is_on_another_node():
    # eight to a node: of pp16 only the eighth stage sends to another one
    assert nodes_of("pp16") == (*[1] * 7, 2, *[1] * 8)
    assert nodes_of("tp2pp8") == (1, 1, 1, 2, 1, 1, 1, 1)
    assert nodes_of("tp8pp2") == (2, 1)
    assert nodes_of("pp4") == (1, 1, 1, 1)
    assert nodes_of("pp3dp4") == (1, 2, 1)  # the third replica has the ranks 6 to 8

    slow = ROUND.with_network(1e9)
    work = Work(PREFILL, 4096, 1)
    placed = setting("pp16", hardware=slow).placed
    sends = [placed.transfer(index, work, EAGER)[0] for index in range(15)]
    assert sends[7] > 10 * max(sends[:7] + sends[8:])


def test_gpus_without_a_rate_in_the_dtype_have_no_prediction():
    bare = replace(H200, ceilings=replace(H200.ceilings, flops={}))
    found = predict(setting("tp4", hardware=bare), "tp4", Asked(SHORT, 4))
    assert isinstance(found, NoPrediction)
    assert found.kind == UNKNOWN


def test_a_strategy_of_another_engine_has_no_prediction():
    found = predict(setting("dp4zero3", "llama-8b"), "dp4zero3", Asked(SHORT, 4))
    assert isinstance(found, NoPrediction)
    assert "deepspeed" in found.reason


def test_an_interval_is_wider_outside_of_what_was_fitted():
    inside = estimate(100.0, "tpot_ms", TORCH, ())
    outside = estimate(100.0, "tpot_ms", TORCH, ("GPU H200", "tp 4"))
    width = TORCH.half_width["tpot_ms"]
    assert inside.high / inside.value == pytest.approx(math.exp(width))
    assert outside.high / outside.value == pytest.approx(math.exp(3 * width))
    assert inside.low * inside.high == pytest.approx(inside.value**2)


def test_a_time_to_first_token_of_which_little_is_known_is_left_out():
    vague = replace(TORCH, half_width={**TORCH.half_width, "ttft_ms": 1.3})
    other, same = (
        predicted("tp2", 4, model="qwen2.5-32b", engine=replace(vague, fitted=fitted))
        for fitted in (vague.fitted, replace(vague.fitted, gpus=("H200",)))
    )
    assert other.ttft_ms is None  # another GPU: a factor of 13 each way
    assert same.ttft_ms is not None


def test_a_collective_takes_what_was_measured_of_it():
    curves = {
        one.ranks: one for one in H200.fabric.curves if (one.op, one.mode) == ("all_reduce", GRAPH)
    }
    for ranks in (2, 4):
        size, seconds = curves[ranks].points[3]
        assert H200.fabric.seconds("all_reduce", Span(ranks), size, GRAPH) == pytest.approx(seconds)
    # of eight ranks, from four: as many bytes cross a link, and the ring has eight steps more
    like = size * (2 * 3 / 4) / (2 * 7 / 8)
    eight = H200.fabric.seconds("all_reduce", Span(8), like, GRAPH)
    assert eight == pytest.approx(seconds + 8 * 0.6e-6)


def test_a_collective_over_nodes_is_latency_and_bytes_of_the_network():
    fabric = Fabric(Link(4e11, 1e-6, "test"), Link(5e10, 3e-6, "test"))
    # 16 ranks on two nodes: 2 x 15 steps, two of them between nodes; eight network cards
    found = fabric.seconds("all_reduce", Span(16, 2), 1e8, GRAPH)
    assert found == pytest.approx(6.6e-6 + 28e-6 + 6e-6 + 1e8 * 2 * 15 / 16 / 4e11)


@pytest.mark.parametrize("gpus", [1, 4, 12, 64])
def test_every_factorisation_is_planned_once(gpus):
    names = list(factorisations(gpus))
    assert len(set(names)) == len(names)
    product = [
        math.prod(int(n) for n in "".join(c if c.isdigit() else " " for c in name).split())
        for name in names
    ]
    assert product == [gpus] * len(names)
    assert len(names) == sum(
        1 for a in range(1, gpus + 1) for b in range(1, gpus + 1) if gpus % (a * b) == 0
    )


def test_a_ranking_has_the_fastest_first_and_marks_those_that_none_beats():
    shape = models.resolve("qwen2.5-32b", "dummy").shape
    case = Case(shape, BF16, H200, TORCH, Asked(SHORT, 32))
    (found,) = rankings(case, list(factorisations(4)), 4, [32])
    speeds = [one.output_throughput.value for one in found.predictions]
    assert speeds == sorted(speeds, reverse=True)
    assert found.predictions[0].layout in found.front
    shortest = min(found.predictions, key=lambda one: one.tpot_ms.value)
    assert shortest.layout in found.front
    assert not found.refused


def test_cost_and_energy_follow_from_throughput():
    found = predicted("tp4", 32, engine=TORCH, hardware=H200)
    assert found.cost_per_million_tokens is not None
    seconds = 1e6 / found.output_throughput.value
    assert found.cost_per_million_tokens.value == pytest.approx(seconds * 4 * 3.0 / 3600)
    assert found.joules_per_output_token is not None
    most = 4 * 700 / found.output_throughput.value
    assert 0.2 * most < found.joules_per_output_token.value < most
    unknown = replace(H200, power_w=None)
    assert predicted("tp4", 32, engine=TORCH, hardware=unknown).joules_per_output_token is None


PAIRS = of_sheet("h100 pcie", KNOWN.attainable, None)


def test_cards_with_a_bridge_are_joined_in_pairs_and_by_pcie_beyond() -> None:
    fabric = PAIRS.fabric
    assert fabric.link is not None
    assert fabric.across is not None
    assert fabric.link.bandwidth == pytest.approx(300e9 * KNOWN.attainable.link)
    assert fabric.across.bandwidth == 64e9 * 0.75
    two, four = (
        fabric.seconds("all_reduce", span, 1e9, GRAPH) for span in (Span(2), Span(4, 1, 2))
    )
    assert two == pytest.approx(1e9 / fabric.link.bandwidth, rel=0.01)
    assert four == pytest.approx(1.5 * 1e9 / fabric.across.bandwidth, rel=0.01)


@pytest.mark.parametrize(
    ("layout", "axis", "islands"),
    [("tp2", "tp", 1), ("tp4", "tp", 2), ("tp2pp2", "tp", 1), ("tp2pp2", "pp", 2)],
)
def test_groups_of_bridged_cards_cross_their_pairs(layout: str, axis: str, islands: int) -> None:
    placed = setting(layout, "llama-8b", hardware=PAIRS).placed
    assert placed.groups[axis] == Span(placed.placement.degree(axis), 1, islands)


def test_a_pipeline_of_bridged_cards_sends_within_and_across_its_pairs() -> None:
    hops = setting("pp4", "llama-8b", hardware=PAIRS).placed.hops
    assert [one.islands for one in hops] == [1, 2, 1, 1]


def test_four_bridged_cards_gain_less_from_tp_than_four_that_a_switch_joins() -> None:
    switched = replace(PAIRS, fabric=replace(PAIRS.fabric, joined=None, across=None))
    slow, fast = (
        predicted("tp4", 32, model="llama-8b", engine=TORCH, hardware=each).parts.transfer
        for each in (PAIRS, switched)
    )
    assert slow > 2 * fast


def test_a_rack_of_gb200_is_one_node_and_hgx_boards_are_eight_each() -> None:
    rack, board = (of_sheet(name, KNOWN.attainable, None) for name in ("gb200", "b200"))
    assert (rack.gpus_per_node, board.gpus_per_node) == (72, 8)
    inside, over = (setting("tp16", hardware=each).placed.groups["tp"] for each in (rack, board))
    assert (inside, over) == (Span(16), Span(16, 2))


def test_pcie_has_its_own_share_of_its_rate() -> None:
    card = of_sheet("l40s", KNOWN.attainable, None)
    assert card.fabric.link is not None
    assert card.fabric.link.bandwidth == 32e9 * 0.75  # as NCCL counts it
    assert card.memory_bytes == 46068 << 20


@pytest.mark.parametrize("layout", ["tp2", "pp4", "tp2pp8", "pp16"])
def test_stages_that_are_alike_are_worked_out_once(layout: str) -> None:
    at, work = setting(layout, engine=TORCH), Work(PREFILL, 512, 2, pairs=65_000)
    seconds, parts = at.through(work)
    one_by_one = [at.pass_of(index, work) for index in range(len(at.stages))]
    assert seconds == pytest.approx([one.seconds for one in one_by_one])
    assert parts.seconds == pytest.approx(sum(seconds))
    assert len(set(at.placed.like)) <= 5


@pytest.mark.parametrize("concurrency", [1, 100])
def test_an_interval_reaches_to_the_start_of_the_slowest_host(concurrency: int) -> None:
    assert 0 < VLLM.start_s < VLLM.longest_start_s
    at = {"hardware": H200, "model": "qwen2.5-32b"}
    found = predicted("tp2", concurrency, engine=VLLM, **at)
    sure = predicted("tp2", concurrency, engine=replace(VLLM, longest_start_s=0.0), **at)
    slow = replace(VLLM, start_s=VLLM.longest_start_s, longest_start_s=0.0)
    late = predicted("tp2", concurrency, engine=slow, **at)
    assert found.ttft_ms is not None
    assert sure.ttft_ms is not None
    assert late.ttft_ms is not None
    assert late.ttft_ms.value - sure.ttft_ms.value == pytest.approx(
        1e3 * (VLLM.longest_start_s - VLLM.start_s)
    )
    assert (found.ttft_ms.low, found.ttft_ms.value) == (sure.ttft_ms.low, sure.ttft_ms.value)
    assert found.ttft_ms.high == pytest.approx(late.ttft_ms.high)
    assert found.output_throughput.high == sure.output_throughput.high
    assert found.output_throughput.low == pytest.approx(late.output_throughput.low)
    assert found.tpot_ms == sure.tpot_ms
    cost, other = found.cost_per_million_tokens, sure.cost_per_million_tokens
    assert cost is not None
    assert other is not None
    assert cost.low == other.low < other.high < cost.high
