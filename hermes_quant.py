"""The command line: one function a verb, nothing heavy imported before a verb runs.

Data goes to stdout, progress and warnings to stderr. Exit codes: 0 done or passed, 1 a gate failed,
2 bad input or usage, 3 not enough evidence to decide, 4 an error of our own (with its traceback),
130 interrupted.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class KvType(StrEnum):
    """Element types of a KV cache: llama.cpp's by its own names, and FP8 as vLLM has it."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"
    FP8 = "fp8"


class ActivationBits(StrEnum):
    """What an FP8 folder is run as: W8A8, or W8A16 as on hardware without FP8."""

    EIGHT = "8"
    SIXTEEN = "16"


EXIT_BAD_INPUT, EXIT_NOT_ENOUGH, EXIT_OURS, EXIT_INTERRUPTED = 2, 3, 4, 130

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

release = typer.Typer(
    name="release", help="Build, check and publish verified releases.", no_args_is_help=True
)
app.add_typer(release)

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
DeviceOption = Annotated[str, typer.Option(help="Where the model is computed: cpu, cuda, cuda:1.")]
DtypeOption = Annotated[str, typer.Option(help="In what: float32, bfloat16 or float16.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
PublicKeyOption = Annotated[
    Path | None, typer.Option(help="Public key that must have signed it (PEM).")
]
IdentityOption = Annotated[
    str | None, typer.Option(help="Identity that must have signed it without a key.")
]
IssuerOption = Annotated[str | None, typer.Option(help="OpenID issuer of that identity.")]


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
            " with --calibration FP8 (static), W4A16_GPTQ, W4A16_AWQ, NVFP4; or a mixture of your"
            " own (FILE.yaml); repeatable.",
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
    abliterate: Annotated[
        Path | None,
        typer.Option(metavar="EDIT", help="Edit weights first; SAFETENSORS is then a target too."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="CAL", help="Folder that calibrate made, or conversations (FILE.jsonl)."
        ),
    ] = None,
    kv_cache: Annotated[
        bool, typer.Option("--kv-cache-fp8", help="Store FP8 scales of the KV cache for vLLM.")
    ] = False,
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
        from convert.print_job import print_job
        from convert.progress import bytes_bar
        from convert.size import parse_size
        from quantize.choice import Overrides, parse_pattern, parse_type
        from quantize.job import quantize as verb

        overrides = Overrides(
            patterns=tuple(parse_pattern(text) for text in tensor_type or ()),
            output_type=parse_type(output_type) if output_type else None,
            embedding_type=parse_type(embedding_type) if embedding_type else None,
            leave_output=leave_output,
        )
        with bytes_bar(quiet=dry_run or as_json) as report:
            job = verb(
                model,
                out,
                to or (),
                fit_bytes=_bytes(fit_bytes),
                bits_per_weight=bits_per_weight,
                imatrix=imatrix,
                abliterate=abliterate,
                calibration=calibration,
                kv_cache=kv_cache,
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
        print_job(job, out, as_json=as_json)


@app.command()
def calibrate(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the calibration.")],
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Conversations; default: the bundled set."),
    ] = None,
    chunk_tokens: Annotated[
        int, typer.Option(min=2, metavar="N", help="Tokens of a chunk, as in llama-imatrix.")
    ] = 512,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the model over conversations, layer by layer: imatrix and activation maxima."""
    with _errors():
        from convert.progress import steps_bar
        from quantize.calibrate import calibrate as verb
        from quantize.print_calibration import print_calibration

        with steps_bar(quiet=as_json, unit="batches") as report:
            done = verb(
                model,
                out,
                data,
                chunk_tokens=chunk_tokens,
                device=device,
                dtype=dtype,
                force=force,
                on_progress=report,
            )
        print_calibration(done, as_json=as_json)


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
        from convert.print_job import print_job
        from convert.progress import bytes_bar
        from convert.size import parse_size

        with bytes_bar(quiet=dry_run or as_json) as report:
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
        print_job(job, out, as_json=as_json)


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
        from convert.terminal import console, print_json, readable_size

        merged = verb(first, out, force=force)
        if as_json:
            print_json({"schema_version": 1, **asdict(merged)})
        else:
            console().print(
                f"{out}: {merged.size_bytes:,} bytes ({readable_size(merged.size_bytes)}) from"
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
        from convert.print_inspection import print_inspection
        from convert.terminal import print_json

        found = verb(path)
        if as_json:
            print_json({**asdict(found), "bits_per_weight": found.bits_per_weight})
        else:
            print_inspection(found)


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
        from convert.terminal import console, print_json
        from quantize.fit import card, fit_json, table

        if compare is not None:
            from quantize.fit.compare import compare as against
            from quantize.fit.comparison_table import print_comparison

            comparison = against(model, compare, gpu=gpu)
            if as_json:
                print_json(fit_json.comparison_json(comparison))
            else:
                print_comparison(comparison, console())
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
            print_json(fit_json.report_json(report))
        elif as_markdown:
            typer.echo(card.markdown(report), nl=False)
        else:
            table.print_report(report, console())


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
        typer.Option(help="JSONL file, folder of them or of BFCL; default: the reference's."),
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
        typer.Option("--out", "-o", help="Folder for the report: HTML, JSON, JUnit."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Keep answers here; default: the user's cache."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of a reply; reasoning needs more.")
    ] = 256,
    reference_server: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Server that answers for the reference."),
    ] = None,
    kv_type: Annotated[
        KvType, typer.Option(help="KV cache: q8_0, q4_0 for GGUF; fp8 for folders.")
    ] = KvType.F16,
    activations: Annotated[
        ActivationBits, typer.Option(help="Bits of activations in FP8 folders.")
    ] = ActivationBits.EIGHT,
    dtype: Annotated[
        str, typer.Option(help="Of the reference: float32, bfloat16, float16.")
    ] = "float32",
    device: DeviceOption = "cpu",
    batch: Annotated[
        int | None, typer.Option(min=1, help="Prompts at once; default: 16, in llama.cpp 8.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads that compute; default: every core.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare what artifacts answer with what the reference answers, tool calls first."""
    with _errors():
        from convert.progress import steps_bar
        from convert.terminal import console, print_json
        from verify.answer_cache import default_folder
        from verify.prompt_tokens import FILE_NAME
        from verify.report.terminal import print_report
        from verify.report.write import prepare_folder, write_report
        from verify.verify import verify as verb

        if out is not None:
            prepare_folder(out)
        with steps_bar(quiet=as_json) as report_progress:
            report = verb(
                reference,
                artifacts,
                reference_server=reference_server,
                suite=suite,
                limit=limit,
                gate=gate,
                imatrix=imatrix,
                max_new_tokens=max_new_tokens,
                cache=cache or default_folder(),
                fixture=out / FILE_NAME if out is not None else None,
                kv_type=kv_type.value,
                activations=int(activations),
                dtype=dtype,
                device=device,
                batch=batch,
                threads=threads,
                on_progress=report_progress,
            )
        if out is not None:
            write_report(report, out)
            typer.echo(f"report: {out / 'report.html'}", err=True)
        if as_json:
            print_json(report.to_dict())
        else:
            print_report(report, console())
        raise typer.Exit(report.exit_code)


@app.command()
def replay(
    fixture: Annotated[
        Path, typer.Argument(metavar="FILE", help="prompt-tokens.jsonl of a verify --out folder.")
    ],
    address: Annotated[
        str, typer.Argument(metavar="URL", help="The server: http://host:8000/v1, or with #NAME.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Compare a server's prompt-token counts with the reference's; needs no weights."""
    with _errors():
        from convert.terminal import print_json, printable
        from verify.check import EXIT_CODES
        from verify.prompt_tokens import replay as verb

        outcome = verb(fixture, address)
        if as_json:
            print_json(asdict(outcome))
        else:
            verdict = outcome.verdict
            typer.echo(f"{verdict.state.value}: {verdict.reason}")
            for found in outcome.findings:
                typer.echo(printable(f"  {found.subject}: {found.message}"))
        raise typer.Exit(EXIT_CODES[outcome.verdict.state])


@app.command()
def lint(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Checkpoint folder of safetensors.")],
    as_json: JsonOption = False,
) -> None:
    """Say by name what is wrong with a quantized checkpoint, without a GPU or a reference."""
    with _errors():
        from convert.progress import bytes_bar
        from convert.terminal import console, print_json
        from verify.lint.lint import lint as verb
        from verify.lint.print_lint import print_lint

        with bytes_bar(quiet=as_json) as report_progress:
            report = verb(path, on_progress=report_progress)
        if as_json:
            print_json(report.to_dict())
        else:
            print_lint(report, console())
        raise typer.Exit(report.exit_code)


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="Checkpoint folder.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Checkpoint folder of the same layout.")],
    as_json: JsonOption = False,
) -> None:
    """Compare two checkpoints code by code: identical, other numerics, or another model."""
    with _errors():
        from convert.progress import bytes_bar
        from convert.terminal import console, print_json
        from verify.diff import diff as verb
        from verify.print_diff import print_diff

        with bytes_bar(quiet=as_json) as report_progress:
            report = verb(a, b, on_progress=report_progress)
        if as_json:
            print_json(report.to_dict())
        else:
            print_diff(report, console())
        raise typer.Exit(report.exit_code)


@release.command("build")
def release_build(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="See docs/release.md.")],
    out: OutOption,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Make and verify only this artifact; repeatable."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Folder or hub id in place of the recipe's source.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Private key to sign with (PEM).")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Keep the reference's answers here, as verify does.")
    ] = None,
    dry_run: DryRunOption = False,
    memory: MemoryOption = "1GiB",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make, verify and sign every artifact of a recipe; release what passed its gate."""
    with _errors():
        from convert.progress import bytes_bar, steps_bar
        from convert.size import parse_size
        from verify.release import print_release
        from verify.release.build import build as verb
        from verify.release.reads import Pace

        if dry_run:
            from verify.release.predict import predict

            found = predict(recipe, source=source, only=only or (), threads=threads)
            print_release.print_prediction(found, as_json=as_json)
            return
        with bytes_bar(quiet=as_json) as on_bytes, steps_bar(quiet=as_json) as on_prompts:
            built = verb(
                recipe,
                out,
                source=source,
                only=only or (),
                key=key,
                cache=cache,
                pace=Pace(threads, parse_size(memory), on_bytes, on_prompts),
            )
        print_release.print_build(built, out, as_json=as_json)
        raise typer.Exit(built.exit_code)


@release.command("check")
def release_check(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A release, or one repository of it.")
    ],
    key: PublicKeyOption = None,
    identity: IdentityOption = None,
    issuer: IssuerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every byte, the signature and the papers of a release."""
    with _errors():
        from convert.progress import steps_bar
        from verify.release.check import check_release as verb
        from verify.release.print_release import print_checked
        from verify.release.signing import identity_of

        with steps_bar(quiet=as_json) as on_file:
            checked = verb(folder, identity_of(key, identity, issuer), on_file)
        print_checked(checked, as_json=as_json)
        raise typer.Exit(checked.exit_code)


