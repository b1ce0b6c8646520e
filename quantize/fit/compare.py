"""Predicted against real, term by term, for a start-up log: how far this planner can be trusted.

In: a model, a log, and (where the log does not state it) the GPU. The settings come from the log,
so that only the formulas are compared. Out: a `Comparison`. Of several artifacts of the model, the
one whose weights are nearest to the log's is meant, and is named. A term is left without a
prediction where an input is neither stated nor given; nothing is filled in to make it agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from convert.errors import InputError
from quantize.fit import llama_cpp, llama_cpp_weights, vllm
from quantize.fit.candidate import Candidate, Subject
from quantize.fit.gpu import Gpu, find_gpu, gpu_of_size
from quantize.fit.memory import DeviceMemory
from quantize.fit.start_log import Measured, StartLog, read_start_log
from quantize.fit.subject import read_subject
from quantize.fit.vllm_version import PLANNED_VERSION, Version, version_of
from quantize.fit.vllm_weights import weights_per_rank


@dataclass(frozen=True, slots=True)
class Compared:
    """One term: bytes, or tokens where the name says so; None where it cannot be predicted."""

    name: str
    predicted: int | None
    measured: int
    why: str = ""

    @property
    def error(self) -> float | None:
        """(predicted - measured) / measured."""
        if self.predicted is None or not self.measured:
            return None
        return (self.predicted - self.measured) / self.measured


@dataclass(frozen=True, slots=True)
class Comparison:
    """All terms that a log states."""

    engine: str
    candidate: Candidate
    settings: dict[str, str]
    terms: tuple[Compared, ...]


def compare(model: str, log: Path, *, gpu: str | None = None) -> Comparison:
    """Compare what the log at `log` states with what would have been planned."""
    found = read_start_log(log)
    device = find_gpu(gpu)[0] if gpu else None
    subject = read_subject(model)
    verb = _compare_vllm if found.engine == "vllm" else _compare_llama
    candidates = [c for c in subject.candidates if c.engine == found.engine]
    if not candidates:
        raise InputError(f"{model}: nothing here is for {found.engine}, whose log {log} is")
    return verb(subject, candidates, found, device)


def _nearest(
    candidates: Sequence[Candidate], weight: Callable[[Candidate], int], real: int | None
) -> Candidate:
    if real is None:
        return candidates[0]
    step = max(real // 1000, 1)  # a log is no finer; of equals the first is the commonest
    return min(candidates, key=lambda candidate: abs(weight(candidate) - real) // step)


def _compare_vllm(
    subject: Subject, candidates: Sequence[Candidate], log: StartLog, gpu: Gpu | None
) -> Comparison:
    spec, stated = subject.spec, log.settings
    total = log.size("device")
    device = gpu_of_size(total, "the log") if total else gpu
    version = version_of(stated.get("version", PLANNED_VERSION))
    settings = _vllm_settings(subject, stated, device, version)

    def weight(candidate: Candidate) -> int:
        return weights_per_rank(candidate, spec, settings.ranks, settings.stages)

    candidate = _nearest(candidates, weight, log.size("weights"))
    plan = vllm.memory(
        weight(candidate), spec, device or _NO_GPU, settings, version, subject.unmodelled
    )
    page = (vllm.kv_bytes_per_token(spec, settings.kv_type, settings.ranks) or 0) * vllm.PAGE_TOKENS
    others = [term for term in plan.terms if term.name != vllm.KV]
    known = page > 0 and device is not None and all(t.value is not None for t in others)
    free = vllm.free_pages(plan, page, safe=False) if known else None
    terms = [
        _vllm_term(measured, plan, None if free is None else free * page, device)
        for measured in log.measured
        if measured.term != "device"
    ]
    for name, unit in (("tokens", vllm.PAGE_TOKENS), ("blocks", 1)):
        if name in stated:
            predicted = None if free is None else free * unit
            terms.append(Compared(f"KV {name}", predicted, int(stated[name])))
    return Comparison("vllm", candidate, stated, tuple(terms))


def _vllm_settings(
    subject: Subject, stated: Mapping[str, str], device: Gpu | None, version: Version
) -> vllm.Settings:
    """What the log states; what it does not, as vLLM itself would have chosen."""
    sequences, batched = vllm.default_batch(device) if device else (0, 0)
    return vllm.Settings(
        context=int(stated.get("context", subject.spec.max_position_embeddings)),
        concurrency=1,
        sequences=int(stated.get("sequences", sequences)),
        batched_tokens=int(stated.get("batched_tokens", batched)),
        utilization=float(stated.get("utilization", version.utilization)),
        kv_type=stated.get("kv_type", "auto"),
        ranks=int(stated.get("ranks", "1")),
        stages=int(stated.get("stages", "1")),
        eager=stated.get("eager") == "True",
    )


_NO_GPU = gpu_of_size(1, "nothing")


def _vllm_term(
    measured: Measured, plan: DeviceMemory, free_bytes: int | None, gpu: Gpu | None
) -> Compared:
    if measured.term == vllm.KV:
        why = "" if free_bytes is not None else "pass --gpu, or not modelled"
        return Compared(vllm.KV, free_bytes, measured.size_bytes, why)
    term = next((term for term in plan.terms if term.name == measured.term), None)
    batch_unknown = measured.term in (vllm.ACTIVATION, vllm.GRAPHS) and gpu is None
    if term is None or term.value is None or batch_unknown:
        why = "pass --gpu" if batch_unknown else "not planned for this version"
        return Compared(measured.term, None, measured.size_bytes, why)
    return Compared(measured.term, term.value, measured.size_bytes)


def _compare_llama(
    subject: Subject, candidates: Sequence[Candidate], log: StartLog, gpu: Gpu | None
) -> Comparison:
    del gpu  # llama.cpp states every size itself
    real = sum(m.size_bytes for m in log.measured if m.term == "weights")
    candidate = _nearest(candidates, lambda c: c.weight_bytes, real)
    spec = subject.spec
    names = list(dict.fromkeys(m.device for m in log.measured if m.device is not None))
    settings = _llama_settings(log, names, spec.num_hidden_layers)
    build = llama_cpp.builds()[0 if log.is_old else -1]
    weights = llama_cpp_weights.place_weights(
        llama_cpp_weights.sections_of(candidate, spec), settings.layers, settings.split
    )
    devices, host = llama_cpp.memory(weights, spec, settings, build, 1 << 60, subject.unmodelled)
    if not names:
        cpu = llama_cpp.cpu_compute_bytes(spec, settings, build)
        host = tuple(
            replace(term, value=cpu) if term.name == llama_cpp.COMPUTE else term for term in host
        )
    terms = []
    for measured in log.measured:
        planned = host if measured.device is None else devices[names.index(measured.device)].terms
        term = next((term for term in planned if term.name == measured.term), None)
        where = measured.device or "main memory"
        value = term.value if term else None
        why = "" if value is not None else "not modelled"
        terms.append(Compared(f"{measured.term}, {where}", value, measured.size_bytes, why))
    return Comparison("llama.cpp", candidate, log.settings, tuple(terms))


def _llama_settings(log: StartLog, names: Sequence[str], layers: int) -> llama_cpp.Settings:
    """What the log states, llama.cpp's defaults for the rest."""
    stated = log.settings
    split = _layers_by_device(log, names, layers)
    slots = max(int(stated.get("slots", "1")), 1)
    outputs = stated.get("outputs")
    return llama_cpp.Settings(
        context=int(stated.get("context", "512")) // slots,
        slots=slots,
        layers=int(stated.get("offloaded", str(layers + 1))) if names else 0,
        split=tuple(float(share) for share in split) or (1.0,),
        kv_type=stated.get("kv_type", "f16"),
        flash_attention=stated.get("flash_attention", "0") not in ("0", "disabled", "false"),
        micro_batch=int(stated.get("micro_batch", "512")),
        outputs=int(outputs) if outputs else None,
        copies=1 if any(name.startswith("RPC") for name in names) else 4,
    )


def _layers_by_device(log: StartLog, names: Sequence[str], layers: int) -> list[int]:
    """Layers on each device, from its share of the KV cache; the head goes with the last."""
    sizes = {m.device: m.size_bytes for m in log.measured if m.term == "KV cache" and m.device}
    total = sum(sizes.values())
    if len(names) < 2 or not total:
        return [1] * len(names)
    shares = [round(layers * sizes.get(name, 0) / total) for name in names]
    shares[-1] += 1
    return shares
