"""What the tests ask: a question about a GPU by name, and the answer for one target of a shape."""

from __future__ import annotations

from quantize.fit import for_llama_cpp, for_vllm
from quantize.fit.answer import Answer, Question
from quantize.fit.fit import Report
from quantize.fit.gpu import find_gpu
from tests.quantize.fit.shapes import candidate, subject


def question(gpu: str, context: int = 8192, concurrency: int | None = None) -> Question:
    device, count, _ = find_gpu(gpu)
    return Question(device, count, context, concurrency)


def answer_of(name: str, target: str, gpu: str, **asked: int) -> Answer:
    """The answer for one target of a shape."""
    item = candidate(name, target)
    verb = for_llama_cpp.answer if item.engine == "llama.cpp" else for_vllm.answer
    return verb(item, subject(name, "FP8_DYNAMIC"), question(gpu, **asked))


def of(report: Report, target: str, engine: str = "llama.cpp") -> Answer:
    return next(a for a in report.answers if a.candidate.target == target and a.engine == engine)
