"""One GGUF on llama.cpp: the plan, its limits, the levers, the command.

In: a candidate, what is asked, the model's shape. Out: an `Answer` with every layer offloaded over
equal shares of the devices, flash attention on and the server's one output a slot. Where that does
not fit, the levers are a cache of 8 bits, a shorter context, fewer layers on the device (`-ngl`),
more devices. Every limit that is printed holds at the upper end of every band.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace

from quantize.fit import llama_cpp, llama_cpp_weights
from quantize.fit.answer import LEAST_CONTEXT, Answer, Question, Speed
from quantize.fit.candidate import Candidate, Subject
from quantize.fit.for_vllm import make_command
from quantize.fit.gpu import Gpu
from quantize.fit.memory import DeviceMemory, Term, Verdict, judge

MAX_DEVICES = 16
MAX_SLOTS = 256
"""llama.cpp's limit on sequences in one context (LLAMA_MAX_SEQ)."""
_NO_BACKEND = ("tpu", "trn2", "hpu")
Measured = tuple[tuple[DeviceMemory, ...], tuple[Term, ...]]
Measure = Callable[[llama_cpp.Settings], Measured]


def answer(candidate: Candidate, subject: Subject, question: Question) -> Answer:
    """Plan `candidate` on llama.cpp."""
    build = llama_cpp.builds()[-1]
    if (why := cannot_run(question)) is not None:
        return Answer(candidate, "llama.cpp", build.since, Verdict.CANNOT, why)
    measure = _measure(candidate, subject, question.usable_bytes, build)
    settings = settings_for(subject, question)
    devices, host = measure(settings)
    verdict, breaks = judge(devices)
    known = all(term.value is not None for device in devices for term in device.terms)
    context = _longest(subject, settings, measure) if known else None
    fewest = _fewest(settings, measure)
    found = Answer(
        candidate=candidate,
        engine="llama.cpp",
        engine_version=build.since,
        verdict=verdict,
        breaks=breaks,
        devices=devices,
        host=host,
        settings=_shown(settings),
        largest_context=context,
        largest_concurrency=_most(settings, measure) if known else None,
        fewest_gpus=fewest,
        speed=_speed(subject, devices, question.gpu, build),
        make=make_command(candidate, subject),
        command=_command(candidate, settings),
    )
    if verdict in (Verdict.FITS, Verdict.UNKNOWN):
        return found
    return replace(found, lever=_lever(subject, settings, context, fewest, measure))


def cannot_run(question: Question) -> str | None:
    """Why memory is not the question; None where it is."""
    if question.gpu.compute_capability in _NO_BACKEND:
        return f"llama.cpp has no backend for {question.gpu.name}"
    if question.requests > MAX_SLOTS:
        return f"{question.requests} requests; llama.cpp holds {MAX_SLOTS} sequences at most"
    return None


def settings_for(subject: Subject, question: Question) -> llama_cpp.Settings:
    """Every layer on the devices, in equal shares."""
    return llama_cpp.Settings(
        context=question.context,
        slots=question.requests,
        layers=subject.spec.num_hidden_layers + 1,
        split=(1.0,) * question.count,
        kv_type=question.kv_type or "f16",
        outputs=question.requests,
    )


def fitting_file_bytes(candidate: Candidate, subject: Subject, question: Question) -> int:
    """Bytes that a file like `candidate`, in place of it, may take on these devices.

    Every device's share grows by the same factor; what lies in main memory or in the header counts
    towards the file and not towards a device.
    """
    build = llama_cpp.builds()[-1]
    measure = _measure(candidate, subject, question.usable_bytes, build)
    factor, held = float("inf"), 0
    for device in measure(settings_for(subject, question))[0]:
        weights = device.term(llama_cpp.WEIGHTS).value or 0
        room = device.budget_bytes - sum(term.high for term in device.terms) + weights
        factor, held = min(factor, room / weights), held + weights
    return max(0, int(factor * held) + candidate.size_bytes - held)


def smallest(
    candidate: Candidate, subject: Subject, question: Question, devices: Sequence[Gpu], count: int
) -> Gpu | None:
    """The first of `devices`, smallest first, of which `count` hold the candidate."""
    settings = replace(settings_for(subject, question), split=(1.0,) * count)
    needed, _ = _measure(candidate, subject, 0, llama_cpp.builds()[-1])(settings)
    for gpu in devices:
        given = [replace(device, budget_bytes=gpu.usable_bytes) for device in needed]
        if judge(given)[0] is Verdict.FITS:
            return gpu
    return None


