"""What the manifest says of the machine, its settings and the source."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from orchestrator.cluster import hardware, nodes
from orchestrator.cluster.connection import Cluster
from orchestrator.experiment import Experiment
from orchestrator.run import manifest
from orchestrator.run.source import Source
from orchestrator.store.store import Store


class Nvml:
    """The driver of one GPU whose clocks were set and whose power limit was lowered."""

    NVMLError = RuntimeError
    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.1"

    def nvmlDeviceGetName(self, handle: str) -> str:
        return "NVIDIA H200"

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> object:
        class Info:
            total = 141 << 30

        return Info()

    def nvmlDeviceGetClockInfo(self, handle: str, which: int) -> int:
        return {1: 345, 2: 2619}[which]

    def nvmlDeviceGetMaxClockInfo(self, handle: str, which: int) -> int:
        return {1: 1980, 2: 3201}[which]

    def nvmlDeviceGetApplicationsClock(self, handle: str, which: int) -> int:
        return {1: 1500, 2: 3200}[which]

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:
        return 500_000

    def nvmlDeviceGetCudaComputeCapability(self, handle: str) -> tuple[int, int]:
        return 9, 0

    def nvmlDeviceGetPowerManagementDefaultLimit(self, handle: str) -> int:
        return 700_000


def written(folder: Path, device: str) -> dict[str, object]:
    """The manifest of an experiment on this machine, as it is read again."""
    store = Store(folder)
    store.create()
    experiment = Experiment(strategy=["tp1"], model="tiny", result_dir=folder)
    cluster = Cluster((nodes.this_node(device, 1),), True, "local", None)
    manifest.write(store, experiment, [], cluster, device, 0)
    found: dict[str, object] = json.loads((folder / "manifest.json").read_text())
    return found


def test_a_gpu_is_written_with_its_uuid_its_clocks_and_its_power_limits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = contextlib.nullcontext((Nvml(), ["a"]))
    monkeypatch.setattr(hardware, "visible_gpus", lambda: there)
    found = written(tmp_path, "cuda")
    assert found["gpus"] == [
        {
            "index": 0,
            "name": "NVIDIA H200",
            "uuid": "GPU-a",
            "memory_bytes": 141 << 30,
            "driver": "580.1",
            "sm_clock_mhz": 345,
            "max_sm_clock_mhz": 1980,
            "application_sm_clock_mhz": 1500,
            "memory_clock_mhz": 2619,
            "max_memory_clock_mhz": 3201,
            "application_memory_clock_mhz": 3200,
            "power_limit_w": 500.0,
            "default_power_limit_w": 700.0,
            "compute_capability": "9.0",
        }
    ]
    assert found["nvls"] == "off"


def test_variables_are_written_and_secrets_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    monkeypatch.setenv("HF_TOKEN", "secret-of-mine")
    found = written(tmp_path, "cpu")
    assert found["nvls"] is None  # there is no NVLink to speak of
    assert isinstance(found["environment"], dict)
    assert {"NCCL_ALGO": "Ring", "NCCL_NVLS_ENABLE": "0"}.items() <= found["environment"].items()
    assert "secret-of-mine" not in (tmp_path / "manifest.json").read_text()


@pytest.mark.parametrize("dirty", [True, False])
def test_the_commit_is_written_as_it_is_and_changes_beside_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dirty: bool
) -> None:
    monkeypatch.setattr(manifest, "source", lambda: Source("abc", dirty))
    found = written(tmp_path, "cpu")
    assert (found["git_commit"], found["git_dirty"]) == ("abc", dirty)


def test_without_a_checkout_nothing_is_said_of_the_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(manifest, "source", lambda: None)
    found = written(tmp_path, "cpu")
    assert found["git_commit"] is found["git_dirty"] is None
