"""Names of layouts: `layout := part+`, `part := key number`; keys are found through entry
points."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint

from strategies import checks
from strategies.entries import entry_points
from strategies.errors import LayoutError
from strategies.guarded import LIMIT_S, guarded
from strategies.placement import Placement
from strategies.shapes import Load, ModelShape, Topology

GROUP = "orchestrator.strategies"
ALIASES = {"3d": "tp2pp2dp1"}
# Order of parts in a canonical name, and the order they are applied in; other keys follow in
# alphabetical order.
BUILT_IN_ORDER = ("tp", "pp", "dp", "fsdp")
UNCHANGED = {(key, 1) for key in BUILT_IN_ORDER}  # parts that leave a placement as it is
# The greatest number of a part, so that a typing error such as tp22222 does not fill the memory
# with ranks.
MOST = 4096
OURS = (__name__, guarded.__module__)

# A strategy: the placement so far and the number behind its key make a refined placement.
Refine = Callable[[Placement, int, ModelShape, Load, Topology], Placement]


@dataclass(frozen=True, slots=True)
class Layout:
    """A planned layout: its canonical name and its placement."""

    name: str
    placement: Placement

    @property
    def engine(self) -> str | None:
        """The engine this layout needs, or None for any."""
        return self.placement.option("engine")


@dataclass(frozen=True, slots=True)
class Installed:
    """A strategy found among the entry points; `error` says why it could not be loaded."""

    key: str
    source: str
    refine: Refine | None
    error: str | None = None

    @property
    def summary(self) -> str:
        """The first paragraph of the strategy's docstring."""
        text = str(getattr(self.refine, "__doc__", None) or "")
        return " ".join(text.strip().partition("\n\n")[0].split())


def discover() -> dict[str, Installed]:
    """Every installed strategy by key. One that raises on import, or a key of two packages, is kept
    with its error alone."""
    found: dict[str, Installed] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        one = _load(point)
        found[one.key] = _clash(found[one.key], one) if one.key in found else one
    return found


def parse(name: str) -> tuple[tuple[str, int], ...]:
    """'tp2pp2' -> (("tp", 2), ("pp", 2)), aliases resolved. Raises LayoutError if it is not `key
    number` repeated."""
    text = ALIASES.get(name.lower(), name.lower())
    if not re.fullmatch(r"([a-z]+[0-9]{1,9})+", text):
        aliases = ", ".join(ALIASES)
        raise LayoutError(
            f"'{name}' is not a layout; write strategy and number, as in tp4, pp4, dp4, tp2pp2 "
            f"(or {aliases})"
        )
    return tuple((key, int(number)) for key, number in re.findall(r"([a-z]+)([0-9]+)", text))


def spelled(name: str) -> str:
    """A name of a layout as results have it: its parts in the order in which they are applied, and
    degrees of 1 of tp, pp and dp left out. Raises LayoutError as `parse` does."""
    parts = sorted(parse(name), key=_order)
    kept = (f"{key}{number}" for key, number in parts if (key, number) not in UNCHANGED)
    return "".join(kept) or "tp1"


