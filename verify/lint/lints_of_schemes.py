"""Lints of how a checkpoint is quantized: what is stored how, and what config.json says.

One row a lint: name, how bad it is, what it means, what to do. Part of the table in `lints.py`.
"""

from __future__ import annotations

from verify.lint.finding import Lint, Severity

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
TABLE = (
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
)
