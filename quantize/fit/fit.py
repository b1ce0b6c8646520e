"""The verb `fit`: which artifact runs on which GPU, with what context, and how to start it.

In: a model (anything `subject.py` reads), a GPU or a size, a context, a number of requests. Out: a
`Report` with an `Answer` for every artifact on its engine, a recommendation, and, where memory was
asked for backwards, the largest mixture that fits and the byte budget for one of its own.

Nothing is run, loaded or downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from convert.errors import InputError
from convert.size import parse_size
from quantize.fit import for_llama_cpp, for_vllm
from quantize.fit.answer import Answer, Question
from quantize.fit.candidate import Candidate, Subject
from quantize.fit.gpu import Gpu, find_gpu, gpu_of_size, gpus
from quantize.fit.memory import Verdict
from quantize.fit.recommend import recommend
from quantize.fit.subject import read_subject

DEFAULT_CONTEXT = 8192
ENGINES = ("vllm", "llama.cpp", "both")
_CONTEXT = re.compile(r"(\d+)([kKmM]?)")


@dataclass(frozen=True, slots=True)
class SizeTarget:
    """The largest published mixture that fits, and bytes for a mixture of one's own."""

    mixture: str | None
    mixture_bytes: int | None
    fit_bytes: int
    command: str


@dataclass(frozen=True, slots=True)
class Smallest:
    """The smallest NVIDIA device, or equal devices, that hold a candidate; None where none does."""

    candidate: Candidate
    count: int
    gpu: Gpu | None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found; without a named GPU there is a `survey` instead of answers."""

    subject: Subject
    question: Question
    answers: tuple[Answer, ...]
    recommended: Answer | None
    why: str
    remarks: tuple[str, ...]
    size_target: SizeTarget | None = None
    survey: tuple[Smallest, ...] = ()


def fit(
    model: str,
    *,
    gpu: str | None = None,
    gpu_memory: str | None = None,
    max_memory: str | None = None,
    context: str | None = None,
    concurrency: int | None = None,
    engine: str = "both",
    kv_type: str | None = None,
    targets: Sequence[str] = (),
) -> Report:
    """Answer for every artifact of `model`; InputError for what cannot be asked."""
    if engine not in ENGINES:
        raise InputError(f"--engine {engine!r} is not known; one of {', '.join(ENGINES)}")
    if concurrency is not None and not 1 <= concurrency <= 1 << 20:
        raise InputError(f"--concurrency {concurrency}: expected a number of requests, 1 or more")
    device, count, limit, remarks = _device(gpu, gpu_memory, max_memory)
    asked = None if context is None else parse_context(context)
    subject = read_subject(model, targets)
    question = Question(
        gpu=device or _UNNAMED,
        count=count,
        context=_context(subject, asked),
        concurrency=concurrency,
        kv_type=kv_type,
        limit_bytes=limit,
    )
    remarks += (*subject.notes, *_replication(subject, question, engine))
    if device is None:
        return _survey(subject, question, engine, remarks)
    answers = _answers(subject, question, engine)
    _check_ranks(answers, engine)
    recommended, why = recommend(answers)
    target = _size_target(subject, question, answers) if max_memory else None
    return Report(subject, question, answers, recommended, why, remarks, target)


_UNNAMED = gpu_of_size(1 << 60, "nothing")


def parse_context(text: str) -> int:
    """`32k` is 32,768 tokens; a bare number is itself."""
    match = _CONTEXT.fullmatch(text.strip())
    scale = {"": 1, "k": 1 << 10, "m": 1 << 20}
    value = int(match[1]) * scale[match[2].lower()] if match else 0
    if not 0 < value < 1 << 31:
        raise InputError(f"--context {text!r} is not a number of tokens; write 8192 or 32k")
    return value


def _replication(subject: Subject, question: Question, engine: str) -> tuple[str, ...]:
    heads = subject.spec.num_key_value_heads
    if engine == "llama.cpp" or question.count <= heads:
        return ()
    return (
        f"{question.count} vLLM ranks for {heads} KV heads: heads are replicated, and the KV cache"
        f" of a GPU is no smaller than with {heads} ranks",
    )


def _context(subject: Subject, asked: int | None) -> int:
    most = subject.spec.max_position_embeddings
    if asked is None:
        return min(DEFAULT_CONTEXT, most)
    if asked > most:
        raise InputError(
            f"--context {asked:,}: the model was made for {most:,} tokens"
            " (max_position_embeddings); ask for that many or fewer"
        )
    return asked


def _device(
    gpu: str | None, gpu_memory: str | None, max_memory: str | None
) -> tuple[Gpu | None, int, int | None, tuple[str, ...]]:
    """The device, how many, what may be used of each, and what to say about it."""
    sizes = {
        option: _size(option, text)
        for option, text in (("--gpu-mem", gpu_memory), ("--max-memory", max_memory))
        if text is not None
    }
    given, limit = sizes.get("--gpu-mem"), sizes.get("--max-memory")
    if gpu is None:
        option = "--gpu-mem" if given else "--max-memory"
        size = given or limit
        return gpu_of_size(size, option) if size else None, 1, limit, ()
    found, count, remark = find_gpu(gpu)
    if given:
        found = replace(found, usable_bytes=given, usable_basis="given by --gpu-mem")
    return found, count, limit, (remark,) if remark else ()


def _size(option: str, text: str) -> int:
    size = parse_size(text)
    if not 1 << 26 <= size <= 1 << 50:
        raise InputError(f"{option} {text}: expected the memory of a device, 64 MiB or more")
    return size


def _wanted(subject: Subject, engine: str) -> list[Candidate]:
    """The candidates for this engine, vLLM's first, largest first."""
    wanted = [c for c in subject.candidates if engine in (c.engine, "both")]
    if not wanted:
        held = ", ".join(sorted({c.engine for c in subject.candidates}))
        raise InputError(f"{subject.reference}: nothing here is for {engine}; only for {held}")
    return sorted(wanted, key=lambda c: (c.engine == "llama.cpp", -c.size_bytes))


