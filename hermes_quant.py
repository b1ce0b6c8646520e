"""The command line: one function a verb, nothing heavy imported before a verb runs.

Data goes to stdout, progress and warnings to stderr. Exit codes: 0 done or passed, 1 a gate failed,
2 bad input or usage, 3 not enough evidence to decide, 4 an error of our own (with its traceback),
130 interrupted.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from convert.inspection import Inspection
    from convert.job import Job
    from convert.workers import Progress


class KvType(StrEnum):
    """Element types of llama.cpp's KV cache, by its own names."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


EXIT_BAD_INPUT, EXIT_OURS, EXIT_INTERRUPTED = 2, 4, 130

app = typer.Typer(
    name="hermes-quant",
    help="Quantize Hermes checkpoints and prove that they still answer.\n\nOne read of a 16-bit"
    " checkpoint makes FP8 for vLLM and GGUF for llama.cpp, the same bytes as the tools you know;"
    " verify compares what they answer, tool calls first.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Checkpoint folder, or owner/name@revision.")
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder for the outputs.")]
NameOption = Annotated[
    str | None,
    typer.Option(help="Name of the outputs; default: the model card's, else the folder's."),
]
MetadataOption = Annotated[
    Path | None, typer.Option(help="JSON file of GGUF metadata (general.author, ...).")
]
SplitOption = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Largest GGUF file, with a unit: 50GB.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace outputs that exist.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print exact sizes and needs; write nothing.")
]
MemoryOption = Annotated[
    str, typer.Option(metavar="SIZE", help="Most memory for the work on weights: 512MiB.")
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads that work on weights; default: every core.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"hermes-quant {installed('hermes-quant')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(EXIT_BAD_INPUT)


@app.command()
def quantize(
    model: ModelArgument,
    out: OutOption,
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            help="Q8_0, Q6_K, Q5_K_M, Q4_K_M, IQ4_XS, ... any llama.cpp type; BF16, F16, F32;"
            " FP8_DYNAMIC, FP8_BLOCK, FP8_TENSOR, W8A8, W8A16, W4A16, NVFP4A16, MXFP4, MXFP4A16;"
            " or a mixture of your own (FILE.yaml); repeatable.",
        ),
    ] = None,
    fit_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Also the best GGUF mixture of at most this size: 5.2GB."
        ),
    ] = None,
    bits_per_weight: Annotated[
        float | None,
        typer.Option(min=1, max=32, help="Also the best GGUF mixture of at most so many: 4.6."),
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(help="Importance matrix for the GGUF types (GGUF or .dat).")
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN=TYPE", help="Type of the tensors whose name matches."),
    ] = None,
    output_type: Annotated[str | None, typer.Option(help="Type of output.weight.")] = None,
    embedding_type: Annotated[str | None, typer.Option(help="Type of token_embd.weight.")] = None,
    leave_output: Annotated[
        bool, typer.Option("--leave-output", help="Keep output.weight in the source's dtype.")
    ] = False,
    split_max_size: SplitOption = None,
    numerics: Annotated[
        str,
        typer.Option(help="Rounding of the vLLM schemes: ct-eager, ct-sm90 or fp32-scales."),
    ] = "ct-eager",
    name: NameOption = None,
    metadata: MetadataOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    memory: MemoryOption = "1GiB",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make any number of quantized artifacts from one read of the checkpoint."""
    with _errors():
        from convert.size import parse_size
        from quantize import kernels
        from quantize.choice import Overrides, parse_pattern, parse_type
        from quantize.job import quantize as verb

        overrides = Overrides(
            patterns=tuple(parse_pattern(text) for text in tensor_type or ()),
            output_type=parse_type(output_type) if output_type else None,
            embedding_type=parse_type(embedding_type) if embedding_type else None,
            leave_output=leave_output,
        )
        if kernels.missing():
            typer.echo(f"note: {kernels.missing()}", err=True)
        with _progress(dry_run or as_json) as report:
            job = verb(
                model,
                out,
                to or (),
                fit_bytes=_bytes(fit_bytes),
                bits_per_weight=bits_per_weight,
                imatrix=imatrix,
                overrides=overrides,
                max_file_bytes=_bytes(split_max_size),
                numerics=numerics,
                name=name,
                metadata=metadata,
                force=force,
                dry_run=dry_run,
                memory_bytes=parse_size(memory),
                threads=threads,
                on_progress=report,
            )
        _print_job(job, out, as_json)


@app.command()
def convert(
    model: ModelArgument,
    out: OutOption,
    to: Annotated[list[str], typer.Option("--to", help="BF16, F16 or F32; repeatable.")],
    split_max_size: SplitOption = None,
    name: NameOption = None,
    metadata: MetadataOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    memory: MemoryOption = "1GiB",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the checkpoint as a 16- or 32-bit GGUF: form only, no value changes unsaid."""
    with _errors():
        from convert.job import convert as verb
        from convert.size import parse_size

        with _progress(dry_run or as_json) as report:
            job = verb(
                model,
                out,
                to,
                max_file_bytes=_bytes(split_max_size),
                name=name,
                metadata=metadata,
                force=force,
                dry_run=dry_run,
                memory_bytes=parse_size(memory),
                threads=threads,
                on_progress=report,
            )
        _print_job(job, out, as_json)


