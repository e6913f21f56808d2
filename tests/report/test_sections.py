"""What the page names as best: one layout, several, or nobody."""

from summaries import one_run as run

from orchestrator.analysis.comparing.best import best
from orchestrator.analysis.comparing.verdicts import rulings
from orchestrator.report import sections

STEADY = (100.0, 101.0, 99.0, 100.0)


def winner(values, **fields):
    """Of throughput, or of energy where `fields` has it. values: of the starts of each layout."""
    runs = [
        run(name, x, i, **fields.get(name, {}))
        for name, mine in values.items()
        for i, x in enumerate(mine)
    ]
    found = rulings(runs)
    verdicts = [verdict for ruling in found for verdict in ruling.verdicts]
    (group,) = sections.verdicts(best(found), verdicts)
    return group.lines[0].winners[-1]


def test_one_layout_is_named_with_how_far_it_is_ahead():
    found = winner({"tp4": STEADY, "pp4": [x / 2 for x in STEADY[::-1]]})
    assert (found.names, found.shown) == (["tp4"], True)
    assert found.ahead.startswith("2.00x pp4 [1.9")


def test_several_are_named_where_none_is_shown_to_be_worse():
    found = winner({"tp4": STEADY, "dp4": STEADY[::-1]})
    assert (found.names, found.shown) == (["tp4", "dp4"], True)


def test_with_one_start_each_the_first_is_not_shown_to_be_best():
    found = winner({"tp4": STEADY[:1], "pp4": [50.0]})
    assert (found.names, found.shown) == (("tp4",), False)
    assert (found.ahead, str(found.reason)[:28]) == ("2.00x pp4", "one start each: no interval ")


def test_nobody_is_named_where_a_faster_layout_has_no_figure():
    known = {"joules_per_output_token": 1.0, "power_valid": True}
    found = winner({"tp4": (50.0, 51.0), "dp4": (100.0, 99.0)}, tp4=known)
    assert found.names == ()
    assert str(found.reason).startswith("nobody is best in energy per token: dp4 delivers more")
