"""Ways to break an artifact: a GGUF written anew with something wrong in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Edit = Callable[[dict[str, Any]], None]


def rewrite_gguf(
    source: Path,
    target: Path,
    *,
    fields: Edit | None = None,
    tensors: Edit | None = None,
) -> Path:
    """Copy a GGUF through gguf-py; `fields` edits {key: value}, `tensors` {name: (data, type)}."""
    reader = gguf.GGUFReader(source)
    kinds = {key: field.types for key, field in reader.fields.items()}
    values = {key: field.contents() for key, field in reader.fields.items()}
    stored = {t.name: (np.array(t.data), t.tensor_type) for t in reader.tensors}
    if fields is not None:
        fields(values)
    if tensors is not None:
        tensors(stored)
    writer = gguf.GGUFWriter(target, values["general.architecture"])
    for key, value in values.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = gguf.GGUFValueType.get_type(value)
        if key.endswith("_id"):
            kind = gguf.GGUFValueType.UINT32
        types = kinds.get(key, [kind])
        if (kind == gguf.GGUFValueType.ARRAY) != (types[0] == gguf.GGUFValueType.ARRAY):
            types = [kind]  # a number became one for each layer
        writer.add_key_value(key, value, types[0], types[-1] if len(types) > 1 else None)
    for name, (data, kind) in stored.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