def factorisations(ranks: int) -> Iterator[str]:
    """The name of every tp x pp x dp of so many ranks."""
    divisors = [number for number in range(1, ranks + 1) if ranks % number == 0]
    for tp in divisors:
        for pp in divisors:
            if ranks % (tp * pp) == 0:
                degrees = {"tp": tp, "pp": pp, "dp": ranks // (tp * pp)}
                yield "".join(f"{key}{n}" for key, n in degrees.items() if n > 1) or "tp1"


def plan_layout(
    name: str,
    model: ModelShape,
    load: Load,
    topology: Topology,
    installed: Mapping[str, Installed] | None = None,
) -> Layout:
    """Apply the strategies that `name` is made of to the single-device placement.

    Parts that change nothing (dp1) are left out of the canonical name; a layout of one rank is
    called tp1. installed: strategies by key, instead of those that `discover` finds.
    Raises LayoutError for an unknown strategy, one that makes a mistake (see `checks`), or a
    combination that cannot be made.
    """
    found = discover() if installed is None else installed
    parts = known_parts(name, found)
    placement, spelled = Placement.single(model), ""
    for key, number in sorted(parts, key=_order):
        blame = f"{name}: the strategy '{key}' from {found[key].source}"
        refined = _refine(found[key], blame, (placement, number, model, load, topology))
        if refined is not placement:
            _check(refined, model, blame)
            spelled += f"{key}{number}"
        placement = refined
    return Layout(spelled or "tp1", placement)


def _order(part: tuple[str, int]) -> tuple[int, str]:
    key = part[0]
    return (BUILT_IN_ORDER.index(key) if key in BUILT_IN_ORDER else len(BUILT_IN_ORDER), key)


def known_parts(name: str, found: Mapping[str, Installed]) -> tuple[tuple[str, int], ...]:
    """The parts of `name`. Raises LayoutError unless each is a strategy in `found`, named once,
    with a number that makes sense."""
    parts = parse(name)
    for key, number in parts:
        _check_known(key, name, found)
        if not 1 <= number <= MOST:
            raise LayoutError(f"{name}: {key}{number} makes no sense; numbers go from 1 to {MOST}")
    if len({key for key, _ in parts}) != len(parts):
        raise LayoutError(f"{name}: a strategy is named twice; name each once")
    return parts


def _check_known(key: str, name: str, found: Mapping[str, Installed]) -> None:
    if key not in found:
        free = found.keys() - {other for other, _ in parse(name)}  # each may be named once
        near = difflib.get_close_matches(key, sorted(free), n=1, cutoff=0.3)
        hint = f"; did you mean '{name.lower().replace(key, near[0])}'?" if near else "."
        raise LayoutError(
            f"{name}: there is no strategy '{key}'{hint} Installed: {', '.join(found) or 'none'}"
        )
    if found[key].refine is None:
        raise LayoutError(
            f"{name}: the strategy '{key}' from {found[key].source} could not be loaded: "
            f"{found[key].error}"
        )


def _refine(
    one: Installed, blame: str, arguments: tuple[Placement, int, ModelShape, Load, Topology]
) -> Placement:
    """What the strategy makes of the placement. Raises LayoutError: the strategy's own, or one that
    says how it is broken."""
    assert one.refine is not None
    try:
        refine = one.refine
        refined = guarded(lambda: refine(*arguments))
    except LayoutError:
        raise
    except Exception as error:  # a plug-in may raise anything
        package = str(getattr(one.refine, "__module__", "")).partition(".")[0]
        raise LayoutError(f"{blame} failed: {_told(error, package)}") from error
    if not isinstance(refined, Placement):
        raise LayoutError(f"{blame} failed: it returned {type(refined).__name__}, not a Placement")
    return refined


def _check(placement: Placement, model: ModelShape, blame: str) -> None:
    """Raise LayoutError with the mistake in `placement` and who made it."""
    made = f"{blame} made a placement that cannot run"
    try:
        checks.check(placement, model)
    except LayoutError as error:
        raise LayoutError(f"{made}: {error}") from error
    except Exception as error:  # a field of a wrong type can fail in any way
        raise LayoutError(
            f"{made}: a field has the wrong type: {type(error).__name__}: {error}"
        ) from error


def _told(error: Exception, package: str = "") -> str:
    """The type and text of `error`, and the file and line where it was raised: the innermost one in
    `package`, else the innermost one outside this module and Python's import system."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        return text  # its text names file and line
    frames = [
        (frame.f_globals.get("__name__", ""), frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    ours = ("importlib", "threading")
    outside = [at for at in frames if at[0].partition(".")[0] not in ours and at[0] not in OURS]
    own = [at for at in outside if at[0].partition(".")[0] == package] or outside
    return f"{text} ({own[-1][1]}:{own[-1][2]})" if own else text


def _clash(one: Installed, other: Installed) -> Installed:
    sources = f"{one.source} and {other.source}"
    return Installed(
        one.key,
        sources,
        None,
        f"{sources} both bring a strategy of this name; uninstall one of them",
    )


def _load(point: EntryPoint) -> Installed:
    source = point.dist.name if point.dist else point.value
    if not re.fullmatch("[a-z]+", point.name):
        error = "no layout can name it; a key is letters from a to z"
        return Installed(point.name, source, None, error)
    try:
        refine = guarded(point.load, LIMIT_S)
    except Exception as error:  # a plug-in may raise anything; it must not take the others with it
        return Installed(point.name, source, None, _told(error))
    return Installed(point.name, source, refine)
