"""Where every tensor and token lives: pure, frozen data that any process can read without a plug-in
installed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal

from strategies.errors import LayoutError
from strategies.shapes import ModelShape

# Outermost first. Tensor parallelism communicates most, so its ranks are neighbours; an axis not
# named here goes in between.
AXIS_ORDER = {"dp": 0, "fsdp": 1, "pp": 2, "tp": 9}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# What of a parameter is kept: itself, its gradient, the state that its optimizer has for it.
Of = Literal["params", "grads", "optimizer"]


@dataclass(frozen=True, slots=True)
class Split:
    """One cut of a tensor along one mesh axis.

    axis: the mesh axis whose ranks share the tensor. dim: the dim of the tensor that is cut,
    counted from 0.
    unit: cut only at multiples of this many elements (a head). More ranks than units: every unit is
    replicated over a group of neighbouring ranks (grouped-query attention with fewer KV heads than
    ranks).
    parts: uneven sizes in elements, one per rank of the axis; None = equal sizes.
    chunked: whatever the size, the first ranks get ceil(size / ranks) elements and the last ones
    what is left, perhaps nothing: as `torch.chunk` and so FSDP2 and DTensor cut.
    """

    axis: str
    dim: int
    unit: int = 1
    parts: tuple[int, ...] | None = None
    chunked: bool = False

    def bounds(self, size: int, index: int, degree: int) -> tuple[int, int]:
        """[start, stop) of part `index` of `degree`, of a dim of `size` elements. Raises
        LayoutError if it does not divide."""
        if self.parts is not None:
            start = sum(self.parts[:index])
            return start, start + self.parts[index]
        if self.chunked:
            share = -(-size // degree)
            return min(index * share, size), min((index + 1) * share, size)
        units = size // self.unit
        if degree > units and degree % units == 0:
            group = index // (degree // units)
            return group * self.unit, (group + 1) * self.unit
        if units % degree:
            raise LayoutError(
                f"{units} units of {self.unit} do not divide over {self.axis}={degree}"
            )
        share = units // degree * self.unit
        return index * share, (index + 1) * share


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers of one pipeline stage. A rank of the pp axis may hold several (interleaved schedules).

    pp_rank: index along the pp axis. layers: indices of its layers. embed: it looks up the
    embedding. head: it holds the final norm and makes logits.
    """

    pp_rank: int
    layers: range
    embed: bool = False
    head: bool = False


@lru_cache(maxsize=1 << 16)  # a plan asks for every parameter of a model under every layout
def _first_that_matches(patterns: tuple[str, ...], name: str) -> str | None:
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)


