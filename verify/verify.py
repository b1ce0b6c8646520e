"""The verb `verify`: one reference, any number of artifacts, one report.

The reference answers the suite once, in float32, and is put away; then each artifact in turn is
looked at (structure, tokens, templates, weights), run by the engine it is made for, and compared
under the gate's thresholds for its type. One model is in memory at a time. An artifact whose
structure is wrong is not run: what it would answer says nothing. One that its engine cannot load
has failed, one that the engine cannot compute as it is meant to be computed leaves too little
evidence, and the others are verified all the same.

An artifact may be the address of an OpenAI-compatible server. Its files are out of reach, so the
report names the checks that were not made; instead, its own parser's tool calls are compared too. A
server that fails on the way leaves too little evidence: that is no fault of the model.

Later turns of a conversation come after the reference's own earlier ones (`later_turns.py`), so the
prompts are complete only once the reference has answered; every artifact is then asked them all.

What is answered is kept in `cache`, if one is given, as it is computed: a run that was stopped goes
on from there, and the next run on the same weights, prompts and options loads nothing for it. What
servers answer is not kept, since they do not say what they serve.

The reference may be a server too (`reference_server`), for models that do not fit here: then its
folder needs tokenizer, config and templates, and what needs the weights themselves is not checked.

The options say how models are run. The reference has those that its numbers may depend on without
being another model: dtype, device, batch, threads. `open_engine` puts engines of a caller's own in
the place of artifacts' (their answers are not kept: nothing would tell them apart), and without
`open_reference` of the reference's too. What a caller's own engine answers for the reference is
kept, apart from ours; a caller with several gives each a `cache` of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint
from convert.errors import InputError, UnsupportedError
from convert.hub import locate
from convert.job import tool_version
from convert.rendering import Tokenizer
from convert.workers import Steps
from quantize.importance import read_importance
from verify.answer_cache import AnswerCache
from verify.artifact import ADDRESS_STARTS, Artifact, Kind, open_artifact
from verify.engines.opening import check_device
from verify.engines.opening import open_engine as engine_for
from verify.evidence import Evidence, Reference, make_prompts
from verify.gate import read_gate
from verify.one_artifact import verify_one
from verify.prompt_tokens import write_fixture
from verify.reference_run import run_reference
from verify.report.contents import ReferenceReport, Report
from verify.run_artifact import OpenEngine, Running, named
from verify.structure import expected_gguf_shapes
from verify.suite import read_suite
from verify.summary import gate_report, scores, suite_report

RESUMABLE = (
    "what was answered is kept (a server's answers are not); run the same command again to go on"
    " from there"
)
DEFAULT_MAX_NEW_TOKENS = 256


def verify(
    reference: str | Path,
    artifacts: Sequence[Path | str],
    *,
    reference_server: str | None = None,
    suite: Path | None = None,
    limit: int | None = None,
    gate: Path | None = None,
    imatrix: Path | None = None,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    cache: Path | None = None,
    fixture: Path | None = None,
    kv_type: str = "f16",
    activations: int = 8,
    dtype: str = "float32",
    device: str = "cpu",
    batch: int | None = None,
    threads: int | None = None,
    on_progress: Steps | None = None,
    open_engine: OpenEngine | None = None,
    open_reference: OpenEngine | None = None,
) -> Report:
    """Compare every artifact with the reference (a folder or hub id) on a suite of conversations.

    An artifact is a GGUF file, a folder, or the address of a server (`http://host:8000/v1`).
    Without a `suite` (a JSONL file or a folder of them) the reference's own prompts are used,
    without a `gate` the one among them, else the defaults. `imatrix` is the importance matrix that
    the GGUF files were made with. `fixture` is a file to write prompt-token counts to.
    `reference_server` is the address of a server that answers for the reference. For `kv_type`,
    `activations` (bits), `dtype`, `device`, `batch` and `threads` see `engines/opening.py`.
    Raises InputError for what cannot be begun with: a quantized reference, a path that is no
    artifact, a server that does not answer, a suite that cannot be read or rendered, a device that
    an engine cannot use.
    """
    if not artifacts:
        raise InputError("no artifact to verify; name a GGUF file, a folder or a server's address")
    opened = [open_artifact(path) for path in artifacts]
    importance = read_importance(imatrix) if imatrix else None
    options: dict[str, Any] = {
        "dtype": dtype, "device": device, "batch": batch, "threads": threads,
    }  # fmt: skip
    run_one: OpenEngine = open_engine or partial(
        engine_for, kv_type=kv_type, activation_bits=activations, **options
    )
    run_base: OpenEngine = open_reference or open_engine or partial(engine_for, **options)
    with _kept(cache), _open_reference(reference, reference_server) as found:
        checkpoint, source, name = found
        asked = read_gate(gate, checkpoint.path)
        if checkpoint.tensors and any(artifact.kind is Kind.GGUF for artifact in opened):
            expected_gguf_shapes(checkpoint)  # refuses a reference that is itself incomplete
        if open_engine is None:
            check_device(device, [source, *opened])
        chosen = read_suite(suite, checkpoint.path, limit)
        tokenizer = Tokenizer.open(checkpoint.path)
        prompts = make_prompts(checkpoint, tokenizer, chosen.conversations, max_new_tokens)
        base = Reference(checkpoint, tokenizer, chosen.conversations, prompts)
        if fixture is not None:
            write_fixture(base, fixture)
        keep = cache if source.served is None else None
        own = {"engine": "the caller's own"} if open_reference or open_engine else {}
        begin = time.monotonic()
        base = run_reference(
            lambda: run_base(source),
            base,
            max_new_tokens=max_new_tokens,
            cache=AnswerCache.of_reference(keep, checkpoint, options | own) if keep else None,
            batch=batch,
            on_progress=named(on_progress, source),
        )
        base = _without_address(base, source)
        assert base.engine is not None
        seconds = time.monotonic() - begin
        right = scores(base, base.answers)
        reported = ReferenceReport(name, base.engine, right, seconds)
        running = Running(
            run_one,
            max_new_tokens,
            None if open_engine else cache,
            batch,
            on_progress,
        )
        reports = tuple(
            verify_one(Evidence(base, artifact, asked.of(artifact.type)), importance, running)
            for artifact in opened
        )
        tokenizer.close()
    return Report(
        tool_version(),
        suite_report(chosen, base),
        gate_report(asked, opened),
        max_new_tokens,
        reported,
        reports,
    )


@contextmanager
def _kept(cache: Path | None) -> Iterator[None]:
    """Whoever stops a run is told that it goes on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if cache is not None:
            stop.add_note(RESUMABLE)
        raise


