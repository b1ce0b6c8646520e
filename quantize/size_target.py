"""The best mixture that fits a size: per-tensor errors measured on samples, then one optimisation.

For every matrix and every candidate type the error is the squared error of the stored values
relative to the values,

    e = sum w (W - Q)^2 / sum w W^2        w: the imatrix's column weights, or 1

over rows drawn with a fixed seed and quantized as the run would quantize them. What is minimised is
the sum of e over all matrices, each counted once whatever its size: to first order the loss of a
model grows with the sum over its layers of just this ratio (Malinovskii et al., "Pushing the Limits
of Large Language Model Quantization via the Linearity Theorem", arXiv 2411.17525), so small
matrices deserve more bits than large ones. A tied embedding is used twice and counts twice.

In: the outputs and a number of bytes for their data, padding included. Out: one type a matrix. The
choice is a multiple-choice knapsack, solved as an integer program (HiGHS, through scipy) to within
one part in 10,000 of the optimum. It is the one plan that reads weights: about a quarter of
a million values a matrix.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from convert.cast import Cast
from convert.checkpoint import Checkpoint
from convert.errors import InputError
from convert.gguf import GGML_TYPES, pad
from convert.gguf_plan import GGUFOutput
from convert.model import FLOAT_FILE_TYPES
from convert.output_tensor import Importance, OutputTensor, Scheme
from convert.tensor import Block
from convert.workers import Progress, cores
from quantize.choice import NO_OVERRIDES, Choice, Overrides, fit, needs_importance, override
from quantize.ggml import Ggml

CANDIDATES = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
CANDIDATES_WITH_IMPORTANCE = ("IQ2_XXS", "IQ2_S", "IQ3_XXS", "IQ3_S")
SIZE_PREFIXES = ("FIT_", "BPW_")
"""How the names of size targets begin: bytes, bits per weight."""
SEED = 20_261_121
SAMPLE_VALUES = 1 << 18
LEAST_ROWS = 16
_GAP = 1e-4
_UNITS = tuple(
    (f"{p}{b}", k**i) for b, k in (("B", 1000), ("IB", 1024)) for i, p in enumerate("KMGT", 1)
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to store a matrix: its bytes in the file, and its error (see above) times its use."""

    choice: Choice
    size_bytes: int
    error: float


@dataclass(frozen=True, slots=True)
class SizeTarget:
    """What the user asked for; exactly one is given."""

    size_bytes: int | None = None
    bits_per_weight: float | None = None

    @property
    def name(self) -> str:
        """The target's name: `FIT_5_2GB`, `BPW_4_6`."""
        if self.size_bytes is None:
            return f"{SIZE_PREFIXES[1]}{self.bits_per_weight:g}".replace(".", "_")
        exact = [f"{self.size_bytes}B"]
        for unit, factor in _UNITS:
            number = f"{self.size_bytes / factor:.3f}".rstrip("0").rstrip(".")
            if 1 <= float(number) < 1000 and round(float(number) * factor) == self.size_bytes:
                exact.append(f"{number}{unit}")
        return f"{SIZE_PREFIXES[0]}{min(exact, key=len)}".replace(".", "_")

    def limit_bytes(self, parameters: int) -> int:
        """The largest file allowed, for a model of so many parameters."""
        if self.size_bytes is not None:
            return self.size_bytes
        assert self.bits_per_weight is not None
        return int(self.bits_per_weight * parameters / 8)


