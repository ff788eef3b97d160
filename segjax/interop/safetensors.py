"""The safetensors format: a JSON header that names every array, then their bytes; nothing in it can be executed.

    u64 N, little-endian | N bytes of JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}} | bytes

Read and written here, since the format is smaller than a dependency, and NumPy alone has no bfloat16.

Source: https://huggingface.co/docs/safetensors (format), https://github.com/huggingface/safetensors.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from segjax.types import HostArray, InputError

METADATA = "__metadata__"
LONGEST_HEADER = 100_000_000  # bytes, as the reference implementation
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read(path: str | os.PathLike) -> tuple[dict[str, HostArray], dict[str, str]]:
    """Reads a file.

    Args:
        path: of a .safetensors file.
    Returns:
        ({name: array}, the header's metadata); the arrays are read-only views of the mapped file.
    Raises:
        InputError: not such a file, a damaged one, or a dtype that is not in the table above.
    """
    path = pathlib.Path(path)
    try:
        data = np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    header, body = _header(path, data)
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict):
        raise InputError(f"{path}: {METADATA} is {type(metadata).__name__}, expected an object of texts")
    arrays, ends = {}, []
    for name, entry in header.items():
        arrays[name], span = _array(path, name, entry, body)
        ends.append(span)
    end = 0
    for begin, stop in sorted(ends):
        if begin != end:
            raise InputError(f"{path}: damaged: its arrays overlap or leave a gap at byte {end} of {body.size}")
        end = stop
    if end != body.size:
        raise InputError(f"{path}: {body.size} bytes of arrays, its header describes {end}: cut off while copying?")
    return arrays, {str(key): str(value) for key, value in metadata.items()}


def write(path: str | os.PathLike, arrays: Mapping[str, HostArray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a file, in one step.

    Args:
        path: where.
        arrays: of a dtype in the table above.
        metadata: texts for the header.
    Raises:
        InputError: it cannot be written there.
        ValueError: a dtype that the format does not have.
    """
    path = pathlib.Path(path)
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    values, end = [], 0
    for name, value in arrays.items():
        value = np.asarray(value)
        little = value.dtype.newbyteorder("<")
        if little not in _NAMES:
            raise ValueError(f"array {name!r} is {value.dtype}: expected one of {', '.join(map(str, _NAMES))}")
        value = np.asarray(value, little, order="C")
        header[name] = {
            "dtype": _NAMES[little],
            "shape": list(value.shape),
            "data_offsets": [end, end + value.nbytes],
        }
        values.append(value)
        end += value.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the arrays are aligned
    temporary = path.with_name(path.name + ".part")
    try:
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for value in values:
                file.write(value.tobytes())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error}") from error


def _header(path: pathlib.Path, data: HostArray) -> tuple[dict[str, Any], HostArray]:
    length = int.from_bytes(data[:8].tobytes(), "little")
    if data.size < 8 or length > min(LONGEST_HEADER, data.size - 8):
        raise InputError(f"{path}: not a whole safetensors file: {data.size} bytes, a header of {length}")
    try:
        header = json.loads(data[8 : 8 + length].tobytes(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: the header is not the JSON of a safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise InputError(f"{path}: the header is {type(header).__name__}, expected an object")
    return header, data[8 + length :]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _array(path: pathlib.Path, name: str, entry: Any, body: HostArray) -> tuple[HostArray, tuple[int, int]]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"{path}: {name!r} is not described as an array: {entry}") from error
    if dtype not in DTYPES:
        raise InputError(f"{path}: {name!r} is of dtype {dtype!r}, which is not read: expected {', '.join(DTYPES)}")
    if not whole or end > body.size or end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise InputError(f"{path}: {name!r}, {dtype} {shape}, does not fill bytes {begin} to {end} of {body.size}")
    return body[begin:end].view(DTYPES[dtype]).reshape(shape), (begin, end)
