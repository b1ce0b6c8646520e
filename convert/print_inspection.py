"""Print what a model is: one row a fact."""

from __future__ import annotations

from convert.inspection import Inspection
from convert.terminal import console, plain_table, printable, readable_size


def print_inspection(found: Inspection) -> None:
    """Print one row a fact."""
    from rich.markup import escape

    table = plain_table("", "")
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
        table.add_row(f"[bold]{key}", escape(printable(value)))
    for stored in found.stored:
        size = readable_size(stored.size_bytes)
        row = f"{stored.tensors} tensors, {stored.values:,} values, {size}"
        table.add_row(f"[bold]stored as {stored.type}", row)
    console().print(table)
