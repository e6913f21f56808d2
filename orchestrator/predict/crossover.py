"""From which bandwidth of the link on one layout beats another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from orchestrator.predict import factors
from orchestrator.predict.hardware import PCIE_SHARE, Curve, Fabric, Hardware, Link
from orchestrator.predict.layouts import Case, candidates
from orchestrator.predict.passes import Setting
from orchestrator.predict.prediction import Prediction, predict
from strategies import Layout
from strategies.traffic import bus_factor
from workers.rows import Table, column, row

# GB/s that a GPU sends over its link: PCI-SIG's rates of 16 lanes, NVIDIA's of all NVLinks of A100,
# H100 and B200, in one direction.
LINKS = {"PCIe 4": 32, "PCIe 5": 64, "NVLink 3": 300, "NVLink 4": 450, "NVLink 5": 900}
PAIRS = (("tp4", "tp2pp2"), ("tp2", "pp2"))  # the layout that sends more, and the other one
DRAWN = 25  # bandwidths of a curve
EXACT = 1e-3  # relative width at which the bisection ends


@dataclass(frozen=True, slots=True)
class Varied:
    """A link whose bandwidth is varied. of: the link itself, None where it is not known. with_rate:
    the same hardware with so many bytes/s there. low, high: the bytes/s that are looked at. name:
    as a sentence calls it."""

    of: Callable[[Fabric], Link | None]
    with_rate: Callable[[Hardware, float], Hardware]
    low: float
    high: float
    name: str


@dataclass(frozen=True, slots=True)
class Crossover:
    """Of two layouts of as many GPUs of one kind.

    bandwidth: bytes/s of bus bandwidth above which `first` has more tokens/s; None where one of
    them has at every bandwidth, `best`, or where one has no prediction, `why`. own: of the GPU's
    link; None where it is not known. curve: (bytes/s, tokens/s of first, of second), ascending.
    """

    gpu: str
    max_concurrency: int
    first: str
    second: str
    own: float | None
    bandwidth: float | None = None
    best: str | None = None
    why: str | None = None
    curve: tuple[tuple[float, float, float], ...] = ()


@row
class Crossing:
    """A crossover of one load, as a row of a table."""

    model: str = column("Name of the model")
    scenario: str = column("Name of the lengths")
    max_concurrency: int = column("Requests in flight", "1")
    gpu: str = column("Kind of GPU")
    first: str = column("The layout that sends more")
    second: str = column("The other layout, of as many GPUs")
    link_bandwidth: float | None = column("Bus bandwidth of the GPU's own link", "bytes/s")
    crossover_bandwidth: float | None = column(
        "Bus bandwidth above which the first has more tokens/s; null where one of them has at "
        "every bandwidth that is looked at",
        "bytes/s",
    )
    best: str | None = column("Which one has at every bandwidth")
    reason: str | None = column("Why the two cannot be compared")


CROSSINGS = Table("crossover", Crossing)


def marks() -> dict[str, float]:
    """Name of a link -> bytes/s of bus bandwidth that collectives reach over it."""
    share = factors.load().attainable.link
    shares = {name: PCIE_SHARE if "PCIe" in name else share for name in LINKS}
    return {name: rate * 1e9 * shares[name] for name, rate in LINKS.items()}


def crossing(model: str, scenario: str, one: Crossover) -> Crossing:
    """A crossover without its curve."""
    return Crossing(
        model=model,
        scenario=scenario,
        max_concurrency=one.max_concurrency,
        gpu=one.gpu,
        first=one.first,
        second=one.second,
        link_bandwidth=one.own,
        crossover_bandwidth=one.bandwidth,
        best=one.best,
        reason=one.why,
    )


def linked(hardware: Hardware, bandwidth: float) -> Hardware:
    """The same GPUs, of one node, joined by a link of so many bytes/s. Its latency is kept: that
    of the data sheet's link, or what the smallest message of a measured curve takes."""
    fabric = hardware.fabric
    assert fabric.link is not None, "the link is known"
    link = replace(fabric.link, bandwidth=bandwidth, source="as asked")
    curves = tuple(_slanted(curve, bandwidth) for curve in fabric.curves)
    return replace(hardware, fabric=Fabric(link, fabric.network, curves))


