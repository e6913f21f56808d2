"""Numbers of a config that no model can have are named where they are read."""

from __future__ import annotations

import math
from typing import Any

import pytest
from fakes import CONFIG

from strategies.errors import LayoutError
from strategies.shapes import ModelShape

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        *(({"rms_norm_eps": value}, "rms_norm_eps is") for value in (math.nan, math.inf, -1e-6)),
        *(({"rope_theta": value}, "rope_theta is") for value in (0, math.nan, math.inf, -1.0)),
        ({"head_dim": 3}, "head_dim is 3; it must be even"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"num_hidden_layers": -2}, "num_hidden_layers is -2"),
        ({"vocab_size": 2**40}, "vocab_size is"),
        ({"intermediate_size": 10**30}, "intermediate_size is"),
        ({"num_key_value_heads": 3}, "a multiple of the second"),
        ({"rope_parameters": {**LLAMA3, "factor": 0}}, "factor of the rope scaling is 0"),
        ({"rope_parameters": {**LLAMA3, "factor": math.nan}}, "must be a finite number"),
        ({"rope_parameters": {**LLAMA3, "low_freq_factor": 4}}, "the second greater"),
    ],
)
def test_a_number_that_no_model_has_is_named(change: dict[str, Any], word: str) -> None:
    with pytest.raises(LayoutError, match=f"^fake: .*{word}"):
        ModelShape.from_config({**CONFIG, **change}, "fake")


def test_a_good_config_passes() -> None:
    assert ModelShape.from_config({**CONFIG, "rope_parameters": LLAMA3}, "fake").head_dim == 4
