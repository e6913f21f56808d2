"""What every placement must be. A mistake of a strategy is found here, before anything runs."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import translate
from itertools import product

from strategies.errors import LayoutError
from strategies.placement import Placement, Split
from strategies.shapes import ModelShape

SHARED = ("batch", "sequence")  # what `Placement.tokens` can share out


def check(placement: Placement, model: ModelShape) -> None:
    """Raise LayoutError with the first mistake in `placement`: what is asked, what is true and what
    to do. Looks at axes and parameters, never at single ranks, so that many ranks cost little."""
    _check_mesh(placement)
    _check_devices(placement)
    _check_axes(placement)
    _check_patterns(placement, model)
    _check_layers(placement, model)
    _check_ends(placement)
    _check_stages(placement)
    _check_work_differs(placement, _cut_axes(placement, model))


# -- axes and devices


def _check_mesh(placement: Placement) -> None:
    for axis, count in Counter(axis for axis, _ in placement.mesh).items():
        if count > 1:
            raise LayoutError(f"the mesh has the axis {axis} {count} times; name each axis once")
    for axis, degree in placement.mesh:
        if degree < 1:
            raise LayoutError(f"the mesh axis {axis} has degree {degree}; use 1 or more")


def _check_devices(placement: Placement) -> None:
    ranks, devices = placement.num_ranks, placement.devices
    if len(devices) != ranks:
        raise LayoutError(
            f"devices has {len(devices)} {_plural(len(devices), 'entry', 'entries')} for {ranks} "
            f"{_plural(ranks, 'rank')}; use with_axis, or give one device for every rank"
        )
    if devices != tuple(range(ranks)) and sorted(devices) != list(range(ranks)):
        raise LayoutError(
            f"devices {_short(devices)} is no permutation; it must hold every number from 0 to "
            f"{ranks - 1} once"
        )


def _check_axes(placement: Placement) -> None:
    """Every axis that a cut or `tokens` names is in the mesh."""
    for mapping in placement.cuts.values():
        for pattern, cuts in mapping.items():
            for split in cuts:
                _check_axis(placement, split.axis, f"'{pattern}' is cut along")
    for what, axes in placement.tokens.items():
        if what not in SHARED:
            raise LayoutError(f"tokens has no '{what}'; use {' or '.join(map(repr, SHARED))}")
        for axis in axes:
            _check_axis(placement, axis, f"tokens['{what}'] is shared out over")


def _check_axis(placement: Placement, axis: str, what: str) -> None:
    if axis not in dict(placement.mesh):
        mesh = ", ".join(f"{name}={degree}" for name, degree in placement.mesh) or "no axis"
        raise LayoutError(
            f"{what} the axis '{axis}', but the mesh has {mesh}; add it with "
            f"with_axis('{axis}', degree)"
        )


# -- names of parameters


def _check_patterns(placement: Placement, model: ModelShape) -> None:
    """Every pattern names a parameter that the model's family can have, and decides over one if
    this model has any that it matches."""
    names = [name for name, _ in model.parameters()]
    family = {name for name, _ in _with_every_option(model).parameters()}
    for pattern in _idle(placement, names):
        match = re.compile(translate(pattern)).match
        if pattern not in family and not any(map(match, family)):
            raise LayoutError(
                f"the parameter pattern '{pattern}' matches no parameter of a Llama-like model "
                f"with {model.num_layers} {_plural(model.num_layers, 'layer')}; the nearest name "
                f"is '{_nearest(pattern, model)}'"
            )
        if any(map(match, names)):
            raise LayoutError(
                f"the parameter pattern '{pattern}' changes nothing: an exact name or an earlier "
                "pattern decides over every parameter that it matches; use that one's key to add "
                "a cut"
            )


def _idle(placement: Placement, names: list[str]) -> Iterator[str]:
    """The patterns that decide over none of `names`."""
    for of, mapping in placement.cuts.items():
        if mapping:
            yield from mapping.keys() - {placement.pattern_of(name, of) for name in names}


def _with_every_option(model: ModelShape) -> ModelShape:
    return replace(model, tie_embeddings=False, qkv_bias=True, output_bias=True, qk_norm=True)


def _nearest(pattern: str, model: ModelShape) -> str:
    """The parameter name most like `pattern`, with `*` for the layer."""
    family = _with_every_option(model)
    names = [name for name, _ in replace(family, num_layers=0).parameters()]
    names += [f"model.layers.*.{suffix}" for suffix, _ in family.layer_parameters()]
    return difflib.get_close_matches(pattern, names, n=1, cutoff=0)[0]


# -- stages


def _check_layers(placement: Placement, model: ModelShape) -> None:
    """Every layer of the model is on one stage, and no other is."""
    counts = Counter(layer for stage in placement.stages for layer in stage.layers)
    layers = range(model.num_layers)
    for wrong, where in (
        (sorted(counts.keys() - set(layers)), f"not in {model.name}"),
        ([layer for layer in layers if not counts[layer]], "on no stage"),
        ([layer for layer in layers if counts[layer] > 1], "on more than one stage"),
    ):
        if wrong:
            what = _plural(len(wrong), "layer {} is", "layers {} are").format(_short(wrong))
            raise LayoutError(
                f"{what} {where}; put every layer, {_span(len(layers))}, on one stage"
            )


def _check_ends(placement: Placement) -> None:
    """One stage has the embedding and one has the head."""
    for flag in ("embed", "head"):
        count = sum(getattr(stage, flag) for stage in placement.stages)
        if count != 1:
            found = f"{count} stages have" if count else "no stage has"
            raise LayoutError(f"{found} {flag}=True; set it for one stage")


def _check_stages(placement: Placement) -> None:
    """Every stage is on a rank of the pp axis, and every rank of it has one."""
    degree = placement.degree("pp")
    used = {stage.pp_rank for stage in placement.stages}
    for pp_rank in sorted(used - set(range(degree))):
        raise LayoutError(
            f"a stage is on pp_rank {pp_rank}, but the axis pp has {degree} "
            f"{_plural(degree, 'rank')}; use {_span(degree)}, or with_stages, which adds the axis"
        )
    for pp_rank in sorted(set(range(degree)) - used):
        raise LayoutError(
            f"pp={degree}, but no stage is on pp_rank {pp_rank}, so its ranks have nothing to do; "
            "deal the stages over all of pp, as with_stages does"
        )


# -- cuts


@dataclass(frozen=True, slots=True)
class _Cut:
    """One cut of the parameter `name`, whose dims are left with these sizes by earlier cuts."""

    name: str
    split: Split
    degree: int
    sizes: list[set[int]]

    def check(self) -> None:
        """Raise LayoutError unless the cut fits the tensor."""
        split, dims = self.split, len(self.sizes)
        if not 0 <= split.dim < dims:
            raise LayoutError(
                f"{self.name} is cut along dim {split.dim}, but it has {dims} "
                f"{_plural(dims, 'dim')}; use {_numbers(dims)}"
            )
        for size in self.sizes[split.dim]:
            if split.parts is not None:
                self._check_parts(split.parts, size)
            elif not split.chunked:
                self._check_unit(size)

    def _check_parts(self, parts: tuple[int, ...], size: int) -> None:
        if len(parts) != self.degree:
            raise LayoutError(
                f"{self.name} is cut into {len(parts)} {_plural(len(parts), 'part')} over "
                f"{self.split.axis}={self.degree}; give one size for each of its ranks"
            )
        if sum(parts) != size or min(parts) < 0:
            raise LayoutError(
                f"the parts {_short(parts)} of {self.name} add up to {sum(parts)}, but its dim "
                f"{self.split.dim} has {size}; give sizes from 0 on that add up to it"
            )

    def _check_unit(self, size: int) -> None:
        unit = self.split.unit
        if unit < 1 or size < 1 or size % unit:
            raise LayoutError(
                f"{self.name} is cut in units of {unit}, which does not divide the {size} elements "
                f"of its dim {self.split.dim}; use a unit that does"
            )
        try:
            self.split.bounds(size, 0, self.degree)
        except LayoutError as error:
            raise LayoutError(f"{self.name}, dim {self.split.dim}: {error}") from error

    @property
    def left(self) -> set[int]:
        """The sizes that its dim has afterwards, over all ranks."""
        if self.split.parts is not None:
            return set(self.split.parts)
        sizes, ranks = self.sizes[self.split.dim], range(self.degree if self.split.chunked else 1)
        bounds = [self.split.bounds(size, rank, self.degree) for size in sizes for rank in ranks]
        return {stop - start for start, stop in bounds}

    @property
    def differs(self) -> bool:
        """Whether any two ranks of the axis get different parts."""
        return self.left != self.sizes[self.split.dim]


def _cut_axes(placement: Placement, model: ModelShape) -> set[str]:
    """The axes along which ranks get different parts of some parameter; every cut is checked."""
    axes, seen = set(), set()
    kinds = [of for of, cuts in placement.cuts.items() if cuts]  # the others are cut as parameters
    for of, (name, shape) in product(kinds, model.parameters()):
        splits = placement.splits(name, of)
        if splits and (splits, shape) not in seen:  # layers are alike: look at one of them
            seen.add((splits, shape))
            axes |= {cut.split.axis for cut in _cuts(placement, name, shape, splits)}
    return axes


def _cuts(
    placement: Placement, name: str, shape: tuple[int, ...], splits: tuple[Split, ...]
) -> Iterator[_Cut]:
    """The cuts of one parameter that give ranks different parts, each checked."""
    sizes = [{size} for size in shape]
    for split in splits:
        cut = _Cut(name, split, placement.degree(split.axis), sizes)
        cut.check()
        if cut.differs:
            yield cut
        sizes[split.dim] = cut.left


def _check_work_differs(placement: Placement, cut: set[str]) -> None:
    shared = {axis for axes in placement.tokens.values() for axis in axes}
    for axis, degree in placement.mesh:
        if degree > 1 and axis not in cut | shared | {"pp"}:  # pp has its stages
            raise LayoutError(
                f"the ranks along {axis}={degree} compute the same thing: no parameter of this "
                "model is cut over it, no stage is dealt over it and no tokens are shared out over "
                f"it; do one of these, or leave the axis {axis} out"
            )


# -- words


def _plural(count: int, one: str, many: str = "") -> str:
    return one if count == 1 else many or f"{one}s"


def _numbers(count: int) -> str:
    return " or ".join(map(str, range(count)))


def _span(count: int) -> str:
    return f"0 to {count - 1}" if count > 1 else "0"


def _short(numbers: Iterable[int], most: int = 8) -> str:
    """The numbers, the first few where there are many."""
    found = [str(number) for number in numbers]
    return ", ".join(found[:most]) + (", ..." if len(found) > most else "")
