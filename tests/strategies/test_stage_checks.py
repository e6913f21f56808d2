"""Stages and devices that are not whole are refused where the layout is planned."""

from __future__ import annotations

from dataclasses import replace

import pytest
from layouts_inputs import Make, planned_with, refused

from strategies import LayoutError, Stage, with_stages


def staged(*stages: Stage, degree: int = 2) -> Make:
    return lambda placement: replace(placement.with_axis("pp", degree), stages=stages)


# -- stages


FIRST, LAST = Stage(0, range(3), embed=True), Stage(1, range(3, 6), head=True)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            (FIRST, replace(LAST, layers=range(4, 6))),
            "layer 3 is on no stage; put every layer, 0 to 5, on one stage",
        ),
        (
            (FIRST, replace(LAST, layers=range(2, 6))),
            "layer 2 is on more than one stage; put every layer, 0 to 5, on one stage",
        ),
        (
            (FIRST, replace(LAST, layers=range(3, 8))),
            "layers 6, 7 are not in m; put every layer, 0 to 5, on one stage",
        ),
        ((replace(FIRST, embed=False), LAST), "no stage has embed=True; set it for one stage"),
        ((FIRST, replace(LAST, head=False)), "no stage has head=True; set it for one stage"),
        ((replace(FIRST, head=True), LAST), "2 stages have head=True; set it for one stage"),
        (
            (FIRST, replace(LAST, pp_rank=2)),
            "a stage is on pp_rank 2, but the axis pp has 2 ranks; use 0 to 1, or with_stages, "
            "which adds the axis",
        ),
        (
            (FIRST, replace(LAST, pp_rank=0)),
            "pp=2, but no stage is on pp_rank 1, so its ranks have nothing to do; deal the stages "
            "over all of pp, as with_stages does",
        ),
    ],
)
def test_stages_that_are_not_whole_are_refused(stages: tuple[Stage, ...], message: str) -> None:
    refused(staged(*stages), message)


def test_stages_without_the_axis_are_refused() -> None:
    refused(
        lambda placement: replace(placement, stages=(FIRST, LAST)),
        "a stage is on pp_rank 1, but the axis pp has 1 rank; use 0, or with_stages, which "
        "adds the axis",
    )


def test_an_axis_of_stages_without_stages_is_refused() -> None:
    with pytest.raises(LayoutError, match="pp=2, but no stage is on pp_rank 1"):
        planned_with(lambda placement: placement.with_axis("pp", 2))


def test_a_rank_may_hold_several_stages() -> None:
    quarters = (
        Stage(0, range(2), embed=True),
        Stage(1, range(2, 3)),
        Stage(0, range(3, 5)),
        Stage(1, range(5, 6), head=True),
    )
    assert len(planned_with(staged(*quarters)).placement.stages_of(0)) == 2


# -- devices


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ((0,), "devices has 1 entry for 2 ranks; use with_axis, or give one device for every rank"),
        ((0, 0), "devices 0, 0 is no permutation; it must hold every number from 0 to 1 once"),
        ((1, 2), "devices 1, 2 is no permutation; it must hold every number from 0 to 1 once"),
    ],
)
def test_devices_that_are_no_permutation_are_refused(
    devices: tuple[int, ...], message: str
) -> None:
    refused(lambda placement: replace(with_stages(placement, (3, 3)), devices=devices), message)


def test_ranks_may_be_on_devices_in_any_order() -> None:
    layout = planned_with(lambda placement: replace(placement, devices=(3, 1, 0, 2)), "tp4x1")
    assert layout.placement.devices == (3, 1, 0, 2)