def _measure(
    candidate: Candidate, subject: Subject, usable_bytes: int, build: llama_cpp.Build
) -> Measure:
    """Memory by settings; the tensors are summed by layer once."""
    sections = llama_cpp_weights.sections_of(candidate, subject.spec)

    def measure(settings: llama_cpp.Settings) -> Measured:
        weights = llama_cpp_weights.place_weights(sections, settings.layers, settings.split)
        return llama_cpp.memory(
            weights, subject.spec, settings, build, usable_bytes, subject.unmodelled
        )

    return measure


def _fits(settings: llama_cpp.Settings, measure: Measure) -> bool:
    return judge(measure(settings)[0])[0] is Verdict.FITS


def _largest(least: int, most: int, step: int, fits: Callable[[int], bool]) -> int:
    """The largest multiple of `step` up to `most` for which `fits` holds; 0 if not for `least`."""
    if most < least or not fits(least):
        return 0
    low, high = least // step, most // step
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * step) else (low, middle - 1)
    return low * step


def _longest(subject: Subject, settings: llama_cpp.Settings, measure: Measure) -> int:
    step, most = llama_cpp.CELL_ALIGNMENT, subject.spec.max_position_embeddings

    def fits(context: int) -> bool:
        return _fits(replace(settings, context=context), measure)

    return most if most % step and fits(most) else _largest(step, most, step, fits)


def _most(settings: llama_cpp.Settings, measure: Measure) -> int:
    def fits(slots: int) -> bool:
        return _fits(replace(settings, slots=slots, outputs=slots), measure)

    return _largest(1, MAX_SLOTS, 1, fits)


def _fewest(settings: llama_cpp.Settings, measure: Measure) -> int | None:
    """The smallest number of devices that fits; None where none up to 16 does."""
    for count in range(1, MAX_DEVICES + 1):
        if _fits(replace(settings, split=(1.0,) * count), measure):
            return count
    return None


def _lever(
    subject: Subject,
    settings: llama_cpp.Settings,
    context: int | None,
    fewest: int | None,
    measure: Measure,
) -> str | None:
    """The first single change after which it fits."""
    if settings.kv_type == "f16" and _fits(replace(settings, kv_type="q8_0"), measure):
        return "-ctk q8_0 -ctv q8_0"
    if context and context >= LEAST_CONTEXT:
        return f"-c {context * settings.slots}"
    total = subject.spec.num_hidden_layers + 1
    layers = _largest(
        1, total - 1, 1, lambda count: _fits(replace(settings, layers=count), measure)
    )
    if 2 * layers >= total:  # with fewer, main memory decides the speed
        return f"-ngl {layers} of {total}"
    if fewest and fewest > len(settings.split):
        return f"{fewest} GPUs, -ts {','.join('1' * fewest)}"
    return None


def _speed(
    subject: Subject, devices: tuple[DeviceMemory, ...], gpu: Gpu, build: llama_cpp.Build
) -> Speed | None:
    """Layers on several devices run one after the other, so their bytes add up."""
    if gpu.bandwidth_gb_s is None or subject.spec.num_experts:
        return None
    weights = sum(device.term(llama_cpp.WEIGHTS).value or 0 for device in devices)
    bound = gpu.bandwidth_gb_s * 1e9 / weights
    return Speed(bound, build.decode_efficiency, build.decode_source)


def _shown(settings: llama_cpp.Settings) -> tuple[tuple[str, str], ...]:
    shown = [
        ("-c", str(llama_cpp.cells(settings.context) * settings.slots)),
        ("-np", str(settings.slots)),
        ("-ngl", str(settings.layers)),
        ("-fa", "on" if settings.flash_attention else "off"),
        ("-ctk", settings.kv_type),
        ("-ctv", settings.kv_type),
    ]
    if len(settings.split) > 1:
        shown.append(("-ts", ",".join(f"{share:g}" for share in settings.split)))
    return tuple(shown)


def _command(candidate: Candidate, settings: llama_cpp.Settings) -> str:
    place = candidate.place or f"dist/{candidate.name}"
    owner, _, rest = place.removeprefix("hf:").partition("/")
    repository, _, file = rest.partition("/")
    hub = place.startswith("hf:")
    where = ["-hf", f"{owner}/{repository}", "-hff", file] if hub else ["-m", place]
    return shlex.join(["llama-server", *where, *(w for pair in _shown(settings) for w in pair)])