@app.command()
def merge(
    first: Annotated[
        Path, typer.Argument(metavar="FIRST", help="NAME-00001-of-0000N.gguf of a split model.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Join the files of a split GGUF into one, the bytes it would have had unsplit."""
    with _errors():
        from convert.merge import merge as verb

        merged = verb(first, out, force=force)
        if as_json:
            _print_json({"schema_version": 1, **asdict(merged)})
        else:
            _print(
                f"{out}: {merged.size_bytes:,} bytes ({_size(merged.size_bytes)}) from"
                f" {merged.files} files, sha256 {merged.sha256}"
            )


@app.command()
def inspect(
    path: Annotated[
        str,
        typer.Argument(metavar="PATH", help="Checkpoint folder, GGUF file, FP8 folder or hub id."),
    ],
    as_json: JsonOption = False,
) -> None:
    """Say what a model is, from its headers: family, sizes, types, templates, special tokens."""
    with _errors():
        from convert.inspection import inspect as verb

        found = verb(path)
        if as_json:
            _print_json({**asdict(found), "bits_per_weight": found.bits_per_weight})
        else:
            _print(_inspection_table(found))


@app.command()
def fit(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Checkpoint or FP8 folder, GGUF file, config.json, release manifest or hub id.",
        ),
    ],
    gpu: Annotated[
        str | None, typer.Option(metavar="NAME", help='"RTX 4090", or 2x"H100 80GB" for two.')
    ] = None,
    gpu_mem: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Usable memory of the GPU: 23.5GiB.")
    ] = None,
    context: Annotated[
        str | None, typer.Option(metavar="TOKENS", help="8192 or 32k; default: 8k or the model's.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(metavar="N", help="Requests that must find room at once.")
    ] = None,
    engine: Annotated[str, typer.Option(help="vllm, llama.cpp or both.")] = "both",
    kv_type: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="Cache type: fp8, q8_0, ...; default: 16 bits."),
    ] = None,
    to: Annotated[
        list[str] | None, typer.Option("--to", help="Only this target; repeatable.")
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Ask backwards: which mixture stays within SIZE?"),
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(metavar="LOG", help="Compare a start-up log with the prediction.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the memory by term.")
    ] = None,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table for a model card.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say which artifact runs on a GPU, with what context, and the command to start it."""
    with _errors():
        from quantize.fit import card, fit_json, table

        if compare is not None:
            from quantize.fit.compare import compare as against
            from quantize.fit.comparison_table import print_comparison

            comparison = against(model, compare, gpu=gpu)
            if as_json:
                _print_json(fit_json.comparison_json(comparison))
            else:
                print_comparison(comparison, _console())
            return
        from quantize.fit.fit import fit as verb

        report = verb(
            model,
            gpu=gpu,
            gpu_memory=gpu_mem,
            max_memory=max_memory,
            context=context,
            concurrency=concurrency,
            engine=engine,
            kv_type=kv_type,
            targets=to or (),
        )
        if plot is not None:
            from quantize.fit.plot import write_plot

            write_plot(report, plot)
        if as_json:
            _print_json(fit_json.report_json(report))
        elif as_markdown:
            typer.echo(card.markdown(report), nl=False)
        else:
            table.print_report(report, _console())


@app.command()
def verify(
    reference: Annotated[
        str, typer.Argument(metavar="REFERENCE", help="The checkpoint they were made from.")
    ],
    artifacts: Annotated[
        list[str],
        typer.Argument(
            metavar="ARTIFACT...",
            help="GGUF files, FP8 folders, and servers: http://host:8000/v1, or with #NAME.",
        ),
    ],
    suite: Annotated[
        Path | None,
        typer.Option(help="JSONL file or folder; default: prompts/ beside the reference."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use this many prompts, spread evenly.")
    ] = None,
    gate: Annotated[
        Path | None, typer.Option(help="YAML of thresholds by type; see docs/gates.md.")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(help="Importance matrix that the GGUF files were made with.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for report.html, report.json and junit.xml."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Keep the reference's answers here; default: the user's cache folder."),
    ] = None,
    kv_type: Annotated[
        KvType, typer.Option(help="KV cache of GGUF files, as they will be run.")
    ] = KvType.F16,
    as_json: JsonOption = False,
) -> None:
    """Compare what artifacts answer with what the reference answers, tool calls first."""
    with _errors():
        from verify.reference_cache import default_folder
        from verify.report.terminal import print_report
        from verify.report.write import prepare_folder, write_report
        from verify.verify import open_engine
        from verify.verify import verify as verb

        cache_type = "float16" if kv_type is KvType.F16 else kv_type.value
        if out is not None:
            prepare_folder(out)
        with _steps(as_json) as report_progress:
            report = verb(
                reference,
                artifacts,
                suite=suite,
                limit=limit,
                gate=gate,
                imatrix=imatrix,
                cache=cache or default_folder(),
                on_progress=report_progress,
                open_engine=partial(open_engine, kv_type=cache_type),
            )
        if out is not None:
            write_report(report, out)
            typer.echo(f"report: {out / 'report.html'}", err=True)
        if as_json:
            _print_json(report.to_dict())
        else:
            from rich.console import Console

            print_report(report, Console())
        raise typer.Exit(report.exit_code)


@app.command()
def lint(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Checkpoint folder of safetensors.")],
    as_json: JsonOption = False,
) -> None:
    """Say by name what is wrong with a quantized checkpoint, without a GPU or a reference."""
    with _errors():
        from verify.lint.lint import lint as verb
        from verify.lint.print_lint import print_lint

        with _progress(as_json) as report_progress:
            report = verb(path, on_progress=report_progress)
        if as_json:
            _print_json(report.to_dict())
        else:
            print_lint(report, _console())
        raise typer.Exit(report.exit_code)


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="Checkpoint folder.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Checkpoint folder of the same layout.")],
    as_json: JsonOption = False,
) -> None:
    """Compare two checkpoints code by code: identical, other numerics, or another model."""
    with _errors():
        from verify.diff import diff as verb
        from verify.print_diff import print_diff

        with _progress(as_json) as report_progress:
            report = verb(a, b, on_progress=report_progress)
        if as_json:
            _print_json(report.to_dict())
        else:
            print_diff(report, _console())
        raise typer.Exit(report.exit_code)


@contextmanager
def _steps(quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A progress bar on stderr for one named model after another, if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=None)

        def report(name: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description=f"{name}: prompts")

        yield report


@contextmanager
def _errors() -> Iterator[None]:
    """Errors that a person can mend become one line on stderr and exit code 2."""
    from convert.errors import HermesQuantError
    from convert.terminal import printable

    try:
        yield
    except HermesQuantError as error:
        line = "; ".join([str(error), *getattr(error, "__notes__", ())])
        typer.echo(f"error: {printable(line)}", err=True)
        raise typer.Exit(EXIT_BAD_INPUT) from error
    except KeyboardInterrupt as error:
        notes = getattr(error, "__notes__", ["nothing unfinished has a final name"])
        typer.echo("; ".join(["interrupted", *notes]), err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from error


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress | None]:
    """A progress bar on stderr, if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import (
        Progress as Bar,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)
        last = (0, 0)

        def report(done: int, total: int, what: str) -> None:
            nonlocal last
            if done < last[0] or total != last[1]:  # another phase: it has a rate of its own
                bar.reset(task, total=total, completed=done, description=what)
            bar.update(task, completed=done, description=what)
            last = (done, total)

        yield report


