"""Lints of what lies in a folder: shards and their index, tensors and their values, side files.

One row a lint: name, how bad it is, what it means, what to do. Part of the table in `lints.py`.
"""

from __future__ import annotations

from verify.lint.finding import Lint, Severity

ERROR, WARNING = Severity.ERROR, Severity.WARNING
TABLE = (
    Lint(
        "shard-missing",
        ERROR,
        "the index names a shard that is not there",
        "download or upload the shard again",
    ),
    Lint(
        "shard-unreadable",
        ERROR,
        "a shard is truncated or its header lies",
        "download or upload the shard again",
    ),
    Lint(
        "shard-unlisted",
        WARNING,
        "a safetensors file that the index does not name lies beside the shards; some loaders"
        " read it",
        "remove it",
    ),
    Lint(
        "index-missing",
        ERROR,
        "several shards and no index",
        "write model.safetensors.index.json",
    ),
    Lint(
        "index-wrong",
        ERROR,
        "the index and a shard's header tell different stories",
        "write the index again from the headers",
    ),
    Lint(
        "index-total-size",
        WARNING,
        "the index's total_size is not the sum of the tensors",
        "write the index again from the headers",
    ),
    Lint(
        "tensor-twice",
        ERROR,
        "two shards hold a tensor of the same name",
        "remove the shard that is stale",
    ),
    Lint(
        "tensor-copied",
        WARNING,
        "two matrices that should differ are the same, byte for byte",
        "compare both with the source; a shard may hold another layer's weights",
    ),
    Lint(
        "tensor-missing",
        ERROR,
        "the architecture needs a tensor that is not there; transformers fills it with random"
        " numbers",
        "restore the shard it was in",
    ),
    Lint(
        "tensor-unknown",
        ERROR,
        "the architecture has no tensor of this name; engines stop at it or drop it",
        "remove it, or restore the config.json it came with",
    ),
    Lint(
        "size-off",
        WARNING,
        "the tensors take much more or less than shapes and scheme ask for",
        "look for tensors in a wider dtype than config.json says",
    ),
    Lint(
        "weight-not-finite",
        ERROR,
        "a weight holds NaN or infinity",
        "restore it from the source; a training step diverged or a file is damaged",
    ),
    Lint(
        "scale-not-finite",
        ERROR,
        "a scale is NaN or infinite, and with it the whole row or block",
        "quantize again from finite weights",
    ),
    Lint(
        "file-mode",
        WARNING,
        "other users cannot read the file (safetensors 0.8 writes mode 0600)",
        "chmod 644",
    ),
    Lint(
        "file-stray",
        WARNING,
        "pickled weights lie beside the safetensors: they double the download and unpickling"
        " runs code",
        "remove it",
    ),
    Lint(
        "tokenizer-truncation",
        ERROR,
        "tokenizer.json cuts every prompt: a calibration's setting was saved with it",
        'set "truncation" to null in tokenizer.json',
    ),
    Lint(
        "tokenizer-padding",
        WARNING,
        "tokenizer.json pads every prompt: a calibration's setting was saved with it",
        'set "padding" to null in tokenizer.json',
    ),
    Lint(
        "tokenizer-missing",
        WARNING,
        "there is no tokenizer; llmcompressor's oneshot does not write one",
        "copy the source's tokenizer files",
    ),
)
