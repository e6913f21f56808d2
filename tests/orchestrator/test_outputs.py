"""Whether layouts made the same tokens."""

import pyarrow as pa
from tables import make

from orchestrator.analysis.outputs import (
    CellOutput,
    agreement,
    kept_requests,
    output_digest,
    samples,
    sentence,
)
from workers.records import REQUESTS


def table(tokens):
    """tokens: request index -> output tokens, in the order the ranks report them."""
    rows = [{"request_index": i, "output_token_ids": ids} for i, ids in tokens.items()]
    return make(REQUESTS, rows)


def made(name, digest, dtype="bfloat16", distinct=1):
    return CellOutput(name, dtype, digest, distinct)


def test_a_digest_does_not_depend_on_the_order_of_the_rows():
    digest = output_digest(table({0: [1, 2], 1: [3]}))
    assert len(digest) == 16
    assert int(digest, 16) >= 0
    assert output_digest(table({1: [3], 0: [1, 2]})) == digest


def test_a_digest_tells_tokens_requests_and_lengths_apart():
    outputs = (
        {0: [1, 2], 1: [3]},
        {0: [1], 1: [2, 3]},
        {0: [1, 3], 1: [2]},
        {1: [1, 2], 0: [3]},
        {0: [1, 2], 2: [3]},
    )
    assert len({output_digest(table(tokens)) for tokens in outputs}) == len(outputs)


def test_unknown_tokens_have_no_digest():
    assert output_digest(table({0: [1], 1: None})) is None
    assert output_digest(table({0: [1]}).drop_columns(["output_token_ids"])) is None
    assert output_digest(table({})) is None


def test_names_are_grouped_by_what_they_made():
    assert agreement({"tp4": "b", "pp4": "a", "dp4": "a", "tp2": None}) == [["dp4", "pp4"], ["tp4"]]


def test_the_line_names_the_layouts_that_agree():
    same = made("tp4", "a"), made("dp4", "a")
    assert sentence(same) == "Output tokens: the same under dp4, tp4."


def test_the_line_says_why_bfloat16_outputs_differ():
    line = sentence([made("tp4", "b"), made("dp4", "a"), made("pp4", "a")])
    assert line.startswith(
        "Output tokens: the same under dp4, pp4; different under tp4 (differences are expected: "
    )
    assert "bfloat16 rounds" in line
    two = sentence([made("tp4", "b"), made("dp4", "a")])
    assert "different under each of dp4, tp4 (" in two


def test_float32_outputs_that_differ_are_called_out():
    differing = made("tp4", "a", "float32"), made("dp4", "b", "float32")
    assert "not expected in float32" in sentence(differing)


def test_runs_of_one_layout_that_differ_are_named():
    assert "not the same in every run of tp4" in sentence([made("tp4", None, distinct=2)])


def test_one_layout_alone_has_nothing_to_agree_with():
    assert sentence([made("tp4", "a")]) is None
    assert sentence([made("tp4", "a"), made("dp4", None, distinct=0)]) is None


def test_texts_are_shown_once_with_the_layouts_that_made_them():
    rows = [
        {"request_index": i, "strategy": layout, "output_text": text}
        for layout, text in (("tp4", " a\n b"), ("dp4", " a\n b"), ("pp4", "c"), ("tp4", " a\n b"))
        for i in (0, 1)
    ]
    assert list(samples(pa.Table.from_pylist(rows))) == [
        "Request 0 under dp4, tp4: 'a b'",
        "Request 0 under pp4: 'c'",
    ]
    assert list(samples(pa.Table.from_pylist([{"request_index": 0, "strategy": "tp4"}]))) == []
    assert list(samples(None)) == []


def test_tokens_and_text_are_kept_only_when_asked_for():
    requests = table({0: [5, 6]})
    assert "output_token_ids" not in kept_requests(requests, False, None).column_names
    assert kept_requests(requests, True, None).column_names == requests.column_names
    detailed = kept_requests(requests, True, lambda ids: f"<{sum(ids)}>").to_pylist()[0]
    assert (detailed["request_index"], detailed["output_token_ids"], detailed["output_text"]) == (
        0,
        [5, 6],
        "<11>",
    )
