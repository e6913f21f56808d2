"""ZeRO: parameters cut over the data-parallel replicas (Rajbhandari et al., arXiv:1910.02054)."""

from __future__ import annotations

from strategies.errors import LayoutError
from strategies.placement import Placement, Split
from strategies.shapes import Load, ModelShape, Topology
from strategies.tensor import near_even


def zero(
    placement: Placement, number: int, model: ModelShape, load: Load, topology: Topology
) -> Placement:
    """ZeRO stage `number` over the dp axis, run by DeepSpeed. Only stage 3 cuts what inference
    holds: the parameters.

    Raises LayoutError for another stage, without a dp axis, or beside tensor or pipeline
    parallelism.
    """
    if number != 3:
        raise LayoutError(
            f"zero{number} cuts nothing that inference holds (gradients, optimizer state); use "
            "zero3"
        )
    replicas = placement.degree("dp")
    if replicas == 1:
        raise LayoutError(
            "zero3 cuts parameters over data-parallel replicas; name them too, as in dp4zero3"
        )
    if placement.num_ranks != replicas:
        raise LayoutError("zero3 is run beside dp alone; leave tp and pp out of the layout")
    cuts = {
        name: Split("dp", 0, parts=near_even(shape[0], replicas))
        for name, shape in model.parameters()
    }
    return placement.with_params(cuts).with_options(engine="deepspeed", zero_stage=str(number))
