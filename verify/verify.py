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

The reference's answers and log-probabilities are kept in `cache`, if one is given: the next run on
the same weights and prompts does not load it.

`open_engine` opens the engines of artifacts, with the options they are to be run with (and lets a
test put another in an artifact's place); `open_reference` that of the reference, which has none: it
is float32 throughout, its KV cache too, so no option is part of what its cache is kept by.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from convert.checkpoint import Checkpoint
from convert.errors import InputError, UnsupportedError
from convert.hub import locate
from convert.job import tool_version
from convert.rendering import Tokenizer
from convert.workers import Steps
from quantize.importance import read_importance
from verify.artifact import Kind, open_artifact
from verify.engines.opening import open_engine
from verify.evidence import Evidence, Reference, make_prompts
from verify.gate import read_gate
from verify.one_artifact import OpenEngine, named, verify_one
from verify.prompt_tokens import write_fixture
from verify.reference_cache import ReferenceCache
from verify.reference_run import run_reference
from verify.report.contents import ReferenceReport, Report
from verify.structure import expected_gguf_shapes
from verify.suite import read_suite
from verify.summary import gate_report, scores, suite_report

DEFAULT_MAX_NEW_TOKENS = 256


def verify(
    reference: str | Path,
    artifacts: Sequence[Path | str],
    *,
    suite: Path | None = None,
    limit: int | None = None,
    gate: Path | None = None,
    imatrix: Path | None = None,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    cache: Path | None = None,
    fixture: Path | None = None,
    on_progress: Steps | None = None,
    open_engine: OpenEngine = open_engine,
    open_reference: OpenEngine | None = None,
) -> Report:
    """Compare every artifact with the reference (a folder or hub id) on a suite of conversations.

    An artifact is a GGUF file, a folder, or the address of a server (`http://host:8000/v1`).
    Without a `suite` (a JSONL file or a folder of them) the reference's own prompts are used,
    without a `gate` the one among them, else the defaults. `imatrix` is the importance matrix that
    the GGUF files were made with. `fixture` is a file to write prompt-token counts to.
    Raises InputError for what cannot be begun with: a quantized reference, a path that is no
    artifact, a server that does not answer, a suite that cannot be read or rendered.
    """
    if not artifacts:
        raise InputError("no artifact to verify; name a GGUF file, a folder or a server's address")
    opened = [open_artifact(path) for path in artifacts]
    importance = read_importance(imatrix) if imatrix else None
    with Checkpoint.open(locate(str(reference)).folder) as checkpoint:
        asked = read_gate(gate, checkpoint.path)
        source = open_artifact(checkpoint.path)
        if source.kind is not Kind.CHECKPOINT:
            raise UnsupportedError(f"{reference}: quantized; the reference must be the original")
        if any(artifact.kind is Kind.GGUF for artifact in opened):
            expected_gguf_shapes(checkpoint)  # refuses a reference that is itself incomplete
        chosen = read_suite(suite, checkpoint.path, limit)
        tokenizer = Tokenizer.open(checkpoint.path)
        prompts = make_prompts(checkpoint, tokenizer, chosen.conversations, max_new_tokens)
        base = Reference(checkpoint, tokenizer, chosen.conversations, prompts)
        if fixture is not None:
            write_fixture(base, fixture)
        begin = time.monotonic()
        base = run_reference(
            lambda: (open_reference or open_engine)(source),
            base,
            max_new_tokens=max_new_tokens,
            cache=ReferenceCache(cache, checkpoint) if cache else None,
            on_progress=named(on_progress, source),
        )
        assert base.engine is not None
        seconds = time.monotonic() - begin
        right = scores(base, base.answers)
        reported = ReferenceReport(source.name, base.engine, right, seconds)
        reports = tuple(
            verify_one(
                Evidence(base, artifact, asked.of(artifact.type)),
                importance,
                open_engine,
                max_new_tokens,
                on_progress,
            )
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
