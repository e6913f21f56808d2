"""The generate loop that is timed does not wait for the device. Runs where there is a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ranks import BASE, FAMILIES, engine_plan, ragged_requests

from strategies import ModelShape
from workers.actor import Worker
from workers.messages import Work

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="a CPU is never behind its host"
)
SHAPE = ModelShape.from_config(
    {**BASE, **FAMILIES["Llama"], "hidden_size": 256, "architectures": ["LlamaForCausalLM"]},
    "llama",
)
WORK = Work(ragged_requests(SHAPE.vocab_size, count=9), max_concurrency=4)


@pytest.fixture
def worker() -> Iterator[Worker]:
    """One rank with everything loaded, captured and compiled."""
    worker = Worker()
    try:
        worker.build(
            "torch", engine_plan("tp1", SHAPE, None, WORK, device="cuda", dtype="bfloat16"), None
        )
        worker.run(WORK)
        yield worker
    finally:
        worker.close()


@pytest.fixture
def alarmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch raises at a call inside the loop that waits for the device."""
    from workers.engines.native.generator import Generator

    loop = Generator._loop

    def guarded(self: Generator, *args: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            loop(self, *args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Generator, "_loop", guarded)


@pytest.mark.usefixtures("alarmed")
def test_a_closed_loop_of_fixed_lengths_never_waits(worker: Worker) -> None:
    report = worker.run(WORK)
    assert report.requests is not None
    assert report.requests["output_len"].to_pylist() == [
        request.output_len for request in WORK.requests
    ]


@pytest.mark.usefixtures("alarmed")
def test_a_loop_that_stops_at_an_end_of_text_waits_for_its_tokens(worker: Worker) -> None:
    with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
        worker.run(Work(WORK.requests, WORK.max_concurrency, ignore_eos=False))
