"""One safetensors folder on vLLM: the plan, its limits, the levers, the command.

In: a candidate, what is asked, the model's shape. Out: an `Answer`. The compute capability decides
how FP8 runs: from 8.9 on in FP8 (W8A8), from 7.5 on with weights unpacked to 16 bits (weight-only),
below not at all; FP8 KV caches are offered from 8.9 on. Every limit that is printed (context,
concurrency, number of GPUs) holds at the upper end of every band.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from convert.hub import is_on_disk
from quantize.fit import vllm
from quantize.fit.answer import LEAST_CONTEXT, Answer, Question, Speed
from quantize.fit.candidate import Candidate, Subject
from quantize.fit.gpu import Gpu
from quantize.fit.memory import DeviceMemory, Verdict, judge
from quantize.fit.vllm_version import PLANNED_VERSION, Version, version_of
from quantize.fit.vllm_weights import check_parallel, dtype_bytes, weights_per_rank

MAX_RANKS = 16
_LEAST_CAPABILITY, _LEAST_FP8, _NATIVE_FP8, _LEAST_BF16 = 7.0, 7.5, 8.9, 8.0


def answer(candidate: Candidate, subject: Subject, question: Question) -> Answer:
    """Plan `candidate` on vLLM."""
    version = version_of(PLANNED_VERSION)
    arithmetic = _arithmetic(candidate, question.gpu)
    blank = Answer(candidate, "vllm", PLANNED_VERSION, Verdict.CANNOT, None, arithmetic=arithmetic)
    settings = settings_for(subject, question)
    if (why := cannot_run(candidate, question.gpu, settings.kv_type)) is not None:
        return replace(blank, breaks=why)
    measure = _measure(candidate, subject, question.gpu, version)
    fewest = _fewest(candidate, subject, question, measure)
    if (why := check_parallel(subject.spec, candidate, question.count)) is not None:
        return replace(blank, breaks=f"tensor parallel {question.count}: {why}", fewest_gpus=fewest)
    device = measure(settings)
    verdict, breaks = judge([device])
    context, concurrency = _limits(subject, device, settings)
    fitting = replace(
        blank,
        verdict=verdict,
        breaks=breaks,
        devices=(device,) * question.count,
        settings=_shown(settings),
        largest_context=context,
        largest_concurrency=concurrency,
        fewest_gpus=fewest,
        speed=_speed(subject, device, question.gpu, version),
        make=make_command(candidate, subject),
        command=_command(candidate, subject, question.gpu, settings),
    )
    if verdict in (Verdict.FITS, Verdict.UNKNOWN):
        return fitting
    return replace(fitting, lever=_lever(question, settings, context, fewest, measure))


def settings_for(subject: Subject, question: Question) -> vllm.Settings:
    """vLLM's own defaults on this device, with --max-num-seqs as large as what is asked."""
    sequences, batched = vllm.default_batch(question.gpu)
    share = math.floor(100 * question.usable_bytes / question.gpu.usable_bytes) / 100
    return vllm.Settings(
        context=question.context,
        concurrency=question.requests,
        sequences=question.concurrency or sequences,
        batched_tokens=batched,
        utilization=min(version_of(PLANNED_VERSION).utilization, share),
        kv_type=question.kv_type or subject.kv_scheme or "auto",
        ranks=question.count,
    )


def smallest(
    candidate: Candidate, subject: Subject, question: Question, devices: Sequence[Gpu], count: int
) -> Gpu | None:
    """The first of `devices`, smallest first, of which `count` hold the candidate."""
    if check_parallel(subject.spec, candidate, count) is not None:
        return None
    version = version_of(PLANNED_VERSION)
    weights = weights_per_rank(candidate, subject.spec, count)
    for gpu in devices:
        settings = settings_for(subject, replace(question, gpu=gpu, count=count))
        why = _unmodelled(subject, settings)
        device = vllm.memory(weights, subject.spec, gpu, settings, version, why)
        runs = cannot_run(candidate, gpu, settings.kv_type) is None
        if runs and judge([device])[0] is Verdict.FITS:
            return gpu
    return None


def _unmodelled(subject: Subject, settings: vllm.Settings) -> str | None:
    """Why the attention has no formula at this context."""
    if subject.window is not None and settings.context > subject.window:
        return f"sliding window of {subject.window:,} tokens, shorter than the context"
    return subject.unmodelled


def cannot_run(candidate: Candidate, gpu: Gpu, kv_type: str) -> str | None:
    """Why memory is not the question on this device; None where it is."""
    if gpu.vendor == "apple":
        return "vLLM does not run on Apple GPUs"
    if gpu.cuda is None:
        return None
    if gpu.cuda < _LEAST_CAPABILITY:
        return f"compute capability {gpu.cuda}; vLLM needs {_LEAST_CAPABILITY}"
    if candidate.target not in ("BF16", "F16", "F32") and gpu.cuda < _LEAST_FP8:
        return f"compute capability {gpu.cuda}; quantized weights need {_LEAST_FP8}"
    if kv_type.startswith("fp8") and gpu.cuda < _NATIVE_FP8:
        return f"compute capability {gpu.cuda}; an FP8 cache needs {_NATIVE_FP8}"
    return None


