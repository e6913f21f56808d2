"""Which placements our engine runs, and what it says of the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from ranks import engine_plan

from strategies.data import dp
from strategies.pipeline import pp
from strategies.placement import Placement, Split, Stage
from strategies.shapes import Load, ModelShape, Topology
from strategies.tensor import tp
from workers.engines.native.engine import TorchEngine
from workers.messages import Request, Work

SHAPE = ModelShape.from_config(
    {
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    },
    "small",
)
LAYER = "model.layers.*."
ATTENTION = {LAYER + f"self_attn.{p}_proj.{k}" for p in "qkv" for k in ("weight", "bias")}


def _laid_out(strategy: Callable[..., Placement], number: int) -> Placement:
    load, topology = Load(8, 4, 2), Topology.uniform(4)
    return strategy(Placement.single(SHAPE), number, SHAPE, load, topology)


def _said(placement: Placement, shape: ModelShape = SHAPE, **changes: object) -> str | None:
    plan = engine_plan("tp1", shape, None, Work((Request(0, (8, 9), 2),), 1))
    return TorchEngine().supports(replace(plan, placement=placement, **changes))


def _without(placement: Placement, *patterns: str) -> Placement:
    kept = {k: v for k, v in placement.params.items() if k not in patterns}
    return replace(placement, params=kept)


def _with(placement: Placement, pattern: str, *cuts: Split) -> Placement:
    """With these cuts for `pattern`, ahead of all others."""
    return replace(placement, params={pattern: cuts, **_without(placement, pattern).params})


@pytest.mark.parametrize("strategy", [tp, pp, dp])
def test_the_layouts_of_the_project_are_run(strategy: Callable[..., Placement]) -> None:
    assert _said(_laid_out(strategy, 2)) is None


def test_each_group_of_cuts_is_run_alone() -> None:
    whole = _laid_out(tp, 2)
    attention = {name for name in whole.params if "self_attn" in name}
    mlp = {name for name in whole.params if "mlp" in name}
    ends = set(whole.params) - attention - mlp
    for group in (attention, mlp, ends):
        assert _said(_without(whole, *(set(whole.params) - group))) is None


@pytest.mark.parametrize("missing", sorted(ATTENTION | {LAYER + "self_attn.o_proj.weight"}))
def test_half_of_attention_is_refused(missing: str) -> None:
    assert "all four whole" in str(_said(_without(_laid_out(tp, 2), missing)))


@pytest.mark.parametrize("projection", ["gate", "up", "down"])
def test_half_of_an_mlp_is_refused(projection: str) -> None:
    cut = _without(_laid_out(tp, 2), LAYER + f"mlp.{projection}_proj.weight")
    assert "down_proj at dim 1" in str(_said(cut))


def test_uneven_parts_that_do_not_meet_are_refused() -> None:
    uneven = _with(_laid_out(tp, 2), LAYER + "mlp.up_proj.weight", Split("tp", 0, parts=(32, 64)))
    assert "all alike" in str(_said(uneven))


def test_heads_are_cut_whole() -> None:
    heads = _laid_out(tp, 2)
    for name in (*ATTENTION, LAYER + "self_attn.o_proj.weight"):
        (cut,) = heads.params[name]
        heads = _with(heads, name, replace(cut, unit=8))
    assert "units of the head_dim 16" in str(_said(heads))


def test_a_layer_that_is_cut_unlike_the_first_is_refused() -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    said = _said(_with(_laid_out(tp, 2), name))
    assert said == f"it needs all layers cut alike, and {name} is cut unlike that of layer 0"


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        (LAYER + "input_layernorm.weight", "input_layernorm.weight"),
        ("model.norm.weight", "model.norm.weight"),
    ],
)
def test_a_cut_norm_is_refused(pattern: str, named: str) -> None:
    said = _said(_with(_laid_out(tp, 2), pattern, Split("tp", 0)))
    assert said == f"it needs {named} whole"


def test_an_embedding_is_cut_by_rows() -> None:
    cut = _with(_laid_out(tp, 2), "model.embed_tokens.weight", Split("tp", 1))
    assert "embedding and head at dim 0" in str(_said(cut))


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (
            (Stage(0, range(2, 4), embed=True), Stage(1, range(2), head=True)),
            "it runs the layers in order, the first ones on pp_rank 0",
        ),
        (
            (Stage(0, range(2), head=True), Stage(1, range(2, 4), embed=True)),
            "it has the embedding on pp_rank 0 and the head on the last one",
        ),
        (
            (Stage(0, range(4), embed=True), Stage(1, range(4, 4), head=True)),
            "each of its stages needs a layer",
        ),
        (
            (
                Stage(0, range(1), embed=True),
                Stage(1, range(1, 3)),
                Stage(0, range(3, 4), head=True),
            ),
            "it runs one stage a rank",
        ),
    ],
)
def test_stages_out_of_order_are_refused(stages: tuple[Stage, ...], said: str) -> None:
    assert _said(replace(_laid_out(pp, 2), stages=stages)) == said


def test_stages_may_be_listed_in_any_order() -> None:
    placed = _laid_out(pp, 2)
    assert _said(replace(placed, stages=placed.stages[::-1])) is None


def test_axes_options_and_head_sizes_that_it_does_not_know() -> None:
    assert "the mesh axis cp" in str(_said(Placement.single(SHAPE).with_axis("cp", 2)))
    assert "no option schedule" in str(_said(Placement.single(SHAPE).with_options(schedule="1f1b")))
    over_dp = _laid_out(dp, 2).with_params({"lm_head.weight": Split("dp", 0)})
    assert _said(over_dp) == "it cuts parameters over tp alone"
    odd = replace(SHAPE, head_dim=24)
    assert _said(Placement.single(odd), odd) is None
    on_gpu = _said(Placement.single(odd), odd, model=odd, device="cuda")
    assert "a power of two from 16 on, not 24" in str(on_gpu)
