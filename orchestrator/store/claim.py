"""Who writes below a URI. An object store has no lock: two drivers that begin in the same moment
are noticed when one of them writes next, and not before.

A driver keeps an object there and renews it. Whoever finds one that another driver renews leaves;
one that is not renewed while it is watched is of a driver that has died.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from orchestrator.errors import UserError
from orchestrator.store.objects import Objects
from workers.process import ProcessId

WRITER = "WRITER"
RENEW_S = 10.0
WATCH_S = 3.5 * RENEW_S


class Claim:
    """This driver's claim to be the only one that writes `objects`."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._fields = asdict(ProcessId.here()) | {"token": secrets.token_hex(8)}
        self._renewed = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="claim")

    def take(self) -> None:
        """Be the one that writes. Raises UserError where another driver is, and OSError where the
        store cannot be written."""
        other = self._read()
        if other and _may_run(other):
            self._watch(other)
        self._put()
        self._thread.start()

    def _watch(self, other: Mapping[str, Any]) -> None:
        """Wait whether another claim is renewed."""
        who = f"pid {other.get('pid')} on {other.get('host')}"
        click.echo(
            f"note: {who} has written to {self.objects.uri}; watching for {WATCH_S:g} s whether it "
            "still does.",
            err=True,
        )
        deadline = time.monotonic() + WATCH_S
        while time.monotonic() < deadline:
            time.sleep(RENEW_S / 4)
            if self._read() not in (other, None):
                raise UserError(
                    f"{who} is writing to {self.objects.uri}; wait for it to end, or give another "
                    "--result-dir"
                )

    def check(self) -> None:
        """Raise UserError where another driver has begun to write since."""
        other = self._read()
        if other and other.get("token") != self._fields["token"]:
            raise UserError(
                f"pid {other.get('pid')} on {other.get('host')} writes to {self.objects.uri} too; "
                "let one of the two end, and give the command again"
            )

    def release(self, answers: bool = True) -> None:
        """Let another driver write. answers: whether the store does; else it is not asked."""
        self._ended.set()
        if not answers:
            return
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(OSError, UserError):
            self.check()
            self.objects.delete(WRITER)

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            with contextlib.suppress(OSError):  # the next write says it
                try:
                    self.check()
                except UserError:
                    return
                self._put()

    def _put(self) -> None:
        self._renewed += 1
        fields = {**self._fields, "renewed": self._renewed}
        self.objects.put(WRITER, json.dumps(fields).encode())

    def _read(self) -> Mapping[str, Any] | None:
        content = self.objects.get(WRITER)
        with contextlib.suppress(ValueError):
            fields = json.loads(content or b"null")
            return fields if isinstance(fields, dict) else None
        return None


def _may_run(claim: Mapping[str, Any]) -> bool:
    try:
        return ProcessId.read(claim).may_run(of_this_machine=False)
    except (KeyError, TypeError, ValueError):
        return True
