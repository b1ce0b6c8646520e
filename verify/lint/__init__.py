"""Lints of a quantized checkpoint folder: what is wrong with it, said by name, from its files."""
