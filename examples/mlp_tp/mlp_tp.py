"""Tensor parallelism of the MLP alone, as a layout in a package of its own.

Every rank runs the whole of attention, embedding and head, and a share of each MLP. That costs
memory (attention's weights and the KV cache are kept by every rank) and saves communication: one
all-reduce a layer, where `tp` needs two.

    pip install examples/mlp_tp
    orchestrator explain mtp4 tp4 --model llama-8b
    orchestrator submit --strategy mtp2,tp2
"""

from __future__ import annotations

from strategies import LayoutError, Load, ModelShape, Placement, Split, Topology


def mtp(
    placement: Placement, number: int, model: ModelShape, load: Load, topology: Topology
) -> Placement:
    """Cut the MLP alone by columns, then rows: half the all-reduces of tp, for more memory.

    Raises LayoutError where the width of the MLP does not divide over `number` ranks.
    """
    if model.intermediate_size % number:
        raise LayoutError(
            f"{model.intermediate_size} MLP columns of {model.name} do not divide over mtp={number}"
        )
    if number == 1:
        return placement  # unchanged: mtp1 is one device, and is left out of the layout's name
    mlp = "model.layers.*.mlp."
    cuts = {
        # [columns, hidden]: each rank makes its own columns,
        mlp + "gate_proj.weight": Split("tp", dim=0),
        mlp + "up_proj.weight": Split("tp", dim=0),
        # [hidden, columns]: and the ranks add up what comes of them.
        mlp + "down_proj.weight": Split("tp", dim=1),
    }
    # The engine reads from the cuts what must be all-reduced, so a new layout on the "tp" axis
    # needs no engine code.
    return placement.with_axis("tp", number).with_params(cuts)
