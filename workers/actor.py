"""The process of one rank, kept thin: meet the others, build, run, close. Ray makes an actor of
`Worker`, and calls its methods by name.

ray is imported only to ask which node and GPU it gave this actor, and to end the actor.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from workers import engines
from workers.device import num_cores
from workers.messages import Built, EnginePlan, Process, RankReport, TrainingWork, Work
from workers.probes.collector import uncollected
from workers.probes.gauges import Publisher
from workers.probes.nvml_readings import Readings
from workers.probes.telemetry import Recording, Sampler, sampler_for
from workers.progress import BUILDING, IDLE, OBSERVING, RUNNING, Progress, ranges_for, standing_here

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch._C._distributed_c10d import Store  # torch.distributed has it, but not for mypy

    from workers.rank import RankContext


class Worker:
    """One rank, or the ranks that an engine drives from one process: those of a replica, or all.

    rank: the first of them. An actor learns its rank from `assign`, once the driver knows where all
    of them landed. environment: what is more in that of this process from now on.
    """

    def __init__(
        self, rank: int = 0, device_index: int = 0, environment: Mapping[str, str] | None = None
    ) -> None:
        if environment:
            os.environ.update(environment)
            paths = environment.get("PYTHONPATH", "").split(os.pathsep)
            sys.path[:0] = [path for path in paths if path and path not in sys.path]
            tempfile.tempdir = None  # where temporary files go was asked for before
        self.rank = rank
        self.device_index = device_index
        self._gpu_ids: list[str] = []
        self._bundles: tuple[int, ...] = ()
        self._address: str | None = None  # of its node
        self._store: Store | None = None
        self._engine: engines.Engine | None = None
        self._context: RankContext | None = None
        self._sampler = Sampler()
        self._recording: Recording | None = None
        self._progress = Progress(standing=standing_here())
        self._publisher: Publisher | None = None

    def process(self) -> Process:
        """Where Ray put this process, which uses that GPU from now on."""
        import ray

        context = ray.get_runtime_context()
        self._gpu_ids = context.get_accelerator_ids().get("GPU", [])
        self._address = ray.util.get_node_ip_address()
        self.device_index = _local_index(self._gpu_ids)
        fd = self._progress.standing.fd
        return Process(context.get_node_id(), self.device_index, os.getpid(), fd)

    def assign(self, rank: int, bundles: tuple[int, ...] = ()) -> None:
        """Give this process its rank; bundles: see `RankContext`. Imports torch, which takes long,
        in all ranks at once: else the others wait for the one that opens the rendezvous, and then
        it for them."""
        import torch.distributed  # noqa: F401

        self.rank, self._bundles = rank, bundles

    def publish(self, tags: dict[str, str]) -> None:
        """From now on publish to Ray's metrics what this rank does, under `tags` and its rank."""
        self._publisher = Publisher({**tags, "rank": str(self.rank)}, self._progress, self._samples)

    def open_store(self, host: str) -> tuple[str, int]:
        """On rank 0: open the rendezvous on a free port of `host`, an address of its node, and keep
        it. Returns (host, port)."""
        from workers import rendezvous

        self._store, port = rendezvous.open_store(host)
        return host, port

    def build(
        self, engine: str, plan: EnginePlan, address: tuple[str, int] | None
    ) -> Built | Sequence[Built]:
        """Join the ranks at `address`, then load weights and warm up. An exception becomes the
        reason why the deployment failed."""
        self._progress.state = BUILDING
        self._engine = engines.of_plan(engine, plan)
        together = self._engine.processes == "per_rank" and plan.placement.num_ranks > 1
        if self._engine.processes == "per_replica":
            self._see_own_gpus()
        store = self._join(address) if together and address is not None else None
        self._context = self._connect(plan, store)
        if not plan.spans_nodes:  # else its devices are not those of this node
            count = engines.ranks_of_process(engine, plan)
            self._sampler = sampler_for(plan.device, self.device_index, count)
        with self._context.ranges.span("build"):
            built = self._engine.build(self._context, plan)
        self._progress.state = IDLE
        return built

    def _see_own_gpus(self) -> None:
        """Hide the GPUs of other replicas from this process and those that it starts: they take the
        first ones that they see. Before anything asks CUDA."""
        if self._gpu_ids:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self._gpu_ids)
            self.device_index = 0

    def _connect(self, plan: EnginePlan, store: Store | None) -> RankContext:
        """The context of this rank, with its process groups. `store` is where the ranks meet; None
        for a process that is alone."""
        from workers.rank import connect

        device = self._device(plan)
        with self._progress.waiting():
            ways = plan.switches.allreduce, plan.switches.overlap
            context = connect(self.rank, plan.placement, device, store, plan.timeout_s, *ways)
        context.progress, context.bundles = self._progress, self._bundles
        context.ranges = ranges_for(plan.nsys_dir is not None)
        return context

    def _device(self, plan: EnginePlan) -> torch.device:
        """The device of this process, made the current one. On a CPU torch gets one thread, so that
        several ranks can share the machine; beside a GPU it has one, and its share of the cores
        where an optimizer steps in main memory."""
        import torch

        if plan.device == "cpu":
            torch.set_num_threads(1)
            return torch.device("cpu")
        if plan.training is not None and plan.training.offload != "none":
            gpus = min(plan.placement.num_ranks, torch.cuda.device_count())  # of this node
            torch.set_num_threads(max(1, num_cores() // gpus))  # Ray leaves one
        if self._engine is None or self._engine.processes != "per_replica":
            torch.cuda.set_device(self.device_index)  # else others compute, and this takes memory
        return torch.device("cuda", self.device_index)

    def _join(self, address: tuple[str, int]) -> Store:
        from workers import rendezvous

        rendezvous.use_interface(address[0], self._address)
        if self._store is None:
            self._store = rendezvous.join(address)
        return self._store

    def run(self, work: Work | TrainingWork) -> RankReport | Sequence[RankReport]:
        """Serve `work` and report. An exception becomes the reason why the run failed."""
        assert self._engine is not None, "build first"
        assert self._context is not None
        self.telemetry()
        self._recording = self._sampler.start()
        self._progress.state = OBSERVING if work.observe else RUNNING
        try:
            with uncollected(), self._context.ranges.span(work.title):
                report = self._engine.run(work)
        finally:
            self._end_run()
        first = report if isinstance(report, RankReport) else report[0]
        self._recording.origin_s = first.began_s
        return report

    def telemetry(self) -> pa.Table | None:
        """TELEMETRY: what was sampled since `run` was last called; ends the sampling.

        The driver calls it when every rank has ended its run. If a replica ends early, the samples
        show its GPU idle until then.
        """
        recording, self._recording = self._recording, None
        if recording is None:
            return None
        recording.stop()
        return recording.table(self.rank)

    def close(self) -> None:
        """Free everything; a next `build` may follow."""
        self.telemetry()
        if self._publisher is not None:
            self._publisher.stop()
            self._publisher = None
        if self._engine is not None:
            self._engine.close()
        if self._context is not None:
            self._context.close()
        self._engine = self._context = self._store = None

    def leave(self) -> None:
        """End this process normally, so that a profiler around it can write its report. The caller
        gets the error that the actor has died."""
        import ray

        ray.actor.exit_actor()

    def _end_run(self) -> None:
        """Publish the last steps of the run, then drop all of them."""
        self._progress.state = IDLE
        if self._publisher is not None:
            self._publisher.publish()
        self._progress.end()

    def _samples(self) -> list[Readings]:
        recording = self._recording
        return [] if recording is None else recording.latest()


def _local_index(gpu_ids: list[str]) -> int:
    """The number by which torch knows the first of the GPUs that Ray gave; 0 without a GPU.

    Ray names a GPU as CUDA_VISIBLE_DEVICES of the node does, and torch counts along that list.
    """
    if not gpu_ids:
        return 0
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible.index(gpu_ids[0]) if gpu_ids[0] in visible else int(gpu_ids[0])
