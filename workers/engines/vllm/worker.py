"""What runs in vLLM's own processes: the watch for the death of the process that started them, what
they log of a failure, and what its workers tell of a run.

vLLM calls `attend` through the entry point `vllm.general_plugins` in each of its processes, and
mixes `Recorder` into its workers (`worker_extension_cls`).
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from workers.engines.vllm.ablation import ABLATED, leave_out_communication, left_out

OWNER = "ORCHESTRATOR_VLLM_OWNER"  # process id of the actor; unset where vLLM is not ours
ERRORS = "ORCHESTRATOR_VLLM_ERRORS"  # a file to which errors are added, a JSON object a line
DIED = "died unexpectedly"  # said of a worker by vLLM's executors, which raise nothing then
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def attend() -> None:
    """End this process when its parent ends, keep what it logs as an error, and leave out what is
    to be ablated. Does nothing in a vLLM that no engine of ours has started. The process of the
    engine itself runs no model, and ends when it likes.

    vLLM's engine core does not notice that its parent was killed, and would keep the GPUs. Its
    workers have the engine core as parent; those that Ray has started end with its job there, and
    may be on a node where neither the owner nor the file of errors is.
    """
    owner = os.environ.get(OWNER)
    # Those that Ray has started are not asked for their number: it may be the owner's elsewhere.
    if owner is not None and not _is_actor() and int(owner) != os.getpid():
        _belong_to(owner)
    if os.environ.get(ABLATED) == "comm":
        leave_out_communication()


def _belong_to(owner: str) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1 or not Path("/proc", owner).exists():  # it died before
        os._exit(1)
    if errors := os.environ.get(ERRORS):
        logging.getLogger("vllm").addHandler(ErrorFile(errors))


def _is_actor() -> bool:
    """Whether this process was started by Ray. It is asked without importing Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return False
    return ray.get_runtime_context().get_actor_id() is not None


class ErrorFile(logging.Handler):
    """Adds the exceptions that are logged to a file, their type and message, and the death of a
    worker: all that is raised after it is that a call was cancelled."""

    def __init__(self, path: str) -> None:
        super().__init__(logging.ERROR)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Add one, in one write, as several processes share the file."""
        error = record.exc_info[1] if record.exc_info else None
        message = record.getMessage() if error is None else str(error)
        if error is not None or DIED in message:
            kind = "WorkerDied" if error is None else type(error).__name__
            line = json.dumps({"type": kind, "message": message}) + "\n"
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(line)


class Recorder:
    """Methods that a worker of vLLM gets beside its own; each answers for its rank, in plain data.

    Here `self` is the worker: `model_runner`, `device` and `execute_model` are vLLM's.
    """

    def orchestrator_built(self) -> dict[str, Any]:
        """parameter_bytes: of the parameters that are here; left_out: of `ablation.left_out`."""
        parameters = {id(one): one for one in self._orchestrator_model().parameters()}
        held = sum(one.numel() * one.element_size() for one in parameters.values())
        return {"parameter_bytes": held, "left_out": left_out()}

    def orchestrator_begin(self, marking: bool = False) -> None:
        """Keep the steps from here on, and count the peak of memory from here. marking: also mark
        each step in the trace of a profiler that watches."""
        from workers.device import reset_peak

        worker: Any = self
        if not hasattr(self, "orchestrator_steps"):
            self.orchestrator_steps: list[list[int]] = []
            worker.execute_model = self._orchestrator_kept(worker.execute_model)
        self.orchestrator_steps.clear()
        self.orchestrator_marking = marking
        reset_peak([worker.device])

    def orchestrator_end(self) -> dict[str, Any]:
        """steps: [requests, tokens, of these of prompts] of each step since `orchestrator_begin`;
        peak_memory_bytes."""
        from workers.device import peak_memory

        worker: Any = self
        peak = peak_memory([worker.device])
        return {"steps": list(self.orchestrator_steps), "peak_memory_bytes": peak}

    def _orchestrator_model(self) -> Any:
        worker: Any = self
        return worker.model_runner.get_model()

    def _orchestrator_kept(self, execute: Any) -> Any:
        def execute_and_keep(scheduled: Any, *args: Any, **options: Any) -> Any:
            counts = counts_of(scheduled)
            self.orchestrator_steps.append(counts)
            if not (self.orchestrator_marking and counts[1]):
                return execute(scheduled, *args, **options)
            with step_mark(self.orchestrator_steps):
                return execute(scheduled, *args, **options)

        return execute_and_keep


def step_mark(steps: Sequence[Sequence[int]]) -> AbstractContextManager[Any]:
    """The annotation of the last of `steps`, as the engine torch has it, with its number in the
    table of steps. It is around all that a worker does of a step but sampling; vLLM's own,
    `execute_context_...`, begins after a stage has posted its receive."""
    import torch

    from workers.probes.trace import step_name
    from workers.records import DECODE, PREFILL

    phase = PREFILL if steps[-1][2] else DECODE
    number = sum(1 for _, tokens, _ in steps if tokens) - 1
    return torch.profiler.record_function(step_name(phase, number))


def counts_of(scheduled: Any) -> list[int]:
    """[requests, tokens, of these of prompts] of a SchedulerOutput. A request that has made no
    token yet is in its prompt."""
    cached = scheduled.scheduled_cached_reqs
    made = dict(zip(cached.req_ids, cached.num_output_tokens, strict=True))
    tokens = scheduled.num_scheduled_tokens
    prompts = sum(count for name, count in tokens.items() if not made.get(name))
    return [len(tokens), scheduled.total_num_scheduled_tokens, prompts]