@release.command("publish")
def release_publish(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A release that was built.")],
    to: Annotated[
        str | None, typer.Option(metavar="PLACE", help="hub, a folder, or a URL of fsspec.")
    ] = None,
    owner: Annotated[str | None, typer.Option(help="Whose repositories on the hub.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Take from its publish section what is not given.")
    ] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="New repositories; default: private.")
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request, commit nothing.")
    ] = False,
    key: PublicKeyOption = None,
    identity: IdentityOption = None,
    issuer: IssuerOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check it and say what would be sent; send nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Send a release that passes its check to the hub, a folder or a bucket."""
    with _errors():
        from convert.progress import steps_bar
        from verify.release.print_release import print_uploads
        from verify.release.publish import publish as verb
        from verify.release.publish import target_of
        from verify.release.signing import identity_of

        target = target_of(recipe, to, owner, private, create_pr)
        by = identity_of(key, identity, issuer)
        with steps_bar(quiet=as_json) as on_sent:
            uploads = verb(folder, target, by=by, dry_run=dry_run, on_sent=on_sent)
        print_uploads(uploads, as_json=as_json)


@release.command("schema")
def release_schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    with _errors():
        from convert.terminal import print_json
        from verify.release.recipe import json_schema

        print_json(json_schema())


@release.command("key")
def release_key(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Where the private key goes; FILE.pub beside it.")
    ],
) -> None:
    """Make a key to sign releases with."""
    with _errors():
        from verify.release.signing import make_key

        typer.echo(f"{file}: private, keep it secret; {make_key(file)}: public, give it away")


abliterate = typer.Typer(
    help="Find the direction by which a model refuses, and take it out of its weights.",
    no_args_is_help=True,
)
app.add_typer(abliterate, name="abliterate")

MeasuredArgument = Annotated[
    Path, typer.Argument(metavar="MEASURED", help="Folder that abliterate measure wrote.")
]


@abliterate.command("measure")
def _measure(
    model: ModelArgument,
    refused: Annotated[Path, typer.Option(help="JSONL of prompts that the model refuses.")],
    harmless: Annotated[Path, typer.Option(help="JSONL of prompts that it answers.")],
    out: OutOption,
    tools: Annotated[
        Path | None, typer.Option(help="JSON array of tools: measure with them on offer too.")
    ] = None,
    contrast: Annotated[
        str, typer.Option(help="harmless, or complied: the refused set's own exceptions.")
    ] = "harmless",
    least_refusals: Annotated[
        float, typer.Option(min=0, max=1, help="Below this share there is nothing to remove.")
    ] = 0.5,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Measure how often the model refuses, and where in its layers that shows."""
    with _errors():
        from convert.progress import steps_bar
        from convert.terminal import print_json
        from quantize.abliteration.machine import Machine
        from quantize.abliteration.measure import measure as verb
        from quantize.abliteration.plots import can_plot, plot_separation
        from quantize.abliteration.print_abliteration import print_measured

        with steps_bar(quiet=as_json) as report:
            found = verb(
                model,
                refused,
                harmless,
                out,
                tools=tools,
                contrast=contrast,
                least_rate=least_refusals,
                machine=Machine(device, dtype),
                on_progress=report,
            )
        if found.nothing is None and can_plot():
            plot_separation(found.measurement, out / "separation.png")
        if as_json:
            baseline = asdict(found.measurement.baseline)
            print_json({"schema_version": 1, "baseline": baseline, "nothing": found.nothing})
        else:
            print_measured(found)
        raise typer.Exit(0 if found.nothing is None else EXIT_NOT_ENOUGH)