@dataclass(frozen=True, slots=True)
class Placement:
    """A layout of one model over ranks.

    mesh: ordered axes with their degrees, innermost last; the product is the number of ranks.
    params: pattern of parameter names -> cuts, in the order they are made; no match or () =
    replicated.
    grads, optimizer: the same of the gradients that a rank keeps and of the optimizer's state, for
    training; no match = cut as the parameter is.
    tokens: "batch" or "sequence" -> the mesh axes that share it out.
    stages: the layers of each pipeline stage.
    devices: rank -> its place among the reserved devices, which are ordered by node and index. It
    decides which GPU a rank gets. A permutation of 0 to num_ranks - 1.
    options: what only one engine understands.
    """

    mesh: tuple[tuple[str, int], ...] = ()
    params: Mapping[str, tuple[Split, ...]] = field(default_factory=dict)
    tokens: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    devices: tuple[int, ...] = (0,)
    options: tuple[tuple[str, str], ...] = ()
    grads: Mapping[str, tuple[Split, ...]] = field(default_factory=dict)
    optimizer: Mapping[str, tuple[Split, ...]] = field(default_factory=dict)

    def __hash__(self) -> int:
        """Of what can be hashed; placements that differ in the rest alone are told apart by ==."""
        return hash((self.mesh, self.stages, self.devices, self.options))

    @classmethod
    def single(cls, model: ModelShape) -> Placement:
        """Everything on one device: what every layout is refined from."""
        return cls(stages=(Stage(0, range(model.num_layers), embed=True, head=True),))

    # -- mesh

    @property
    def num_ranks(self) -> int:
        """The number of ranks: the degrees of all axes multiplied."""
        return math.prod(degree for _, degree in self.mesh)

    @property
    def replica_ranks(self) -> int:
        """Of one data-parallel replica."""
        return self.num_ranks // self.degree("dp")

    def degree(self, axis: str) -> int:
        """The number of ranks along `axis`; 1 for an axis that the mesh does not have."""
        return dict(self.mesh).get(axis, 1)

    @property
    def num_replicas(self) -> int:
        """The number of parts that the batch is shared out into: one for every rank of the axes
        `dp` and `fsdp`."""
        return math.prod(self.degree(axis) for axis in self.tokens.get("batch", ()))

    def option(self, key: str) -> str | None:
        """The option `key`, or None where it is not set."""
        return dict(self.options).get(key)

    def coordinates(self, rank: int) -> dict[str, int]:
        """Index of `rank` along every axis."""
        out = {}
        for axis, degree in reversed(self.mesh):
            rank, out[axis] = divmod(rank, degree)
        return out

    def group(self, axis: str, rank: int) -> tuple[int, ...]:
        """The ranks that differ from `rank` only along `axis`, in the order of that axis."""
        mine = self.coordinates(rank)
        return tuple(self.rank_at({**mine, axis: i}) for i in range(self.degree(axis)))

    def groups(self, axis: str) -> tuple[tuple[int, ...], ...]:
        """Every group along `axis`, in order of their first ranks."""
        return tuple(sorted({self.group(axis, rank) for rank in range(self.num_ranks)}))

    def rank_at(self, coordinates: Mapping[str, int]) -> int:
        """The rank with these indices; an axis that is left out counts as index 0."""
        rank = 0
        for axis, degree in self.mesh:
            rank = rank * degree + coordinates.get(axis, 0)
        return rank

    # -- refining

    def with_axis(self, axis: str, degree: int) -> Placement:
        """The same placement over `degree` times the ranks, on devices in natural order.

        The new axis changes the number of every rank. Raises LayoutError if the mesh has that axis
        already, or if `devices` is in an order that somebody chose, which would be lost.
        """
        if axis in dict(self.mesh):
            raise LayoutError(f"the axis {axis} is in the layout already; name it once")
        if self.devices != tuple(range(len(self.devices))):
            raise LayoutError(
                f"adding the axis {axis} renumbers the ranks and would lose the order of devices "
                "that an earlier strategy chose; add every axis before devices is set"
            )
        mesh = tuple(sorted((*self.mesh, (axis, degree)), key=lambda a: AXIS_ORDER.get(a[0], 5)))
        return replace(self, mesh=mesh, devices=tuple(range(math.prod(d for _, d in mesh))))

    def with_params(self, cuts: Mapping[str, Split]) -> Placement:
        """Add one cut to each parameter pattern named."""
        return replace(self, params=self._added("params", cuts))

    def with_grads(self, cuts: Mapping[str, Split]) -> Placement:
        """Cut gradients once more than their parameters are, at each pattern named."""
        return replace(self, grads=self._added("grads", cuts))

    def with_optimizer(self, cuts: Mapping[str, Split]) -> Placement:
        """Cut the optimizer's state once more than its parameters are, at each pattern named."""
        return replace(self, optimizer=self._added("optimizer", cuts))

    def _added(self, of: Of, cuts: Mapping[str, Split]) -> dict[str, tuple[Split, ...]]:
        mapping = dict(self.cuts[of])
        for pattern, split in cuts.items():
            before = mapping.get(pattern, self.params.get(pattern, ()))
            mapping[pattern] = (*before, split)
        return mapping

    def with_options(self, **options: str) -> Placement:
        """Set options that only one engine understands; `engine` names the one that is needed."""
        return replace(self, options=tuple(sorted({**dict(self.options), **options}.items())))

    # -- tensors

    @property
    def cuts(self) -> dict[Of, Mapping[str, tuple[Split, ...]]]:
        """Every kind of tensor that a parameter brings -> pattern -> cuts."""
        return {"params": self.params, "grads": self.grads, "optimizer": self.optimizer}

    def pattern_of(self, name: str, of: Of = "params") -> str | None:
        """The pattern that decides over the parameter `name`, if any: the exact name, else the
        first shell-style pattern that matches."""
        mapping = self.cuts[of]
        if name in mapping:
            return name
        return _first_that_matches(tuple(mapping), name)

    def splits(self, name: str, of: Of = "params") -> tuple[Split, ...]:
        """The cuts of the parameter `name`, of its gradient or of its optimizer state; () =
        replicated."""
        pattern = self.pattern_of(name, of)
        if pattern is not None:
            return self.cuts[of][pattern]
        return () if of == "params" else self.splits(name)

    def is_split(self, name: str, axis: str) -> bool:
        """Whether the parameter `name` is cut over more than one rank along `axis`."""
        return any(split.axis == axis for split in self.splits(name)) and self.degree(axis) > 1

    def shard(
        self, name: str, shape: tuple[int, ...], rank: int, stored: bool = True, of: Of = "params"
    ) -> tuple[slice, ...]:
        """The slice of parameter `name` (of its gradient, or of its optimizer state) that `rank`
        stores, one `slice` a dim, in global indices.

        stored=False: the slice it computes with. Cuts along an axis that shares out the batch
        (ZeRO, FSDP) are storage alone: such a parameter is gathered before it is used.
        """
        at = self.coordinates(rank)
        box = [(0, size) for size in shape]
        gathered = () if stored else self.tokens.get("batch", ())
        for split in self.splits(name, of):
            degree = self.degree(split.axis)
            if degree > 1 and split.axis not in gathered:
                low, high = box[split.dim]
                start, stop = split.bounds(high - low, at[split.axis], degree)
                box[split.dim] = (low + start, low + stop)
        return tuple(slice(a, b) for a, b in box)

    def stages_of(self, rank: int) -> tuple[Stage, ...]:
        """The pipeline stages that `rank` runs."""
        pp_rank = self.coordinates(rank).get("pp", 0)
        return tuple(stage for stage in self.stages if stage.pp_rank == pp_rank)

    def holds(self, name: str, rank: int, model: ModelShape) -> bool:
        """Whether a stage of `rank` needs the parameter `name` (a tied head needs the
        embedding)."""
        return needs(self.stages_of(rank), name, model)


def needs(stages: Sequence[Stage], name: str, model: ModelShape) -> bool:
    """Whether one of `stages` needs the parameter `name` (a tied head needs the embedding)."""
    if name.startswith("model.layers."):
        layer = int(name.split(".")[2])
        return any(layer in stage.layers for stage in stages)
    if name == EMBEDDING:
        return any(stage.embed or (stage.head and model.tie_embeddings) for stage in stages)
    return any(stage.head for stage in stages)
