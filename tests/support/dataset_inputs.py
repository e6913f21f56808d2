"""Small datasets, and a model whose tokenizer knows their few words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fakes import write_config
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from orchestrator.experiment import Experiment
from orchestrator.plan import models
from orchestrator.plan.models import ResolvedModel
from orchestrator.plan.workload import Workload
from workers.messages import Request

WORDS = ("<unk>", "<s>", "</s>", "user", "assistant", "hello", "world", "hi", ":")
TEMPLATE = (
    "{{ '<s> ' }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def checkpoint(folder: Path, template: str | None = None) -> ResolvedModel:
    """A model whose tokenizer knows WORDS by their places."""
    made = Tokenizer(
        WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    made.add_special_tokens(["<s>", "</s>"])
    made.pre_tokenizer = Whitespace()
    made.save(str(write_config(folder) / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    if template:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return models.resolve(str(folder), "dummy")


def workload(path: Path, model: ResolvedModel, **fields: Any) -> Workload:
    return Workload(Experiment(dataset_path=path, **fields), model)


def served(path: Path, model: ResolvedModel, **fields: Any) -> Sequence[Request]:
    made = workload(path, model, **fields)
    return made.work(made.experiment.scenarios[0], 4).requests


def read(path: Path, model: ResolvedModel, **fields: Any) -> list[tuple[tuple[int, ...], int]]:
    return [(one.prompt, one.output_len) for one in served(path, model, **fields)]


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path
