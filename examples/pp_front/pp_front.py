"""A pipeline whose first stage is short, as a layout in a package of its own.

The first stage gets about half as many layers as each of the others. It passes a micro-batch on
sooner, and its GPU has room left for the embedding and for other work. The others do more, so the
longest stage, and with it the time per token, grows: a layout to compare with `pp`, not a better
one.

    pip install examples/pp_front
    orchestrator explain ppfront4 pp4 --model llama-70b
    orchestrator submit --strategy ppfront2,pp2
"""

from __future__ import annotations

from strategies import LayoutError, Load, ModelShape, Placement, Topology, near_even, with_stages


def ppfront(
    placement: Placement, number: int, model: ModelShape, load: Load, topology: Topology
) -> Placement:
    """Cut the layers into `number` stages, the first with half as many layers as the others.

    Raises LayoutError where there are fewer layers than stages.
    """
    if number > model.num_layers:
        raise LayoutError(
            f"ppfront={number} is more stages than {model.name} has layers; use 1 to "
            f"{model.num_layers}"
        )
    if number == 1:
        return placement
    # Counted in half stages: one for the first, two for each of the others.
    first = max(1, model.num_layers // (2 * number - 1))
    others = near_even(model.num_layers - first, number - 1)
    # Adds the axis "pp", and puts the embedding on the first stage and the head on the last.
    return with_stages(placement, (first, *others))