def networked(hardware: Hardware, bandwidth: float) -> Hardware:
    """The same GPUs, with a network between their nodes of so many bytes/s for each; its latency is
    kept."""
    fabric = hardware.fabric
    assert fabric.network is not None, "the network is known"
    network = replace(fabric.network, bandwidth=bandwidth, source="as asked")
    return replace(hardware, fabric=replace(fabric, network=network))


def inside_a_node() -> Varied:
    """The link between GPUs of a node, from PCIe 4 to NVLink 5."""
    rates = marks().values()
    name = "the link between GPUs"
    return Varied(lambda fabric: fabric.link, linked, min(rates), max(rates), name)


def between_nodes(low: float, high: float) -> Varied:
    """The network, from `low` to `high` bytes/s."""
    return Varied(lambda fabric: fabric.network, networked, low, high, "the network between nodes")


def _slanted(curve: Curve, bandwidth: float) -> Curve:
    """Its first time, and each message's bytes over the bandwidth."""
    latency, factor = curve.points[0][1], bus_factor(curve.op, curve.ranks)
    points = tuple((size, latency + size * factor / bandwidth) for size, _ in curve.points)
    return replace(curve, points=points)


def crossover(
    case: Case, pair: tuple[str, str], draw: bool = False, varied: Varied | None = None
) -> Crossover:
    """By bisection over the bandwidth, on a logarithmic axis. varied: of which link; None: of the
    one inside a node. draw: with a curve."""
    hardware, asked, link = case.hardware, case.asked, varied or inside_a_node()
    name = hardware.name, asked.max_concurrency, *pair
    own = link.of(hardware.fabric)
    if own is None:
        return Crossover(*name, None, why=f"{link.name} of {hardware.name} is not known")
    found = _both(case, pair)
    if isinstance(found, str):
        return Crossover(*name, own.bandwidth, why=found)

    def speeds(bandwidth: float) -> tuple[float, float]:
        first, second = (_speed(case, *one, link, bandwidth) for one in found)
        return first, second

    def leads(bandwidth: float) -> bool:
        first, second = speeds(bandwidth)
        return first > second

    low, high = link.low, link.high
    at = [low * (high / low) ** (step / (DRAWN - 1)) for step in range(DRAWN)] if draw else []
    made = Crossover(
        *name, own.bandwidth, curve=tuple((bandwidth, *speeds(bandwidth)) for bandwidth in at)
    )
    if leads(low) or not leads(high):
        return replace(made, best=pair[0] if leads(low) else pair[1])
    while high / low > 1 + EXACT:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if leads(middle) else (middle, high)
    return replace(made, bandwidth=math.sqrt(low * high))


def _both(case: Case, pair: Sequence[str]) -> list[tuple[Layout, Setting]] | str:
    """The two layouts, or why one of them has no prediction."""
    gpus = _gpus(pair[0])
    placed = candidates(case, pair, gpus, case.asked.max_concurrency)
    refused = placed.ranking(case.asked.max_concurrency).refused
    return f"{refused[0].layout}: {refused[0].reason}" if refused else list(placed.settings)


def _gpus(layout: str) -> int:
    degrees = "".join(one if one.isdigit() else " " for one in layout).split()
    return math.prod(map(int, degrees))


def _speed(case: Case, layout: Layout, setting: Setting, link: Varied, bandwidth: float) -> float:
    hardware = link.with_rate(case.hardware, bandwidth)
    placed = replace(setting.placed, hardware=hardware, allreduce="nccl")  # as over PCIe
    one = predict(Setting(placed, setting.factors), layout.name, case.asked)
    assert isinstance(one, Prediction), "it is predicted over its own link"
    return one.output_throughput.value
