"""What happens inside a model: a Hugging Face checkpoint run layer by layer, and watched.

`run_layers` takes batches of token ids through a checkpoint with one decoder layer in memory at a
time: a layer is loaded, every batch goes through it, and it is dropped, so that a 405B model needs
one layer and the hidden states of the prompts. Observers see what enters each layer and each
matrix, and may put something else in its place.

The layers are transformers' own classes and so are masks and rotary embeddings: this package is
`quantize`'s one door to torch and transformers, and nothing imports it before a verb needs it.
"""

from convert.workers import let_openmp_sleep

let_openmp_sleep()  # before torch is loaded, so before the imports below

# ruff: noqa: E402
from quantize.activations.batch import Batch, padded_batches
from quantize.activations.observer import Observer
from quantize.activations.run import FinalStates, Start, run_layers

__all__ = ["Batch", "FinalStates", "Observer", "Start", "padded_batches", "run_layers"]