@contextmanager
def _open_reference(
    place: str | Path, server: str | None
) -> Iterator[tuple[Checkpoint, Artifact, str]]:
    """The reference's folder, what answers for it (its own weights, or a server), and its name."""
    if str(place).startswith(ADDRESS_STARTS):
        raise InputError(
            f"{place}: the reference is a folder (tokenizer, config, templates); give one, and the"
            " address as --reference-server"
        )
    origin = locate(str(place), weights=server is None)
    folder, name = origin.folder, origin.repo or Path(os.path.abspath(origin.folder)).name
    opened = Checkpoint.open_without_weights(folder) if server else Checkpoint.open(folder)
    with opened as checkpoint:
        stored = open_artifact(checkpoint.path)
        if stored.kind is not Kind.CHECKPOINT:
            raise UnsupportedError(f"{place}: quantized; the reference must be the original")
        source = open_artifact(server) if server else stored
        if server and source.served is None:
            raise InputError(f"{server!r}: no address; expected one like http://host:8000/v1")
        yield checkpoint, source, name


def _without_address(base: Reference, source: Artifact) -> Reference:
    """The reference, in whose report no server's address stands."""
    base = replace(base, unscored=source.without_address(base.unscored))
    if base.forced is None:
        return base
    no_long = source.without_address(base.forced.no_long)
    return replace(base, forced=replace(base.forced, no_long=no_long))