def _console() -> Console:
    from rich.console import Console

    # A pipe has no width: nothing is cut there.
    return Console(width=None if sys.stdout.isatty() else 1000)


def _print(*renderables: object) -> None:
    _console().print(*renderables)


def _print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2))


def _bytes(size: str | None) -> int | None:
    from convert.size import parse_size

    return None if size is None else parse_size(size)


def _size(size_bytes: int) -> str:
    """A size as people compare them: decimal units, three digits."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        if column in right:
            table.add_column(column, justify="right", no_wrap=True)
        else:
            table.add_column(column, overflow="fold")
    return table


def _print_job(job: Job, out: Path, as_json: bool) -> None:
    if as_json:
        _print_json(_job_json(job))
        return
    table = _table("output", "bytes", "size", "bits/weight", "", right=("bytes", "size"))
    results = {result.artifact.name: result for result in job.results}
    for planned in job.plan.artifacts:
        result = results.get(planned.name)
        size = result.artifact.size_bytes if result else planned.size_bytes
        state = "planned" if result is None else "already there" if result.kept else "made"
        bits = f"{8 * planned.size_bytes / job.parameters:.2f}"
        table.add_row(planned.name, f"{size:,}", _size(size), bits, state)
    _print(table)
    for lint in job.lints:
        typer.echo(f"warning: {lint}", err=True)
    for planned in job.plan.artifacts:
        for note in planned.notes:
            _print(f"{planned.name}: {note}")
        for warning in planned.warnings:
            typer.echo(f"warning: {planned.name}: {warning}", err=True)
        changed = results[planned.name].artifact.values_changed if results else 0
        if changed:
            typer.echo(
                f"warning: {planned.name}: {changed:,} values changed; {planned.target} does not"
                " hold every value of the source",
                err=True,
            )
    if results:
        _print(f"in {out}")
    else:
        _print(
            f"read {job.plan.read_bytes:,} bytes, write {job.plan.write_bytes:,};"
            f" disk needed {job.disk_bytes:,} bytes ({_size(job.disk_bytes)}),"
            f" memory for blocks up to {_size(job.memory_bytes)}"
        )


def _job_json(job: Job) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "name": job.name,
        "parameters": job.parameters,
        "read_bytes": job.plan.read_bytes,
        "write_bytes": job.plan.write_bytes,
        "disk_bytes": job.disk_bytes,
        "memory_bytes": job.memory_bytes,
        "lints": [asdict(lint) for lint in job.lints],
        "planned": [
            {
                "name": planned.name,
                "target": planned.target,
                "size_bytes": planned.size_bytes,
                "files": {file.path: file.size_bytes for file in planned.files},
                "warnings": planned.warnings,
                "notes": planned.notes,
            }
            for planned in job.plan.artifacts
        ],
        "artifacts": [{**asdict(r.artifact), "kept": r.kept} for r in job.results],
    }


def _inspection_table(found: Inspection) -> Table:
    from convert.terminal import printable

    table = _table("", "")
    table.show_header = False
    scaling = f", {found.rope_scaling} rope scaling" if found.rope_scaling else ""
    rows = {
        "kind": found.kind,
        "name": found.name or "not stated",
        "architecture": f"{found.architecture} (family: {found.family or 'unknown'})",
        "quantization": found.quantization or "none",
        "parameters": f"{found.parameters:,}",
        "size": f"{found.size_bytes:,} bytes in {found.files} file(s),"
        f" {found.bits_per_weight:.2f} bits per weight",
        "shape": f"{found.layers} layers, hidden {found.hidden_size}, {found.heads} heads,"
        f" {found.kv_heads} KV heads",
        "context": f"{found.context_length:,} tokens{scaling}",
        "vocabulary": f"{found.vocabulary:,} tokens,"
        f" {'tied' if found.tied_embeddings else 'untied'} embeddings",
        "special tokens": ", ".join(f"{k} {v}" for k, v in found.special_tokens.items()) or "none",
        "chat templates": ", ".join(found.chat_templates) or "none",
    }
    for key, value in rows.items():
        table.add_row(f"[bold]{key}", printable(value).replace("[", r"\["))
    for stored in found.stored:
        size = f"{stored.tensors} tensors, {stored.values:,} values, {_size(stored.size_bytes)}"
        table.add_row(f"[bold]stored as {stored.type}", size)
    return table


def main() -> None:
    """Run the command line; an error of our own keeps its traceback and exits with 4."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except Exception:
        traceback.print_exc()
        sys.exit(EXIT_OURS)


if __name__ == "__main__":
    main()