@abliterate.command("select")
def _select(
    model: ModelArgument,
    measured: MeasuredArgument,
    strength: Annotated[
        list[float] | None, typer.Option(help="Try this strength; repeatable; default 1 and 1.5.")
    ] = None,
    variant: Annotated[
        str, typer.Option(help="plain, or tools: directions measured with tools on offer.")
    ] = "plain",
    projected: Annotated[
        bool, typer.Option("--projected", help="Also directions without the harmless mean.")
    ] = False,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Rank directions by what the model does without them; random ones are in the table too."""
    with _errors():
        from convert.progress import steps_bar
        from convert.terminal import print_json
        from quantize.abliteration.machine import Machine
        from quantize.abliteration.plots import can_plot, plot_projection, plot_ranking
        from quantize.abliteration.print_abliteration import print_selection
        from quantize.abliteration.selection import STRENGTHS
        from quantize.abliteration.selection import select as verb

        with steps_bar(quiet=as_json) as report:
            found = verb(
                model,
                measured,
                strengths=tuple(strength) if strength else STRENGTHS,
                variant=variant,
                projected=projected,
                machine=Machine(device, dtype),
                on_progress=report,
            )
        if can_plot():
            plot_ranking(found, measured / "ranking.png")
            if found.projection is not None:
                plot_projection(found.projection, measured / "projection.png")
        if as_json:
            print_json(found.to_dict())
        else:
            print_selection(found)
        raise typer.Exit(0 if found.best else EXIT_NOT_ENOUGH)


@abliterate.command("apply")
def _apply(
    model: ModelArgument,
    measured: MeasuredArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="The EDIT folder to write.")],
    candidate: Annotated[
        str | None, typer.Option(metavar="ID", help="From the ranking; default: the best sound.")
    ] = None,
    keep_norms: Annotated[
        bool, typer.Option("--keep-norms", help="Keep the norm of every column.")
    ] = False,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Edit the embedding too (single directions).")
    ] = False,
    layer_strength: Annotated[
        list[str] | None, typer.Option(metavar="FIRST-LAST=S", help="Strength of some layers.")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a chosen direction as EDIT, for quantize --abliterate EDIT; no model is changed."""
    with _errors():
        from convert.terminal import print_json
        from quantize.abliteration.apply import apply as verb
        from quantize.abliteration.print_abliteration import print_applied

        applied = verb(
            model,
            measured,
            out,
            candidate=candidate,
            keep_norms=keep_norms,
            embeddings=embeddings,
            layer_strengths=layer_strength or (),
            force=force,
        )
        if as_json:
            print_json(
                {"schema_version": 1, "sha256": applied.edit.sha256, **asdict(applied.chosen)}
            )
        else:
            print_applied(applied)


@abliterate.command("verify")
def _verify_abliteration(
    model: ModelArgument,
    edit: Annotated[Path, typer.Argument(metavar="EDIT", help="The folder that apply wrote.")],
    pair: Annotated[
        list[str],
        typer.Option(metavar="UNEDITED,EDITED", help="Two artifacts of one type; repeatable."),
    ],
    refused: Annotated[
        Path, typer.Option(help="JSONL of prompts that were refused, with their right answers.")
    ],
    harmless: Annotated[Path, typer.Option(help="JSONL of other prompts.")],
    suite: Annotated[
        Path | None, typer.Option(help="JSONL file or folder with tool calls: verify's own checks.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many prompts of the suite.")] = None,
    control: Annotated[
        list[Path] | None, typer.Option(help="Artifact edited along random directions.")
    ] = None,
    measured: Annotated[
        Path | None, typer.Option(help="Folder of measure and select: plots for the report.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for report, card text and plot.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show that refusals are gone, the edit is whole, and nothing else was lost."""
    with _errors():
        from convert.progress import steps_bar
        from convert.terminal import print_json
        from verify.abliteration.gate import read_pairs, verify_abliteration
        from verify.abliteration.print_gate import print_gate
        from verify.abliteration.write import read_found, write_gate
        from verify.report.write import prepare_folder

        if out is not None:
            prepare_folder(out)
        found = read_found(measured, edit) if measured is not None else None
        with steps_bar(quiet=as_json) as report_progress:
            report = verify_abliteration(
                model,
                edit,
                read_pairs(pair),
                refused,
                harmless,
                suite=suite,
                limit=limit,
                controls=control or (),
                on_progress=report_progress,
            )
        if out is not None:
            write_gate(report, out, found)
        if as_json:
            print_json(report.to_dict())
        else:
            print_gate(report)
        raise typer.Exit(report.exit_code)


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


def _bytes(size: str | None) -> int | None:
    from convert.size import parse_size

    return None if size is None else parse_size(size)


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