def _arithmetic(candidate: Candidate, gpu: Gpu) -> str:
    if not candidate.is_eight_bit:
        return ""
    if gpu.cuda is None:
        return "W8A8 or weight-only, by the GPU"
    return "W8A8" if gpu.cuda >= _NATIVE_FP8 else "weight-only (no faster arithmetic)"


def _measure(
    candidate: Candidate, subject: Subject, gpu: Gpu, version: Version
) -> Callable[[vllm.Settings], DeviceMemory]:
    """Memory by settings; the weights of a number of ranks are summed once."""
    weights = cache(lambda ranks: weights_per_rank(candidate, subject.spec, ranks))

    def measure(settings: vllm.Settings) -> DeviceMemory:
        unmodelled = _unmodelled(subject, settings)
        return vllm.memory(
            weights(settings.ranks), subject.spec, gpu, settings, version, unmodelled
        )

    return measure


def _limits(
    subject: Subject, device: DeviceMemory, settings: vllm.Settings
) -> tuple[int | None, int | None]:
    """The longest context at this concurrency, and the most requests at this context."""
    per_token = vllm.kv_bytes_per_token(subject.spec, settings.kv_type, settings.ranks)
    if any(term.value is None for term in device.terms) or per_token is None:
        return None, None
    free = vllm.free_pages(device, per_token * vllm.PAGE_TOKENS, safe=True)
    longest = free // settings.concurrency * vllm.PAGE_TOKENS
    requests = free // vllm.pages(settings.context)
    return min(longest, subject.spec.max_position_embeddings), requests


def _fewest(
    candidate: Candidate,
    subject: Subject,
    question: Question,
    measure: Callable[[vllm.Settings], DeviceMemory],
) -> int | None:
    """The smallest tensor-parallel size that fits; None where none up to 16 does."""
    settings = settings_for(subject, question)
    for ranks in range(1, MAX_RANKS + 1):
        if check_parallel(subject.spec, candidate, ranks) is None:
            verdict, _ = judge([measure(replace(settings, ranks=ranks))])
            if verdict is Verdict.FITS:
                return ranks
    return None


def _lever(
    question: Question,
    settings: vllm.Settings,
    context: int | None,
    fewest: int | None,
    measure: Callable[[vllm.Settings], DeviceMemory],
) -> str | None:
    """The first single change after which it fits."""
    cuda = question.gpu.cuda
    fp8_kv = cuda is not None and cuda >= _NATIVE_FP8
    levers = vllm.with_levers(
        settings, question.requests, fp8_kv=fp8_kv, whole=question.limit_bytes is None
    )
    for name, changed in levers:
        if judge([measure(changed)])[0] is Verdict.FITS:
            return name
    if context and context >= LEAST_CONTEXT:
        return f"--max-model-len {context}"
    if fewest and fewest > question.count:
        return f"{fewest} GPUs, --tensor-parallel-size {fewest}"
    return None


def _speed(subject: Subject, device: DeviceMemory, gpu: Gpu, version: Version) -> Speed | None:
    """Every weight is read once for a token; of a mixture of experts only some, not modelled."""
    if gpu.bandwidth_gb_s is None or subject.spec.num_experts:
        return None
    weights = device.term(vllm.WEIGHTS).value or 0
    bound = gpu.bandwidth_gb_s * 1e9 / weights
    return Speed(bound, version.decode_efficiency, version.decode_source)


def _shown(settings: vllm.Settings) -> tuple[tuple[str, str], ...]:
    return (
        ("--max-model-len", str(settings.context)),
        ("--max-num-seqs", str(settings.sequences)),
        ("--max-num-batched-tokens", str(settings.batched_tokens)),
        ("--kv-cache-dtype", settings.kv_type),
        ("--gpu-memory-utilization", f"{settings.utilization:.2f}"),
        ("--tensor-parallel-size", str(settings.ranks)),
    )


def make_command(candidate: Candidate, subject: Subject) -> str | None:
    """How to make an artifact that does not exist yet."""
    if candidate.place is not None:
        return None
    words = ["hermes-quant", "quantize", subject.reference, "--out", "dist"]
    imatrix = ["--imatrix", "FILE"] if candidate.notes else []
    return shlex.join([*words, "--to", candidate.target, *imatrix])


def _command(candidate: Candidate, subject: Subject, gpu: Gpu, settings: vllm.Settings) -> str:
    where, revision = candidate.place or f"dist/{candidate.name}", ""
    if not is_on_disk(where):  # a hub id; a folder may have an @ in its name
        where, _, revision = where.partition("@")
    half = gpu.cuda is not None and gpu.cuda < _LEAST_BF16
    flags = [word for pair in _shown(settings) for word in pair]
    flags += ["--revision", revision] if revision else []
    if dtype_bytes(subject.spec) == 4:
        flags += ["--dtype", "float32"]  # as planned; by itself vLLM would narrow it
    elif half:
        flags += ["--dtype", "half"]
    return shlex.join(["vllm", "serve", where, *flags])
