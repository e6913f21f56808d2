"""A model whose values are not finite fails, and says where: it must not be the fastest."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Pool, engine_plan, ragged_requests, read_shape
from safetensors.torch import load_file, save_file

from strategies import Placement
from workers.communicator import Communicator
from workers.engines.native.sampling import Sampler
from workers.messages import BROKEN, Work
from workers.rank import RankContext

LAYOUTS = ["tp1", "tp2", "pp2", "tp2pp2", "dp2"]
MLP_OF_3 = "model.layers.3.mlp.up_proj.weight"


def spoilt(folder: Path, target: Path, name: str | None, value: float = math.nan) -> Path:
    """A copy of a checkpoint in which the first value of `name`, or all of every tensor, is
    `value`."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    for tensor in tensors.values() if name is None else ():
        tensor.fill_(value)
    if name is not None:
        tensors[name].view(-1)[0] = value
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def served(pool: Pool, layout: str, folder: Path, engine: str = "torch", **options: Any) -> Any:
    shape = read_shape(folder)
    work = Work(ragged_requests(shape.vocab_size), max_concurrency=4)
    return pool.serve(engine_plan(layout, shape, folder, work, **options), work, engine=engine)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_of_nan_fails_under_every_layout(
    layout: str, pool: Pool, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = spoilt(checkpoint("Llama"), tmp_path / "nan", None)
    with pytest.raises(RuntimeError, match=r"NotFinite: the logits of step \d.*the embedding"):
        served(pool, layout, folder)


@pytest.mark.parametrize("layout", ["tp1", "tp2pp2"])
@pytest.mark.parametrize(
    ("name", "where"),
    [
        (MLP_OF_3, "layer 3 \\(MLP"),
        ("model.layers.1.self_attn.o_proj.weight", "layer 1 \\(attention"),
        ("lm_head.weight", "the final norm or the head"),
    ],
)
def test_the_layer_is_named(
    name: str,
    where: str,
    layout: str,
    pool: Pool,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = spoilt(checkpoint("Llama"), tmp_path / "one", name, math.inf)
    with pytest.raises(RuntimeError, match=f"request [0-9]+, are not finite.*comes from {where}"):
        served(pool, layout, folder)


def test_the_worker_that_brings_it_into_a_sum_is_named(
    pool: Pool, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """The first rows of up_proj are those of rank 0; every rank has NaN after the sum."""
    folder = spoilt(checkpoint("Llama"), tmp_path / "one", MLP_OF_3)
    shape = read_shape(folder)
    work = Work(ragged_requests(shape.vocab_size), max_concurrency=4)
    pool.build(engine_plan("tp2", shape, folder, work))
    try:
        for connection in pool.connections[:2]:
            connection.send(("run", (work,)))
        answers = [connection.recv() for connection in pool.connections[:2]]
    finally:
        pool.call("close", [()] * 2)
    assert [status for status, _ in answers] == ["error", "ok"]


def test_a_run_without_collectives_gives_anything_and_is_not_refused(
    pool: Pool, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = spoilt(checkpoint("Llama"), tmp_path / "nan", None)
    (reports,) = served(pool, "tp2", folder, ablation="comm")
    assert len(reports) == 2


def test_temperature_hides_nothing(
    pool: Pool, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = spoilt(checkpoint("Llama"), tmp_path / "nan", MLP_OF_3)
    for engine in ("torch", "transformers"):
        with pytest.raises(RuntimeError, match="NotFinite"):
            served(pool, "tp1", folder, engine=engine, temperature=1.0)


@pytest.mark.parametrize(("engine", "layout"), [("transformers", "tp1"), ("deepspeed", "tp2")])
def test_engines_of_transformers_refuse_it_too(
    engine: str, layout: str, pool: Pool, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    if engine == "deepspeed":
        pytest.importorskip("deepspeed")
    folder = spoilt(checkpoint("Llama"), tmp_path / "nan", MLP_OF_3)
    with pytest.raises(RuntimeError, match=r"NotFinite: the logits of step 0, request 0.*torch"):
        served(pool, layout, folder, engine=engine)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.001, 2.0])
def test_one_value_of_one_row_is_told(value: float, temperature: float) -> None:
    communicator = Communicator(RankContext(0, Placement(), torch.device("cpu")))
    sampler = Sampler(communicator, 0, None, temperature, seed=1)
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 1e4
    logits[1, 17] = value
    rows = torch.arange(3)
    assert (sampler(logits.bfloat16(), rows, rows, rows) == BROKEN).tolist() == [False, True, False]


def test_the_config_of_the_checkpoints_is_whole(checkpoint: Callable[[str], Path]) -> None:
    """What `spoilt` copies is one file, so that it spoils what is read."""
    folder = checkpoint("Llama")
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 5
    assert [file.name for file in folder.glob("*.safetensors*")] == ["model.safetensors"]
