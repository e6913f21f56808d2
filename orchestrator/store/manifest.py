"""What manifest.json may say. Any version may have written it, so every field may be missing, and
fields that are not known are kept as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class _Fields(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class GpuFields(_Fields):
    """A GPU of the node."""

    index: int = 0
    name: str | None = None
    uuid: str | None = None
    memory_bytes: int | None = None
    driver: str | None = None
    sm_clock_mhz: int | None = None
    max_sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    max_memory_clock_mhz: int | None = None
    application_sm_clock_mhz: int | None = None
    application_memory_clock_mhz: int | None = None
    power_limit_w: float | None = None
    default_power_limit_w: float | None = None


class DeviceFields(_Fields):
    """A device that ranks could be placed on."""

    node: str
    index: int
    name: str
    memory_bytes: int | None = None


class HostFields(_Fields):
    """The machine of the driver."""

    name: str | None = None
    system: str | None = None
    cpu_count: int | None = None
    memory_bytes: int | None = None
    cpu_model: str | None = None


class BlockFields(_Fields):
    """When, where and with what one command ran."""

    started_at: str | None = None
    host: str | None = None
    cpu_model: str | None = None
    node: int | None = None
    gpu_uuids: list[str] | None = None
    gpus: list[GpuFields] | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None


class AskedFields(_Fields):
    """What of the experiment is read again; lists hold what every command asked for."""

    strategy: list[str] = []
    scenario: list[str] = []
    max_concurrency: list[int] = []
    ablate: list[str] = []
    difference: float | None = None
    until_ci: float | None = None


class ManifestFields(_Fields):
    """The whole of it."""

    schema_version: int = 0
    name: str | None = None
    identity: str | None = None
    started_at: str = ""
    finished_at: str | None = None
    updated_at: str | None = None
    experiment: AskedFields = AskedFields()
    cells: list[str] = []
    asked: dict[str, list[tuple[int, int]]] = {}
    meshes: dict[str, list[tuple[str, int]]] = {}
    num_prompts: dict[str, int] = {}
    blocks: list[BlockFields] = []
    device: str | None = None
    topology: list[DeviceFields] = []
    gpus: list[GpuFields] = []
    host: HostFields | None = None
    driver_version: str | None = None
    nccl_version: str | None = None
    nvls: str | None = None
    versions: dict[str, str] = {}
    environment: dict[str, str] = {}
    git_commit: str | None = None
    git_dirty: bool | None = None
    engine_settings: dict[str, dict[str, str]] = {}  # deployment -> what its engine says
    checkpoints: dict[str, str] = {}  # deployment -> the folder of what it trained
    metadata: dict[str, str] = {}


def fields_of(content: bytes) -> Mapping[str, Any]:
    """The fields of a manifest as they are written. Raises ValueError, with the field, where it is
    no JSON or one has a wrong type."""
    try:
        ManifestFields.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None
    found: Mapping[str, Any] = json.loads(content)
    return found


def runs_asked(manifest: Mapping[str, Any], cell: str) -> set[tuple[int, int]]:
    """(start, run) of each run of a cell that any command asked for."""
    pairs = (manifest.get("asked") or {}).get(cell, ())
    return {(s, run) for starts, runs in pairs for s in range(starts) for run in range(runs)}
