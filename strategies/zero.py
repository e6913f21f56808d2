"""ZeRO: optimizer state, gradients and parameters cut over the data-parallel replicas (Rajbhandari
et al., arXiv:1910.02054)."""

from __future__ import annotations

from strategies.errors import LayoutError
from strategies.placement import Placement, Split
from strategies.shapes import Load, ModelShape, Topology
from strategies.tensor import near_even


def zero(
    placement: Placement, number: int, model: ModelShape, load: Load, topology: Topology
) -> Placement:
    """ZeRO stage `number` over the dp axis, run by DeepSpeed: 1 cuts the optimizer's state, 2 the
    gradients too, 3 the parameters too. Only stage 3 cuts what inference holds. A single replica
    has nothing to cut, and can have in main memory what would be (ZeRO-Offload: Ren et al.,
    arXiv:2101.06840).

    Raises LayoutError for another stage, for 1 and 2 where nothing is trained, without a dp axis
    unless training is offloaded, and beside other axes.
    """
    if number not in (1, 2, 3):
        raise LayoutError(f"zero{number} is no stage of ZeRO; use zero1, zero2 or zero3")
    if number < 3 and load.training is None:
        raise LayoutError(
            f"zero{number} cuts nothing that inference holds (gradients, optimizer state); use "
            "zero3"
        )
    replicas, training = placement.degree("dp"), load.training
    if placement.num_ranks != replicas:
        others = ", ".join(axis for axis, _ in placement.mesh if axis != "dp")
        raise LayoutError(f"zero{number} is run beside dp alone; leave {others} out of the layout")
    if replicas == 1 and (training is None or training.offload == "none"):
        what = {1: "optimizer state", 2: "gradients", 3: "parameters"}[number]
        alone = "" if training is None else ", or give --offload optimizer to train on one device"
        raise LayoutError(
            f"zero{number} cuts {what} over data-parallel replicas; name them too, as in "
            f"dp4zero{number}{alone}"
        )
    placement = placement.with_options(engine="deepspeed", zero_stage=str(number))
    if replicas == 1:
        return placement
    cuts = {
        name: Split("dp", 0, parts=near_even(shape[0], replicas))
        for name, shape in model.parameters()
    }
    if number == 3:
        return placement.with_params(cuts)
    placement = placement.with_optimizer(cuts)
    return placement if number == 1 else placement.with_grads(cuts)
