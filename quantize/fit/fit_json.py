"""A fit report as data: one schema, with its version; sizes in bytes, everything that was found.

Additions keep the version; a key that goes or changes its meaning raises it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from quantize.fit.answer import Answer
from quantize.fit.compare import Comparison
from quantize.fit.fit import Report
from quantize.fit.memory import DeviceMemory, Term

SCHEMA_VERSION = 1


def report_json(report: Report) -> dict[str, Any]:
    """The whole report."""
    asked, spec = report.question, report.subject.spec
    best = report.recommended
    return {
        "schema_version": SCHEMA_VERSION,
        "model": report.subject.name,
        "architecture": spec.architecture,
        "longest_context": spec.max_position_embeddings,
        "unmodelled": report.subject.unmodelled,
        "gpu": None if report.survey else asdict(asked.gpu),
        "gpus": asked.count,
        "usable_bytes": None if report.survey else asked.usable_bytes,
        "context": asked.context,
        "concurrency": asked.requests,
        "answers": [_answer(answer) for answer in report.answers],
        "survey": [
            {
                "artifact": row.candidate.name,
                "target": row.candidate.target,
                "engine": row.candidate.engine,
                "size_bytes": row.candidate.size_bytes,
                "gpus": row.count if row.gpu else None,
                "gpu": row.gpu.name if row.gpu else None,
            }
            for row in report.survey
        ],
        "recommended": best.candidate.name if best else None,
        "why": report.why,
        "size_target": asdict(report.size_target) if report.size_target else None,
        "remarks": list(report.remarks),
    }


def _answer(answer: Answer) -> dict[str, Any]:
    item = answer.candidate
    speed = answer.speed
    return {
        "artifact": item.name,
        "target": item.target,
        "engine": answer.engine,
        "engine_version": answer.engine_version,
        "exists": item.place is not None,
        "size_bytes": item.size_bytes,
        "size_is_exact": item.exact,
        "notes": list(item.notes),
        "verdict": answer.verdict.value,
        "breaks": answer.breaks,
        "fp8_arithmetic": answer.arithmetic or None,
        "devices": [_device(device) for device in answer.devices],
        "main_memory": [_term(term) for term in answer.host],
        "largest_context": answer.largest_context,
        "largest_concurrency": answer.largest_concurrency,
        "fewest_gpus": answer.fewest_gpus,
        "settings": dict(answer.settings),
        "decode": None
        if speed is None
        else {
            "tokens_per_second": speed.estimate,
            "bandwidth_bound": speed.bound,
            "efficiency": speed.efficiency,
            "source": speed.source,
        },
        "first_lever": answer.lever,
        "make_command": answer.make,
        "command": answer.command,
    }


def _device(device: DeviceMemory) -> dict[str, Any]:
    return {
        "budget_bytes": device.budget_bytes,
        "terms": [_term(term) for term in device.terms],
    }


def _term(term: Term) -> dict[str, Any]:
    known = term.value is not None
    return {
        "name": term.name,
        "bytes": term.value,
        "low_bytes": term.low if known else None,
        "high_bytes": term.high if known else None,
        "confidence": term.confidence,
        "source": term.source,
    }


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Predicted and measured, term by term."""
    return {
        "schema_version": SCHEMA_VERSION,
        "engine": comparison.engine,
        "artifact": comparison.candidate.name,
        "target": comparison.candidate.target,
        "settings": comparison.settings,
        "terms": [{**asdict(term), "error": term.error} for term in comparison.terms],
    }
