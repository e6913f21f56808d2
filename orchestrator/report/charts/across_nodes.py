"""What layouts over several nodes send between them, and for whom their ranks wait, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from orchestrator.analysis.comparing.compare import Comparison
from workers.units import format_bytes


def sentences(of: Mapping[str, Comparison]) -> Iterator[str]:
    """What each layout sends for a token, and whom the ranks of a layout wait for; nothing of those
    on one node.

    of: each layout that has a result, by its name.
    """
    sent = ", ".join(filter(None, (_sent(name, one) for name, one in of.items())))
    if sent:
        yield f"Sent between nodes for each token asked for: {sent}."
    for name, one in of.items():
        if one.slowest.awaited:
            yield f"In {name} {one.slowest.awaited}."


def _sent(name: str, one: Comparison) -> str:
    """The bytes between nodes for a token, and those of the busiest link where there are several;
    empty where nothing is sent, or nobody knows."""
    across, busiest = one.links.sent_across_nodes_bytes, one.links.sent_on_busiest_link_bytes
    tokens = one.conditions.num_prompts * (one.conditions.mean_output_len or 0)
    if not across or not tokens:
        return ""
    parts = f"{name} {format_bytes(round(across / tokens))}"
    if busiest is None or busiest >= across:
        return parts
    return f"{parts} ({format_bytes(round(busiest / tokens))} on the busiest link)"
