"""A run, watched from another terminal."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.report.output import Output, say

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from orchestrator.store.live import Live
    from workers.device import DevicesNow

    Devices = Callable[[], DevicesNow | None]

POLL_S = 0.5


def watch(roots: Sequence[Path], once: bool, out: Output) -> None:
    """Show the run that began last among results, until it ends. once: as it is now, and leave."""
    from orchestrator.cluster.hardware import watched_gpus
    from orchestrator.report.live import LiveView
    from orchestrator.store.live import latest

    live, console = latest(roots), out.console()
    if out.as_json:
        left = live.seconds_left(time.time())
        out.document(asdict(live) | {"works": live.works, "seconds_left": left})
        return
    with watched_gpus() as of_this_machine:
        devices = of_this_machine if live.process.is_here else lambda: None
        if once:
            console.print(LiveView(live, time.time(), devices()))
        elif console.is_terminal:
            _follow(live, devices, console)
        else:
            _tell(live)


def _follow(live: Live, devices: Devices, console: Console) -> None:
    """Draw it in place."""
    from rich.live import Live as Display

    from orchestrator.report.live import LiveView
    from orchestrator.store.live import newer

    def drawn() -> RenderableType:
        return LiveView(live, time.time(), devices())

    with Display(console=console, refresh_per_second=1 / POLL_S, get_renderable=drawn) as display:
        for one in newer(live, POLL_S):
            live = one
        display.refresh()


def _tell(live: Live) -> None:
    """Print a line whenever a run has ended."""
    from orchestrator.report.live import summary
    from orchestrator.store.live import newer

    told = None
    for one in itertools.chain([live], newer(live, POLL_S)):
        if (one.done, one.works) != told:
            told = one.done, one.works
            say(summary(one, time.time()))
