"""Each private part of DeepSpeed that is used is there and does what is relied on. A test that
fails names the part that a new version has changed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

deepspeed = pytest.importorskip("deepspeed")

from workers.engines import deepspeed_private as private  # noqa: E402
from workers.engines.deepspeed_process import connect, disconnect  # noqa: E402

ENGINES = Path(private.__file__).parent


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """DeepSpeed's backend over a process group of this process alone."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    try:
        yield connect(torch.device("cpu"))
    finally:
        disconnect()


def test_deepspeed_ops_compatible_ops_is_what_decides_on_the_shared_memory_op(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from deepspeed.comm.torch import build_shm_op

    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr(deepspeed.ops, "__compatible_ops__", {}, raising=False)
    private.disable_shared_memory_op()
    assert deepspeed.ops.__compatible_ops__ == {private.SHARED_MEMORY_OP: False}
    assert "ops.__compatible_ops__" in inspect.getsource(build_shm_op)
    assert build_shm_op() is None


def test_the_name_of_the_shared_memory_op() -> None:
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    assert ShareMemCommBuilder.NAME == private.SHARED_MEMORY_OP


def test_deepspeed_comm_comm_cdb_is_the_backend(backend: object) -> None:
    from deepspeed.comm.torch import TorchBackend

    assert backend is private.backend()
    assert isinstance(backend, TorchBackend)
    assert backend.is_initialized()


def test_the_group_of_all_ranks_and_its_copy_are_asked_of_the_backend(backend: object) -> None:
    from deepspeed.utils import groups

    with private.taking_for_all(taken := object()):
        assert deepspeed.comm.get_world_group() is taken
        assert groups._get_data_parallel_group() is taken
    assert deepspeed.comm.get_world_group() is dist.group.WORLD


@pytest.mark.parametrize("method", private.BACKEND_METHODS)
def test_the_backend_has_the_method(method: str) -> None:
    from deepspeed.comm.torch import TorchBackend

    assert callable(getattr(TorchBackend, method))


@pytest.mark.parametrize("method", private.BACKEND_METHODS)
def test_a_function_of_deepspeed_comm_hands_its_message_to_the_method_of_its_name(
    method: str, backend: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def stand_in(*args: object, **kwargs: object) -> None:
        seen.append(args[0] if args else kwargs[private.BACKEND_METHODS[method].message])

    monkeypatch.setattr(backend, method, stand_in)
    message = torch.zeros(2)
    arguments: dict[str, tuple[object, ...]] = {
        "all_reduce": (message,),
        "inference_all_reduce": (message,),
        "all_gather": (message, torch.zeros(2)),
        "all_gather_into_tensor": (message, torch.zeros(2)),
        "all_gather_coalesced": (message, torch.zeros(2)),
        "broadcast": (message, 0),
    }
    getattr(deepspeed.comm, method)(*arguments[method])
    assert len(seen) == 1
    assert seen[0] is message


def test_ds_tensor_of_a_parameter_is_the_part_that_a_rank_stores(backend: object) -> None:
    module = torch.nn.Linear(4, 3, bias=False)
    assert private.stored(module.weight) is module.weight
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    deepspeed.zero.Init(module=module, config_dict_or_path=config)
    assert module.weight.numel() == 0
    assert private.stored(module.weight) is module.weight.ds_tensor
    assert private.stored(module.weight).numel() == 12


def test_get_model_parallel_group_of_an_mpu_is_all_that_init_inference_calls() -> None:
    from deepspeed.inference.engine import InferenceEngine

    called = set(re.findall(r"self\.mpu\.(\w+)", inspect.getsource(InferenceEngine.__init__)))
    assert called == {"get_model_parallel_group"}
    assert private.TensorParallelGroup("group").get_model_parallel_group() == "group"


def test_no_other_file_names_a_private_part() -> None:
    parts = ("__compatible_ops__", ".cdb", "ds_tensor", "get_model_parallel_group")
    texts = {path.name: path.read_text() for path in ENGINES.rglob("*.py")}
    for part in parts:
        assert [name for name, text in texts.items() if part in text] == ["deepspeed_private.py"]


def test_the_installed_version_is_within_the_bounds_of_pyproject() -> None:
    from importlib.metadata import version

    project = (ENGINES.parents[1] / "pyproject.toml").read_text()
    (low, high) = re.findall(r'"deepspeed>=([\d.]+),<([\d.]+)"', project)[0]

    def number(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", text)[:2])

    assert number(low) <= number(version("deepspeed")) < number(high)


def test_zero_3_keeps_its_part_of_the_weights_in_float32() -> None:
    import inspect

    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

    source = inspect.getsource(DeepSpeedZeroOptimizer_Stage3)
    for part in ("fp32_partitioned_groups_flat", "grad_partitions_flat_buffer"):
        assert f"self.{part}" in source
    assert "get_accelerator().pin_memory(" in source


def test_what_zero_finds_its_moments_by_and_keeps_of_modules_and_scales() -> None:
    from deepspeed.runtime.zero import parameter_offload, partition_parameters
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    register = parameter_offload.DeepSpeedZeRoOffload._register_deepspeed_module
    ((last_module,),) = register.__defaults__
    assert isinstance(last_module, int)
    assert isinstance(partition_parameters.Init.param_id, int)
    assert callable(DeepSpeedZeroOptimizer._lazy_init_hp_params_optimizer_state)
    assert isinstance(parameter_offload.FWD_MODULE_STACK, list)
    for kind in (DeepSpeedZeroOptimizer, DeepSpeedZeroOptimizer_Stage3):
        assert "loss_scaler" in inspect.getsource(kind)


def test_memory_that_has_no_other_size_is_left_as_pinned_memory_is() -> None:
    fixed = torch.from_numpy(np.zeros(4, dtype=np.float32))
    assert not fixed.untyped_storage().resizable()
    other = torch.zeros(4)
    engine = SimpleNamespace(
        module=torch.nn.Linear(1, 1),
        optimizer=SimpleNamespace(optimizer=SimpleNamespace(state={}), held=[fixed, other]),
    )
    private.free(engine)
    assert other.untyped_storage().nbytes() == 0
    assert fixed.untyped_storage().nbytes() == 16
