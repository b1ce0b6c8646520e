"""Every lint there is: its name, how bad it is, what it means and what to do about it.

Names are stable: scripts and continuous integration match on them. docs/lint.md shows this table
to readers; a test holds the two against each other, and another shows every lint to fire.
"""

from __future__ import annotations

from verify.lint.finding import Lint, LintFinding, Severity

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
_TABLE = (
    Lint(
        "embedding-quantized",
        ERROR,
        "the embedding is stored in 8 bits or less; vLLM has nowhere to put its scales",
        "quantize again with model.embed_tokens in ignore",
    ),
    Lint(
        "head-quantized",
        ERROR,
        "lm_head is stored in 8 bits or less; most engines cannot load that",
        "quantize again with lm_head in ignore",
    ),
    Lint(
        "norm-quantized",
        ERROR,
        "a norm is stored in 8 bits or less; no engine expects that",
        "quantize again; only matrices of Linear modules are to be quantized",
    ),
    Lint(
        "router-quantized",
        ERROR,
        "the router of a mixture of experts is quantized; vLLM runs it in 16 bits and finds"
        " no weight",
        "quantize again with the routers in ignore",
    ),
    Lint(
        "siblings-differ",
        ERROR,
        "matrices that an engine fuses (q/k/v, gate/up, the experts of a layer) are stored in"
        " different schemes",
        "put all of them, or none, into ignore or one config group",
    ),
    Lint(
        "global-scale-differs",
        WARNING,
        "fused siblings have different global scales; an engine keeps the largest, and the"
        " others' values shift",
        "quantize again with one global scale for q/k/v and one for gate/up",
    ),
    Lint(
        "tensor-scale-differs",
        NOTE,
        "fused siblings have a scale each; vLLM requantizes them to the largest when it loads them",
        "use channel scales (FP8_DYNAMIC) if that second rounding matters",
    ),
    Lint(
        "tensor-parallel-limited",
        WARNING,
        "a tensor-parallel size that the heads allow is refused because of blocks or groups",
        "serve with a size that works, or use channel scales (FP8_DYNAMIC)",
    ),
    Lint(
        "tensor-parallel-impossible",
        ERROR,
        "not even one GPU can load it: a fused matrix ends inside a block",
        "quantize again with channel scales (FP8_DYNAMIC)",
    ),
    Lint(
        "scale-missing",
        ERROR,
        "a quantized weight lacks a tensor it cannot be read without",
        "quantize again; the file was cut or merged by hand",
    ),
    Lint(
        "scale-extra",
        ERROR,
        "a scale belongs to nothing that is quantized",
        "remove it, or restore the quantized weight it came with",
    ),
    Lint(
        "scale-shape",
        ERROR,
        "a scale's shape does not fit its weight and the config's strategy",
        "quantize again, or correct the strategy in quantization_config",
    ),
    Lint(
        "scale-dtype",
        ERROR,
        "a scale's dtype is not the one the format stores",
        "quantize again with a current tool",
    ),
    Lint(
        "scale-not-positive",
        ERROR,
        "a scale is zero or negative",
        "quantize again; the weights of this row or block are lost",
    ),
    Lint(
        "scale-inverse",
        WARNING,
        "the scales are so large that they look like inverses: to be divided by, not"
        " multiplied with",
        "replace each scale by its reciprocal",
    ),
    Lint(
        "kv-scales-missing",
        ERROR,
        "config.json promises scales of the KV cache that the files do not hold; vLLM uses 1.0",
        "calibrate the KV cache, or set kv_cache_scheme to null",
    ),
    Lint(
        "kv-scales-all-one",
        WARNING,
        "every scale of the KV cache is 1.0: it was never calibrated",
        "calibrate the KV cache, or set kv_cache_scheme to null",
    ),
    Lint(
        "quantization-config-missing",
        ERROR,
        "tensors are quantized and config.json does not say so: it loads, and answers nonsense",
        "restore quantization_config; a run that was killed leaves this",
    ),
    Lint(
        "quantization-config-unused",
        ERROR,
        "config.json says quantized, and no tensor is",
        "remove quantization_config, or publish the quantized weights",
    ),
    Lint(
        "quantization-not-understood",
        WARNING,
        "the quantization is of a kind that this lint does not know; its tensors were not checked",
        "check it with the engine it was made for",
    ),
    Lint(
        "module-not-quantized",
        ERROR,
        "config.json says that a module is quantized; it is stored in 16 bits",
        "add it to ignore",
    ),
    Lint(
        "module-not-in-config",
        ERROR,
        "a module is quantized and config.json says it is not",
        "remove it from ignore, or quantize again",
    ),
    Lint(
        "weight-dtype",
        ERROR,
        "a quantized weight's dtype is not the one its format stores",
        "quantize again, or correct format in quantization_config",
    ),
    Lint(
        "tensor-shape",
        ERROR,
        "a tensor's shape is not what config.json asks for",
        "restore the config.json the weights came with",
    ),
    Lint(
        "dtype-differs",
        WARNING,
        "the unquantized tensors are not of the dtype that config.json names",
        "correct torch_dtype (or dtype) in config.json",
    ),
    Lint(
        "model-not-understood",
        NOTE,
        "the architecture is not known here; names and shapes of its tensors were not checked",
        "check it with the engine it was made for",
    ),
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
LINTS = {lint.name: lint for lint in _TABLE}
"""By name, in the order in which they are reported."""


def finding(name: str, subject: str, found: str, expected: str) -> LintFinding:
    """A finding of the lint `name`; how bad it is and what to do comes from the table."""
    lint = LINTS[name]
    return LintFinding(name, lint.severity, subject, found, expected, lint.remedy)
