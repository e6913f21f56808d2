"""Text to train on: what is read, how it is packed, dealt and resumed, and what is refused."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from dataset_inputs import WORDS, checkpoint, lines
from pyarrow import parquet

from orchestrator.errors import UserError
from orchestrator.plan import models
from orchestrator.plan.corpus import pack
from orchestrator.plan.models import ResolvedModel
from strategies import TrainingLoad
from workers.engines.training.packed import Packed

LOAD = TrainingLoad(seq_len=3, global_batch_size=1)
TEXTS = ("hello world hi", "user : hi", "assistant : hello")
END = 2  # of the model: </s>


@pytest.fixture
def model(tmp_path: Path) -> ResolvedModel:
    made = checkpoint(tmp_path / "m")
    return replace(made, shape=replace(made.shape, eos_token_ids=(END,)))


def ids(texts: Sequence[str]) -> list[int]:
    """The tokens of texts, each with its end."""
    return [token for one in texts for token in (*map(WORDS.index, one.split()), END)]


def table(path: Path, **columns: Any) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    for number, text in enumerate(TEXTS):
        (path / f"{number}.txt").write_text(text)
    return path


def zipped(path: Path) -> Path:
    with gzip.open(path, "wt") as stream:
        stream.write(TEXTS[0])
    return path


@pytest.mark.parametrize(
    ("make", "texts"),
    [
        (lambda at: lines(at / "a.jsonl", *({"text": one, "id": 1} for one in TEXTS)), TEXTS),
        (lambda at: lines(at / "a.json", [{"text": one} for one in TEXTS]), TEXTS),
        (lambda at: table(at / "a.parquet", text=[*TEXTS, None, " "]), TEXTS),
        (lambda at: lines(at / "a.txt", *TEXTS), (" ".join(TEXTS),)),
        (lambda at: folder(at / "texts"), TEXTS),
        (lambda at: zipped(at / "a.txt.gz"), TEXTS[:1]),
    ],
)
def test_documents_follow_each_other_each_with_its_end(
    make: Any, texts: Sequence[str], tmp_path: Path, model: ResolvedModel
) -> None:
    packed = pack(make(tmp_path), model, LOAD)
    expected = ids(texts)
    assert packed.shape == (len(expected) // 4, 4)
    assert packed.dtype == np.int32
    assert packed.ravel().tolist() == expected[: len(expected) // 4 * 4]


def hub(path: Path, *splits: str) -> Path:
    """A folder as the hub has them: splits in Parquet, and a card that describes them."""
    (path / "data").mkdir(parents=True)
    for number, split in enumerate(splits):
        table(path / "data" / f"{split}-00000-of-00001.parquet", text=TEXTS[number : number + 2])
    (path / "README.md").write_text("user : hello world\n" * 9)
    return path


def test_the_card_of_a_dataset_is_not_trained_on(tmp_path: Path, model: ResolvedModel) -> None:
    assert pack(hub(tmp_path / "d", "train"), model, LOAD).flatten().tolist() == ids(TEXTS[:2])
    (tmp_path / "d" / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"holds a dataset and also text, as notes.txt; give one"):
        pack(tmp_path / "d", model, LOAD)


def test_a_split_is_read_where_it_is_named(tmp_path: Path, model: ResolvedModel) -> None:
    path = hub(tmp_path / "d", "train", "test")
    with pytest.raises(UserError, match="has the splits test, train; name one: --dataset-split"):
        pack(path, model, LOAD)
    assert pack(path, model, LOAD, split="test").flatten().tolist() == ids(TEXTS[1:])
    with pytest.raises(UserError, match="has no split ''; it has test, train"):
        pack(path, model, LOAD, split="")


def test_another_column_is_read_where_it_is_named(tmp_path: Path, model: ResolvedModel) -> None:
    path = table(tmp_path / "a.parquet", body=list(TEXTS), text=["hi"] * 3)
    with pytest.raises(UserError, match="there is no column ''; its columns are body, text"):
        pack(path, model, LOAD, column="")
    assert pack(path, model, LOAD, column="body").ravel().tolist() == ids(TEXTS)


# -- dealing


def numbered(count: int, seed: int = 7) -> Packed:
    """Sequences whose tokens are their number."""
    return Packed(np.repeat(np.arange(count, dtype=np.int32)[:, None], 4, axis=1), seed)


def taken(packed: Packed, steps: range, batch: int, replica: int = 0, replicas: int = 1) -> Any:
    return [packed.batch(step, batch, replica, replicas)[:, 0].tolist() for step in steps]


def test_an_epoch_has_every_sequence_once_in_an_order_of_its_own() -> None:
    dealt = [*chain(*taken(numbered(6), range(4), 3))]
    assert sorted(dealt[:6]) == sorted(dealt[6:]) == list(range(6))
    assert dealt[:6] != dealt[6:]


def test_a_batch_goes_on_in_the_next_epoch() -> None:
    dealt = [*chain(*taken(numbered(5), range(5), 4))]
    assert [sorted(dealt[at : at + 5]) for at in (0, 5, 10, 15)] == [list(range(5))] * 4


def test_the_seed_alone_decides_the_order() -> None:
    steps = range(8)
    assert taken(numbered(40), steps, 5) == taken(numbered(40), steps, 5)
    assert taken(numbered(40), steps, 5) != taken(numbered(40, seed=8), steps, 5)


def test_replicas_share_out_the_batch_that_one_would_have() -> None:
    packed = numbered(40)
    (whole,) = taken(packed, range(3, 4), 8)
    shares = [taken(packed, range(3, 4), 8, replica, 4)[0] for replica in range(4)]
    assert [*chain(*shares)] == whole
    assert {len(share) for share in shares} == {2}


def test_a_later_step_needs_none_before_it() -> None:
    assert taken(numbered(9), range(20), 4)[13:] == taken(numbered(9), range(13, 20), 4)


def test_labels_are_the_next_tokens(tmp_path: Path, model: ResolvedModel) -> None:
    path = lines(tmp_path / "a.jsonl", *({"text": one} for one in TEXTS))
    batch = Packed(pack(path, model, LOAD), seed=0).batch(0, 1)
    assert batch.dtype == np.int64
    assert batch.shape == (1, LOAD.seq_len + 1)


# -- refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: at / "gone.jsonl", "gone.jsonl cannot be read: No such file or directory"),
        (lambda at: at / "gone.txt", "gone.txt cannot be read: No such file or directory"),
        (lambda at: lines(at / "a.txt", " "), "a.txt: there is no text in it$"),
        (lambda at: lines(at / "a.jsonl"), "a.jsonl: there is no text in it$"),
        (lambda at: lines(at / "a.jsonl", {"text": ""}), "a.jsonl: there is no text in it$"),
        (
            lambda at: lines(at / "a.jsonl", {"content": "hi", "id": 1}),
            "a.jsonl, line 1: there is no column 'text'; "
            "its columns are content, id; name the one that has the text as --data-column",
        ),
        (lambda at: lines(at / "a.jsonl", {"text": 3}), "line 1: text is int; it must be text"),
        (lambda at: lines(at / "a.jsonl", "{"), "line 1: not valid JSON"),
        (lambda at: lines(at / "a.jsonl", r'{"text": "\ud800"}'), "line 1: the text holds"),
        (
            lambda at: lines(at / "a.jsonl", {"text": "hi hi"}),
            "has 3 tokens, 0 sequences of 3 tokens and a label, and a step trains on 1; use more",
        ),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_with_a_line(
    make: Any, message: str, tmp_path: Path, model: ResolvedModel
) -> None:
    with pytest.raises(UserError, match=message):
        pack(make(tmp_path), model, LOAD)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path, model: ResolvedModel) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00hello")
    with pytest.raises(UserError, match=r"a.txt is not UTF-8 text"):
        pack(tmp_path / "a.txt", model, LOAD)


def test_a_file_of_text_that_holds_zero_bytes_is_refused(
    tmp_path: Path, model: ResolvedModel
) -> None:
    (tmp_path / "a.txt").write_bytes(b"hello world" + bytes(1000))
    with pytest.raises(UserError, match=r"a.txt holds zero bytes, so it is no text"):
        pack(tmp_path / "a.txt", model, LOAD)


def test_what_is_refused_says_which_files_are_text(tmp_path: Path, model: ResolvedModel) -> None:
    (tmp_path / "notes").write_text("hello world")
    (tmp_path / "empty").mkdir()
    for name, words in (("notes", r"text too \(.txt, .text, .md\)$"), ("empty", "files of text")):
        with pytest.raises(UserError, match=words):
            pack(tmp_path / name, model, LOAD)


def test_fewer_sequences_than_a_batch_are_refused(tmp_path: Path, model: ResolvedModel) -> None:
    path = lines(tmp_path / "a.jsonl", *({"text": one} for one in TEXTS))
    message = "has 12 tokens, 3 sequences of 3 tokens and a label, and a step trains on 4; use more"
    with pytest.raises(UserError, match=message):
        pack(path, model, replace(LOAD, global_batch_size=4))


def test_plain_text_has_no_columns(tmp_path: Path, model: ResolvedModel) -> None:
    path = lines(tmp_path / "a.txt", *TEXTS)
    with pytest.raises(UserError, match="is plain text, which has no column 'text'; leave it out"):
        pack(path, model, LOAD, column="text")


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    path, preset = lines(tmp_path / "a.txt", *TEXTS), models.resolve("llama-8b", "dummy")
    with pytest.raises(UserError, match="llama-8b comes without a tokenizer; give the folder of"):
        pack(path, preset, LOAD)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, model: ResolvedModel) -> None:
    small = replace(model, shape=replace(model.shape, vocab_size=6))
    path = lines(tmp_path / "a.txt", *TEXTS)
    with pytest.raises(UserError, match="makes token 8, and its vocabulary has 6; use a checkpoin"):
        pack(path, small, LOAD)
