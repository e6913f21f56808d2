"""A placement that an engine would train in another way than it says is refused: a strategy of
one's own may make any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from training_runs import LOAD, shape_of, training_plan

from orchestrator.errors import UserError
from orchestrator.plan.training import check_schedule
from strategies.pipeline import with_stages
from strategies.placement import EMBEDDING, Placement, Split, Stage
from workers.engines import refusal

BATCH = {"batch": ("dp",)}
ALL = {"*": Split("fsdp", 0)}
NEEDS_DEEPSPEED = ("dp2zero1", "dp2zero2", "dp2zero3")
Made = Callable[[Placement], Placement]


def why(
    layout: str, made: Made = lambda placement: placement, engine: str = "torch", **load: str
) -> str | None:
    """Why an engine does not train what `made` makes of a layout of ours; None where it does."""
    asked = replace(LOAD, **load)
    plan = training_plan(layout, shape_of("Llama", 4), None, asked)
    return refusal(engine, replace(plan, placement=made(plan.placement)))


def over_fsdp(params: Mapping[str, Split], batch: tuple[str, ...] = ("fsdp",)) -> Made:
    return lambda one: replace(one.with_axis("fsdp", 2), tokens={"batch": batch}).with_params(
        params
    )


def with_axis(axis: str, **changes: object) -> Made:
    return lambda one: replace(one.with_axis(axis, 2), **changes)


def other_cut(name: str, *cuts: Split) -> Made:
    """The first pattern that matches decides."""
    return lambda one: replace(one, params={name: cuts} | {**one.params, name: cuts})


@pytest.mark.parametrize(
    ("layout", "made"),
    [
        ("tp1", with_axis("dp", tokens=BATCH)),
        ("tp1", over_fsdp({"*": Split("fsdp", 0, chunked=True)})),
        ("tp1", over_fsdp(ALL)),  # equal parts, where they divide
        ("tp1", lambda one: with_stages(one, (1, 3))),
        ("tp2", with_axis("dp", tokens=BATCH)),
    ],
)
def test_what_a_strategy_of_ones_own_makes_as_ours_do_is_trained(layout: str, made: Made) -> None:
    assert why(layout, made) is None


@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_each_layout_of_ours_is_trained_by_its_engine(engine: str) -> None:
    ours = ["dp2", "fsdp2", "dp2fsdp2", "tp2", "tp2dp2", "tp2fsdp2", "pp2", "tp2pp2dp2"]
    layouts = ours if engine == "torch" else ["dp2", *NEEDS_DEEPSPEED]
    assert [why(layout, engine=engine) for layout in layouts] == [None] * len(layouts)
    if engine == "torch":
        assert why("tp2pp2", schedule="interleaved") is None
        assert why("tp2", schedule="interleaved") is None  # asked beside a layout with stages


@pytest.mark.parametrize(
    ("layout", "made", "said"),
    [
        # FSDP2 cuts whole modules by rows
        ("tp1", over_fsdp({"model.layers.*.mlp.*": Split("fsdp", 0)}), "every parameter once"),
        ("tp1", over_fsdp({"model.layers.*.mlp.*": Split("fsdp", 1)}), "every parameter once"),
        ("tp1", over_fsdp({}), "every parameter once"),
        ("tp1", over_fsdp({**ALL, EMBEDDING: Split("fsdp", 0, parts=(30, 34))}), EMBEDDING),
        ("tp1", over_fsdp({**ALL, EMBEDDING: Split("fsdp", 1)}), EMBEDDING),
        ("dp2", other_cut("*", Split("dp", 0)), "over dp none"),
        # DTensor has one plan
        ("tp2", other_cut("*.q_proj.weight", Split("tp", 1)), "q_proj.weight cut at dim 0"),
        ("tp2", other_cut("*.o_proj.weight"), "o_proj.weight cut at dim 1"),
        ("tp2", other_cut("*.input_layernorm.weight", Split("tp", 0)), "layernorm.weight whole"),
        ("tp2", other_cut(EMBEDDING), "embed_tokens.weight cut at dim 0"),
        (
            "tp2",
            other_cut("*.up_proj.weight", Split("tp", 0, parts=(1, 47))),
            "into equal parts, and the layout does not cut model.layers.0.mlp.up_proj.weight so",
        ),
        # stages
        (
            "pp2",
            lambda one: replace(
                one, stages=(Stage(1, range(2), embed=True), Stage(0, range(2, 4), head=True))
            ),
            "dealt in turns from pp_rank 0 on",
        ),
        (
            "pp2",
            lambda one: replace(
                one, stages=(Stage(0, range(2, 4), head=True), Stage(1, range(2), embed=True))
            ),
            "the first the embedding",
        ),
        (
            "pp2",
            lambda one: replace(
                one, stages=(Stage(0, range(0), embed=True), Stage(1, range(4), head=True))
            ),
            "needs a layer",
        ),
        ("tp1", lambda one: with_stages(one, (1, 1, 1, 1), chunks=2), "1 a rank under"),
        # tokens, and what no engine is told
        ("fsdp2", with_axis("dp", tokens=BATCH), "(dp, fsdp), and this one over dp"),
        ("dp2", lambda one: replace(one, tokens={}), "and this one over none"),
        ("tp2", lambda one: replace(one, tokens={"sequence": ("tp",)}), "shares out no sequence"),
        ("dp2", lambda one: one.with_options(fast="yes"), "it has no option fast"),
    ],
)
def test_torch_refuses_what_it_would_train_in_another_way(
    layout: str, made: Made, said: str
) -> None:
    assert said in (why(layout, made) or "")


def test_a_schedule_has_the_stages_that_it_needs() -> None:
    reason = why("tp1", lambda one: with_stages(one, (2, 2)), schedule="interleaved")
    assert "2 a rank under the schedule interleaved" in (reason or "")


@pytest.mark.parametrize(
    ("layout", "made", "said"),
    [
        ("dp2", lambda one: one.with_optimizer({"*": Split("dp", 0)}), "the optimizer's state"),
        ("dp2", other_cut("*", Split("dp", 0)), "under zero_stage 0 it cuts"),
        ("dp2zero3", lambda one: replace(one, params={}), "it cuts the optimizer's state by rows"),
        ("dp2", lambda one: one.with_options(zero_stage="2"), "the optimizer's state by rows"),
        ("dp2", lambda one: one.with_options(zero_stage="four"), "1, 2, 3 or left out, not four"),
        ("dp2", lambda one: one.with_options(fast="yes"), "it has no option fast"),
        ("dp2", lambda one: replace(one, tokens={}), "shares out the batch over dp"),
        ("fsdp2", lambda one: one, "the layout has fsdp"),
    ],
)
def test_deepspeed_refuses_what_it_would_train_in_another_way(
    layout: str, made: Made, said: str
) -> None:
    assert said in (why(layout, made, "deepspeed") or "")


def test_a_pipeline_of_ones_own_has_a_schedule_too() -> None:
    shape = shape_of("Llama", 4)
    one = training_plan("tp1", shape, None).placement
    check_schedule("gpipe", {"own2": with_stages(one, (1, 3))})
    with pytest.raises(UserError, match="none of the layouts tp1 has one"):
        check_schedule("gpipe", {"tp1": one})
