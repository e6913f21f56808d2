"""What `orchestrator recommend --json` says."""

from __future__ import annotations

from dataclasses import asdict

from orchestrator.predict.hardware import Hardware
from orchestrator.predict.objectives import Margin
from orchestrator.predict.recommend import Choice, Offer, Recommendation
from orchestrator.report.predicted.recommendation import Answer, missed, why


def as_data(answer: Answer) -> dict[str, object]:
    """Plain data for `json.dumps`: times in ms, bytes, tokens/s, margins as shares of a limit."""
    found, asked = answer.found, answer.found.wanted.case.asked
    kinds = found.wanted.hardware
    return {
        "model": answer.model,
        "precision": answer.precision,
        "scenario": answer.scenario,
        "input_len": asked.lengths.input_len,
        "output_len": asked.lengths.output_len,
        "arrivals": asked.arriving or None,
        "max_concurrency": asked.max_concurrency,
        "engine": found.wanted.case.factors.engine,
        "factors": found.wanted.case.factors.provenance,
        "objectives": {one.metric: one.limit_ms for one in found.wanted.objectives},
        "gpu_counts": found.wanted.counts,
        "gpu_hour_cost": found.wanted.prices,
        "smallest": _choice_data(found.smallest),
        "cheapest": _choice_data(found.cheapest),
        "kinds": {one.name: _kind_data(found, one) for one in kinds},
        "left_out": answer.left_out,
    }


def _kind_data(found: Recommendation, hardware: Hardware) -> dict[str, object]:
    best = found.of(hardware)
    if best is None:
        return {"offer": None, "reason": why(found, hardware.name)}
    return {"offer": _offer_data(best), "reason": missed(best) or None}


def _choice_data(choice: Choice | None) -> dict[str, object] | None:
    if choice is None:
        return None
    part, share = choice.offer.bottleneck
    broken, smaller = choice.limit.broken, choice.smaller
    return {
        **_offer_data(choice.offer),
        "bottleneck": {
            "part": part,
            "share": share,
            "memory_share": choice.offer.memory_share,
            "objective": choice.offer.least.objective.metric,
        },
        "holds_up_to": choice.limit.concurrency,
        "holds_up_to_rate": choice.limit.rate,
        "closed_rate": choice.limit.closed_rate,
        "then_misses": broken and _margin_data(broken),
        "smaller": _offer_data(smaller) if isinstance(smaller, Offer) else smaller,
        "in_fp8": choice.fp8 and _offer_data(choice.fp8),
    }


def _offer_data(one: Offer) -> dict[str, object]:
    return {
        "gpu": one.hardware.name,
        "gpus": one.gpus,
        "layout": one.layout.name,
        "meets": one.meets,
        "certain": one.is_certain,
        "margins": [_margin_data(margin) for margin in one.margins],
        "prediction": asdict(one.prediction),
    }


def _margin_data(margin: Margin) -> dict[str, object]:
    return {
        "metric": margin.objective.metric,
        "limit_ms": margin.objective.limit_ms,
        "predicted_ms": asdict(margin.predicted),
        "margin": margin.share,
        "margin_at_far_end": margin.far_share,
    }