def _answers(subject: Subject, question: Question, engine: str) -> tuple[Answer, ...]:
    verbs = {"vllm": for_vllm.answer, "llama.cpp": for_llama_cpp.answer}
    wanted = _wanted(subject, engine)
    return tuple(verbs[c.engine](c, subject, question) for c in wanted)


def _check_ranks(answers: Iterable[Answer], engine: str) -> None:
    """A number of GPUs that vLLM cannot use at all is a mistake in the question."""
    listed = list(answers)
    reasons = [a.breaks or "" for a in listed]
    if engine == "vllm" and all(reason.startswith("tensor parallel") for reason in reasons):
        usable = [a.fewest_gpus for a in listed if a.fewest_gpus]
        hint = f"; {min(usable)} would do" if usable else ""
        raise InputError(f"{reasons[0]}{hint}")


def _size_target(
    subject: Subject, question: Question, answers: Sequence[Answer]
) -> SizeTarget | None:
    """The largest mixture that fits and the bytes for one of one's own; None without GGUF plans."""
    made = [a for a in answers if a.engine == "llama.cpp" and a.candidate.place is None]
    known = [a for a in made if a.verdict is not Verdict.UNKNOWN]
    if not known:
        return None
    fitting = [a for a in known if a.verdict is Verdict.FITS]
    best = max(fitting, key=lambda a: a.candidate.size_bytes, default=None)
    # the smallest embedding any mixture has: a recipe that spends less on it still fits
    budgets = [for_llama_cpp.fitting_file_bytes(a.candidate, subject, question) for a in known]
    command = f"hermes-quant quantize {subject.reference} --out dist --fit-bytes {min(budgets)}B"
    return SizeTarget(
        mixture=best.candidate.target if best else None,
        mixture_bytes=best.candidate.size_bytes if best else None,
        fit_bytes=min(budgets),
        command=command,
    )


def _survey(subject: Subject, question: Question, engine: str, remarks: tuple[str, ...]) -> Report:
    """Without a GPU: for each artifact the smallest NVIDIA one, or 2, 4 or 8 equal ones."""
    devices = sorted(
        (gpu for gpu in gpus() if gpu.vendor == "nvidia"),
        key=lambda gpu: (gpu.usable_bytes, -(gpu.bandwidth_gb_s or 0)),
    )
    verbs = {"vllm": for_vllm.smallest, "llama.cpp": for_llama_cpp.smallest}
    found = []
    for candidate in _wanted(subject, engine):
        for count in (1, 2, 4, 8):
            gpu = verbs[candidate.engine](candidate, subject, question, devices, count)
            if gpu is not None:
                break
        found.append(Smallest(candidate, count, gpu))
    return Report(subject, question, (), None, "no GPU was named", remarks, survey=tuple(found))
