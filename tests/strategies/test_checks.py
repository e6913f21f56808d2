"""A mistake of a strategy is refused where the layout is planned, with who made it and what to
do."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given
from layouts_inputs import INSTALLED, LOAD, PROPERTY, Make, layouts, planned_with, refused, shape

from strategies import LayoutError, ModelShape, Placement, Split, Topology, plan_layout
from strategies.checks import check

MLP = "model.layers.*.mlp."


def cut(name: str, split: Split, axis: str = "tp", degree: int = 2) -> Make:
    return lambda placement: placement.with_axis(axis, degree).with_params({name: split})


@PROPERTY
@given(layouts())
def test_every_built_in_layout_passes(case: tuple[ModelShape, str, Placement]) -> None:
    model, _, placement = case
    check(placement, model)


# -- names of parameters


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("model.embed.weight", "model.embed_tokens.weight"),
        ("model.layers.*.mlp.gate.weight", "model.layers.*.mlp.gate_proj.weight"),
        ("layers.*.self_attn.q_proj.weight", "model.layers.*.self_attn.q_proj.weight"),
        ("model.layers.6.mlp.up_proj.weight", "model.layers.*.mlp.up_proj.weight"),
        ("lm_head", "lm_head.weight"),
    ],
)
def test_a_pattern_that_matches_nothing_gets_the_nearest_name(pattern: str, nearest: str) -> None:
    refused(
        cut(pattern, Split("tp", 0)),
        f"the parameter pattern '{pattern}' matches no parameter of a Llama-like model with 6 "
        f"layers; the nearest name is '{nearest}'",
    )


@pytest.mark.parametrize(
    "pattern",
    [
        "lm_head.weight",
        "model.layers.*.self_attn.q_proj.bias",
        "model.layers.0.self_attn.o_proj.bias",
        "model.layers.*.self_attn.?_norm.weight",
    ],
)
def test_a_pattern_may_name_what_only_other_models_have(pattern: str) -> None:
    plain = shape(tie_embeddings=True, qkv_bias=False, output_bias=False, qk_norm=False)

    def make(placement: Placement) -> Placement:
        cuts = {
            pattern: Split("tp", 0),
            "model.embed_tokens.weight": Split("tp", 0, parts=(51, 50)),
        }
        return placement.with_axis("tp", 2).with_params(cuts)

    assert planned_with(make, model=plain).placement.num_ranks == 2


def test_a_pattern_that_never_decides_is_refused() -> None:
    later = MLP + "up_proj.weight"

    def make(placement: Placement) -> Placement:
        cuts = {MLP + "*_proj.weight": Split("tp", 0), later: Split("tp", 1)}
        return placement.with_axis("tp", 2).with_params(cuts)

    refused(
        make,
        f"the parameter pattern '{later}' changes nothing: an exact name or an earlier pattern "
        "decides over every parameter that it matches; use that one's key to add a cut",
    )


# -- axes


def test_a_cut_along_an_axis_that_was_never_added_is_refused() -> None:
    refused(
        cut(MLP + "up_proj.weight", Split("ep", 0)),
        f"'{MLP}up_proj.weight' is cut along the axis 'ep', but the mesh has tp=2; add it with "
        "with_axis('ep', degree)",
    )


def test_tokens_shared_out_over_an_axis_that_was_never_added_are_refused() -> None:
    refused(
        lambda placement: replace(placement, tokens={"batch": ("dp",)}),
        "tokens['batch'] is shared out over the axis 'dp', but the mesh has no axis; add it with "
        "with_axis('dp', degree)",
    )


def test_tokens_have_two_keys() -> None:
    refused(
        lambda placement: replace(placement.with_axis("dp", 2), tokens={"requests": ("dp",)}),
        "tokens has no 'requests'; use 'batch' or 'sequence'",
    )


def test_a_sequence_may_be_shared_out() -> None:
    layout = planned_with(
        lambda placement: replace(placement.with_axis("cp", 2), tokens={"sequence": ("cp",)})
    )
    assert layout.placement.mesh == (("cp", 2),)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ((("tp", 0),), "the mesh axis tp has degree 0; use 1 or more"),
        ((("tp", 2), ("tp", 2)), "the mesh has the axis tp 2 times; name each axis once"),
    ],
)
def test_a_mesh_that_makes_no_sense_is_refused(
    mesh: tuple[tuple[str, int], ...], message: str
) -> None:
    refused(lambda placement: replace(placement, mesh=mesh), message)


# -- cuts


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        (
            "model.norm.weight",
            Split("tp", 1),
            "model.norm.weight is cut along dim 1, but it has 1 dim; use 0",
        ),
        (
            "lm_head.weight",
            Split("tp", -1),
            "lm_head.weight is cut along dim -1, but it has 2 dims; use 0 or 1",
        ),
        (
            "lm_head.weight",
            Split("tp", 0, parts=(50, 50, 1)),
            "lm_head.weight is cut into 3 parts over tp=2; give one size for each of its ranks",
        ),
        (
            "lm_head.weight",
            Split("tp", 0, parts=(50, 50)),
            "the parts 50, 50 of lm_head.weight add up to 100, but its dim 0 has 101; give sizes "
            "from 0 on that add up to it",
        ),
        (
            "lm_head.weight",
            Split("tp", 0, parts=(102, -1)),
            "the parts 102, -1 of lm_head.weight add up to 101, but its dim 0 has 101; give sizes "
            "from 0 on that add up to it",
        ),
        (
            "lm_head.weight",
            Split("tp", 0),
            "lm_head.weight, dim 0: 101 units of 1 do not divide over tp=2",
        ),
        (
            "model.norm.weight",
            Split("tp", 0, unit=5),
            "model.norm.weight is cut in units of 5, which does not divide the 32 elements of its "
            "dim 0; use a unit that does",
        ),
        (
            "model.norm.weight",
            Split("tp", 0, unit=0),
            "model.norm.weight is cut in units of 0, which does not divide the 32 elements of its "
            "dim 0; use a unit that does",
        ),
    ],
)
def test_a_cut_that_does_not_fit_the_tensor_is_refused(
    name: str, split: Split, message: str
) -> None:
    refused(cut(name, split), message)


def test_a_second_cut_divides_what_the_first_one_leaves() -> None:
    up = MLP + "up_proj.weight"  # 48 rows, 24 a rank after tp2

    def again(parts: tuple[int, ...]) -> Make:
        return lambda placement: placement.with_axis("x", 2).with_params(
            {up: Split("x", 0, parts=parts)}
        )

    assert planned_with(again((20, 4)), "tp2x2").placement.num_ranks == 4
    refused(
        again((40, 8)),
        "the parts 40, 8 of model.layers.0.mlp.up_proj.weight add up to 48, but its dim 0 has 24; "
        "give sizes from 0 on that add up to it",
        "tp2x2",
    )


# -- the same work twice


def same_work(axis: str) -> str:
    return (
        f"the ranks along {axis}=2 compute the same thing: no parameter of this model is cut over "
        "it, no stage is dealt over it and no tokens are shared out over it; do one of these, or "
        f"leave the axis {axis} out"
    )


def test_an_axis_along_which_nothing_changes_is_refused() -> None:
    refused(lambda placement: placement.with_axis("tp", 2), same_work("tp"))
    refused(lambda placement: placement.with_axis("dp", 2), same_work("dp"))
    refused(lambda placement: placement.with_axis("x", 2), same_work("x"), "tp2pp2x2")


def test_cuts_that_this_model_lacks_do_not_make_ranks_different() -> None:
    biases = cut("model.layers.*.self_attn.q_proj.bias", Split("tp", 0, unit=4))
    assert planned_with(biases).placement.num_ranks == 2
    with pytest.raises(LayoutError, match="compute the same thing"):
        planned_with(biases, model=shape(qkv_bias=False))


def test_a_single_unit_that_every_rank_holds_does_not_make_ranks_different() -> None:
    keys = cut("model.layers.*.self_attn.k_proj.weight", Split("tp", 0, unit=4))
    assert planned_with(keys).placement.num_ranks == 2
    with pytest.raises(LayoutError, match="compute the same thing"):
        planned_with(keys, model=shape(num_kv_heads=1))


# -- in general


def test_a_field_of_a_wrong_type_is_refused_too() -> None:
    with pytest.raises(LayoutError, match=r"'x' from x-package .* wrong type: TypeError: "):
        planned_with(cut("lm_head.weight", Split("tp", "rows")))  # type: ignore[arg-type]


def test_the_strategy_that_made_the_mistake_is_blamed_not_a_later_one() -> None:
    with pytest.raises(LayoutError, match=r"^zero3x2dp2: the strategy 'x' from x-package"):
        planned_with(lambda placement: placement.with_axis("x", 2), "zero3x2dp2")


@pytest.mark.parametrize("name", ["dp4096zero3", "tp8pp16dp32", "tp64pp64"])
def test_checking_thousands_of_ranks_takes_no_time(name: str) -> None:
    large = shape(
        num_layers=80, num_heads=64, num_kv_heads=8, head_dim=128, hidden_size=8192,
        intermediate_size=28672, vocab_size=128256,
    )  # fmt: skip
    placement = plan_layout(name, large, LOAD, Topology.uniform(1), INSTALLED).placement
    assert placement.num_ranks == 4096
    start = time.process_time()
    check(placement, large)
    assert time.process_time() - start < 0.5
