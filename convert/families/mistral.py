"""Mistral: OpenHermes 2.5, Hermes 2 Pro Mistral 7B, DeepHermes 24B. Llama's tensors, Llama's rules.

llama.cpp has no architecture of its own for it. The sliding window of the first release is not
written to GGUF, as llama.cpp's converter does not write it.
"""

from dataclasses import replace

from convert.families.llama import LLAMA

MISTRAL = replace(LLAMA, name="mistral", architectures=("MistralForCausalLM",))
