"""What was trained under one layout is a checkpoint that Transformers loads, and that is served or
trained on under another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import Pool, engine_plan, plain, ragged_requests, read_shape, tokens
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from training_runs import FEW, LOAD, check_same, curve, load_of, shape_of, training_plan

from orchestrator.plan import models
from strategies.errors import Refused
from workers.checkpoint_files import UNFINISHED
from workers.engines.training.saving import check_folder, write
from workers.messages import TrainingWork, Work


def saving(folder: Path, like: str | None = None) -> tuple[TrainingWork, TrainingWork]:
    """A run of a few steps, and the writing of what it has trained."""
    run = TrainingWork(FEW, save=str(folder), like=like)
    return run, replace(run, write=True)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Llama", "Mistral"])
def test_a_checkpoint_of_one_layout_generates_under_another(
    family: str, pool: Pool, tmp_path: Path
) -> None:
    plan = training_plan("tp2pp2", shape_of(family), None, load_of("tp2pp2"))
    pool.serve(plan, *saving(tmp_path), counts=False)
    shape = read_shape(tmp_path)
    assert replace(shape, name=family, eos_token_ids=()) == replace(plan.model, eos_token_ids=())
    work = Work(ragged_requests(shape.vocab_size, 3), max_concurrency=3)
    (reports,) = pool.serve(engine_plan("tp4", shape, tmp_path, work), work)
    assert tokens(reports) == plain(tmp_path, work)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tp1", "fsdp2", "pp2fsdp2", "tp2dp2"])
def test_a_checkpoint_has_the_weights_that_every_layout_ends_with(
    layout: str, pool: Pool, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    found = {}
    for name in ("tp1", layout):
        folder = tmp_path / f"of-{name}"
        plan = training_plan(name, shape_of("Llama"), None, load_of(name))
        pool.serve(plan, *saving(folder), counts=False)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        found[name] = dict(model.named_parameters())
    for name, whole in found["tp1"].items():
        torch.testing.assert_close(found[layout][name], whole, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_training_goes_on_from_it_under_another_layout(pool: Pool, tmp_path: Path) -> None:
    """With fresh moments: the optimizer's state is not kept."""
    shape = shape_of("Llama")
    plan = training_plan("fsdp2", shape, None, LOAD)
    pool.serve(plan, *saving(tmp_path), counts=False)
    curves = [
        curve(pool.serve(training_plan(layout, shape, tmp_path), TrainingWork(2), counts=False)[0])
        for layout in ("tp2", "pp2")
    ]
    check_same(*curves)


@pytest.mark.slow
def test_it_has_the_tokenizer_of_a_model_that_was_trained_from_dummy_weights(
    pool: Pool, tmp_path: Path
) -> None:
    model = models.resolve("tiny", "dummy")
    plan = training_plan("tp1", model.shape, None)
    pool.serve(plan, *saving(tmp_path, like=str(model.tokenizer)), counts=False)
    found = models.resolve(str(tmp_path))
    assert found.tokenizer == found.checkpoint == tmp_path.resolve()
    assert replace(found.shape, name="tiny") == model.shape


def test_a_folder_that_cannot_be_written_is_known_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    check_folder(tmp_path / "new" / "one")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    with pytest.raises(Refused, match=r"file/one: Not a directory; give another --save-checkp"):
        check_folder(tmp_path / "file" / "one")


def test_a_part_that_cannot_be_written_is_said_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    writer = FileSystemWriter(tmp_path / "gone")
    writer.prepare_local_plan = lambda plan: tmp_path.joinpath("file").write_text(plan)  # type: ignore[assignment, return-value]
    with pytest.raises(Refused, match="rank 0 cannot write its part: data must be str"):
        write({"one": torch.ones(2)}, writer, several=False)


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_that_is_there(
    pool: Pool, tmp_path: Path
) -> None:
    """And says why, on every rank, however many there are."""
    plan, folder = training_plan("fsdp2", shape_of("Llama"), None), tmp_path / "saved"
    run, write_it = saving(folder)
    pool.serve(plan, run, write_it, counts=False)
    before = {one.name: one.read_bytes() for one in folder.iterdir()}
    (folder / UNFINISHED).touch()  # a file, where a folder would have to be
    with pytest.raises(RuntimeError, match=r"Refused: rank 0 cannot write its part: .*Not a dir"):
        pool.serve(plan, run, write_it, counts=False)
    (folder / UNFINISHED).unlink()
    assert {one.name: one.read_bytes() for one in folder.iterdir()} == before


@pytest.mark.slow
def test_no_folder_is_left_of_a_checkpoint_that_cannot_be_written(
    pool: Pool, tmp_path: Path
) -> None:
    plan = training_plan("fsdp2", shape_of("Llama"), None)
    work = saving(tmp_path / "new" / "saved", like=str(tmp_path / "gone"))
    with pytest.raises(RuntimeError, match=r"No such file or directory: .*/gone"):
        pool.serve(plan, *work, counts=False)
    assert not list(tmp_path.iterdir())