def measure_candidates(
    checkpoint: Checkpoint,
    outputs: Sequence[GGUFOutput],
    importance: Mapping[str, Importance],
    overrides: Overrides = NO_OVERRIDES,
    *,
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> dict[str, tuple[Candidate, ...]]:
    """By name, what each matrix could be stored as, smallest first; an override leaves one."""
    matrices = [output for output in outputs if output.is_matrix]
    tied = not any(output.role == "output" for output in matrices)
    checkpoint.open_shards()

    def measure(output: GGUFOutput) -> tuple[Candidate, ...]:
        uses = 2 if tied and output.role == "token_embd" else 1
        tensor = replace(output.tensor, importance=importance.get(output.tensor.name))
        forced = override(overrides, output)
        choices = [forced] if forced else _allowed(output, tensor.importance)
        samples = _sample(checkpoint, tensor)
        return tuple(
            Candidate(choice, _stored_bytes(tensor, choice), uses * _error(samples, tensor, choice))
            for choice in choices
        )

    found: dict[str, tuple[Candidate, ...]] = {}
    with ThreadPoolExecutor(threads or cores()) as pool:
        for output, candidates in zip(matrices, pool.map(measure, matrices), strict=True):
            found[output.tensor.name] = candidates
            if on_progress:
                on_progress(len(found), len(matrices), f"measuring {output.tensor.name}")
    return found


def _allowed(output: GGUFOutput, importance: Importance | None) -> list[Choice]:
    """Distinct types for this matrix, smallest first; without an imatrix, those that need none."""
    names = CANDIDATES if importance is None else (*CANDIDATES, *CANDIDATES_WITH_IMPORTANCE)
    fitted = {
        choice.ggml_type: choice for choice in (fit(n, output.tensor.shape[-1]) for n in names)
    }
    usable = [
        Choice(name)
        for name in fitted
        if importance is not None or not needs_importance(output.role, name)
    ]
    return sorted(usable, key=lambda choice: _stored_bytes(output.tensor, choice))


def scheme_of(tensor: OutputTensor, choice: Choice) -> Scheme:
    """The scheme of a choice; None as a type keeps the source's dtype."""
    ggml_type = choice.ggml_type or tensor.dtype
    return Cast(ggml_type) if ggml_type in FLOAT_FILE_TYPES else Ggml(ggml_type)


def _stored_bytes(tensor: OutputTensor, choice: Choice) -> int:
    kind = GGML_TYPES[choice.ggml_type or tensor.dtype]
    return pad(tensor.rows * tensor.shape[-1] // kind.block * kind.block_bytes)


def _sample(checkpoint: Checkpoint, tensor: OutputTensor) -> list[tuple[Block, Importance | None]]:
    """Rows drawn without replacement, as one block for each matrix that has its own importance."""
    rows = _sample_rows(tensor)
    matrices = 1 if tensor.importance is None else len(tensor.importance.values)
    samples = []
    for matrix in range(matrices):
        first, last = (tensor.rows * i // matrices for i in (matrix, matrix + 1))
        read = [_read_row(checkpoint, tensor, row) for row in rows if first <= row < last]
        if read:
            raw = np.concatenate([block.raw for block in read])
            block = Block(tensor.name, tensor.dtype, first, raw)
            samples.append((block, tensor.importance_at(first)))
    return samples


def _sample_rows(tensor: OutputTensor) -> list[int]:
    """Rows of the sample, the same for the same name and shape."""
    wanted = max(LEAST_ROWS, SAMPLE_VALUES // tensor.shape[-1])
    if wanted >= tensor.rows:
        return list(range(tensor.rows))
    generator = np.random.default_rng([SEED, zlib.crc32(tensor.name.encode())])
    return sorted(int(row) for row in generator.choice(tensor.rows, wanted, replace=False))


def _read_row(checkpoint: Checkpoint, tensor: OutputTensor, row: int) -> Block:
    """One row of the concatenated sources; their order matters to no row's error."""
    for source in tensor.sources:
        if row < source.stop - source.start:
            block = checkpoint.read_rows(source.tensor, source.start + row, source.start + row + 1)
            block.check_finite()
            return block
        row -= source.stop - source.start
    raise AssertionError((tensor.name, row))


def _error(
    samples: Sequence[tuple[Block, Importance | None]], tensor: OutputTensor, choice: Choice
) -> float:
    """Relative squared error over the sampled rows, in float64; 0 for rows of zeros."""
    scheme = scheme_of(tensor, choice)
    lost = total = 0.0
    for block, importance in samples:
        values = block.float32().astype(np.float64)
        encoded = scheme.encode(block, None, importance).parts
        stored = [part.reshape(-1).view(np.uint8) for part in encoded]
        weights = 1.0 if importance is None else importance.values.astype(np.float64)
        lost += float((weights * (values - scheme.decode(stored, values.shape)) ** 2).sum())
        total += float((weights * values**2).sum())
    return lost / total if total else 0.0


def choose_to_fit(
    candidates: Mapping[str, Sequence[Candidate]], limit_bytes: int
) -> dict[str, Candidate]:
    """The candidate of each matrix such that the sum of errors is least within `limit_bytes`.

    Raises InputError where even the smallest types do not fit.
    """
    least = sum(min(c.size_bytes for c in found) for found in candidates.values())
    if least > limit_bytes:
        raise InputError(f"the matrices take at least {least:,} bytes, {limit_bytes:,} are left")
    room = limit_bytes
    while True:  # the solver's tolerance may let the sum of sizes exceed the limit by a little
        chosen = _solve(candidates, room)
        excess = sum(candidate.size_bytes for candidate in chosen.values()) - limit_bytes
        if excess <= 0:
            return chosen
        room -= excess


def _solve(candidates: Mapping[str, Sequence[Candidate]], limit_bytes: int) -> dict[str, Candidate]:
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    flat = [(i, c) for i, found in enumerate(candidates.values()) for c in found]
    owners = np.array([i for i, _ in flat])
    sizes = np.array([c.size_bytes for _, c in flat], dtype=np.float64) / limit_bytes
    one_each = csr_array(
        (np.ones(len(flat)), (owners, np.arange(len(flat)))), shape=(len(candidates), len(flat))
    )
    solved = milp(
        np.array([c.error for _, c in flat]),
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(sizes[None, :], 0, 1)],
        options={"mip_rel_gap": _GAP},
    )
    assert solved.x is not None, solved.message
    taken = {i: c for (i, c), on in zip(flat, solved.x > 0.5, strict=True) if on}
    return {name: taken[i] for i, name in enumerate(candidates)}
