"""A command that makes runs, as it is now: a row a layout, the time left, and what comes next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from orchestrator.report.output import fitted, width_of
from orchestrator.report.text import fixed, plural
from orchestrator.store.live import Live, LiveLayout
from workers.device import DevicesNow
from workers.units import duration, format_bytes

BARS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
BARS_SHOWN = 12
TITLES = ("layout", "runs", "tok/s", "", "state")
OF_DEVICES = ("GPU", "power", "memory")
AROUND = 8  # lines of a terminal that are not for layouts


@dataclass(frozen=True, slots=True)
class LiveView:
    """Everything that is known of it, as much as fits into the terminal.

    now: seconds since 1970. devices: of this machine; None where it has no GPU, or uses none.
    """

    live: Live
    now: float
    devices: DevicesNow | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Its parts: the summary, then a row a layout."""
        yield Text(summary(self.live, self.now))
        layouts = self._shown(options.height or console.height)
        for devices, bars in ((self.devices, BARS_SHOWN), (self.devices, 0), (None, 0)):
            table = _table(layouts, devices, bars)
            if width_of(table, console) <= options.max_width:
                break
        yield from fitted(table, console)
        if left_out := len(self.live.layouts) - len(layouts):
            yield Text(f"and {plural(left_out, 'layout')} beside the one at work.")

    def _shown(self, height: int) -> list[LiveLayout]:
        """As many layouts as there are lines for, that at work among them."""
        room = max(1, height - AROUND)
        busy = next((n for n, one in enumerate(self.live.layouts) if one.phase), 0)
        first = max(0, min(busy - room // 2, len(self.live.layouts) - room))
        return list(self.live.layouts[first : first + room])


def _table(layouts: Sequence[LiveLayout], devices: DevicesNow | None, bars: int) -> Table:
    titles = (*TITLES, *OF_DEVICES) if devices else TITLES
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, header_style="dim")
    for title in titles:
        right = title in ("runs", "tok/s", *OF_DEVICES)
        table.add_column(title, justify="right" if right else "left", no_wrap=True)
    for one in layouts:
        table.add_row(*_row(one, devices, bars), style=_style(one))
    return table


def summary(live: Live, now: float) -> str:
    """How many runs have ended, how long the rest takes, and which layout is next."""
    left, following = live.seconds_left(now), _next(live) if live.works else ""
    parts = (
        "" if live.process.is_here else f"on {live.process.host}",
        f"{live.done} of {plural(live.runs, 'run')}",
        "" if not left or live.done >= live.runs else f"about {duration(left)} left",
        f"next: {following}" if following else "",
        "" if live.works else _how_it_ended(live),
    )
    return ", ".join(filter(None, parts)) + "."


def beginning(live: Live) -> str:
    """What is about to be done, and how long that should take."""
    layouts = sum(bool(one.runs) for one in live.layouts)
    known = live.expected_s
    how_long = (
        "how long that takes is known after the first"
        if known is None
        else f"about {duration(known)} as predicted, and the builds of the layouts"
    )
    return f"{plural(live.runs, 'run')} of {plural(layouts, 'layout')}: {how_long}."


def spark(rates: Sequence[float]) -> str:
    """A bar a run, from nothing to the fastest."""
    most = max(rates, default=0.0)
    return "".join(
        BARS[round((len(BARS) - 1) * rate / most)] if most else BARS[0] for rate in rates
    )


def _row(one: LiveLayout, devices: DevicesNow | None, bars: int) -> list[str]:
    rate = fixed(one.rates[-1]) if one.rates else ""
    line = spark(one.rates[len(one.rates) - bars :] if bars < len(one.rates) else one.rates)
    row = [one.layout, f"{one.done}/{max(one.runs, one.done)}", rate, line, _state(one)]
    if devices is None:
        return row
    return row + (_now(devices) if one.phase else ["", "", ""])


def _now(devices: DevicesNow) -> list[str]:
    used, power = devices.utilization_pct, devices.power_w
    return [
        "-" if used is None else f"{used:.0f}%",
        "-" if power is None else f"{power:.0f} W",
        format_bytes(devices.memory_bytes),
    ]


def _state(one: LiveLayout) -> str:
    if one.phase:
        return f"{one.cell.removeprefix(one.deployment + '.')}  {one.phase}".strip()
    failed = f", {one.failed} failed" if one.failed else ""
    if one.done >= one.runs:
        return f"done{failed}" if one.runs else "had its results"
    return f"waits{failed}"


def _style(one: LiveLayout) -> str:
    if one.phase:
        return "bold"
    return "red" if one.failed else ""


def _next(live: Live) -> str:
    """The layout whose turn is next: the one after the one that works, round and round."""
    busy = next((n for n, one in enumerate(live.layouts) if one.phase), -1)
    after = [*live.layouts[busy + 1 :], *live.layouts[: max(busy, 0)]]
    return next((one.layout for one in after if one.done < one.runs), "")


def _how_it_ended(live: Live) -> str:
    if live.has_ended:
        return "it has ended"
    if live.is_silent:
        return (
            f"its driver on {live.process.host} shows no more that it lives; if it does not, the "
            "same command goes on"
        )
    return "its driver is gone; the same command goes on"
