"""Reads the tensors of a .pth file without torch, and without running what a pickle asks for.

A .pth file is a zip archive: ``data.pkl`` is a pickle whose tensors refer to storages, the raw files ``data/0``,
``data/1`` ... A pickle may name any function of any installed module and have it called. Here it may name
``OrderedDict``, ``torch.Size``, torch's storage types and the two functions that rebuild a tensor from a storage, for
which there are stand-ins of ours; any other name is refused, and told.

Source: ``torch/serialization.py`` and ``torch/_utils.py``.
"""

import collections
import io
import math
import os
import pathlib
import pickle
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

from segjax.types import HostArray, InputError

STORAGES = {
    "DoubleStorage": np.dtype("f8"),
    "FloatStorage": np.dtype("f4"),
    "HalfStorage": np.dtype("f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("i8"),
    "IntStorage": np.dtype("i4"),
    "ShortStorage": np.dtype("i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
SAVE_AGAIN = "torch.save(torch.load(FILE, weights_only=True), NEW_FILE)"
# What a damaged or hostile pickle makes the unpickler raise.
_ERRORS = (pickle.UnpicklingError, EOFError, IndexError, KeyError, TypeError, AttributeError, ValueError, OverflowError,
           MemoryError, UnicodeError, ImportError, RuntimeError)  # fmt: skip


class _StorageType:
    """Stands for torch.FloatStorage and the like."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype


class _Tensor:
    """Stands for torch._utils._rebuild_tensor_v2: a view of a storage, copied."""

    __slots__ = ()

    def __call__(self, storage: HostArray, offset: int, size: tuple, stride: tuple, *rest: Any) -> HostArray:
        del rest  # requires_grad, hooks
        numbers = (offset, *size, *stride)
        if not isinstance(storage, HostArray) or len(size) != len(stride) or not all(type(n) is int for n in numbers):
            raise ValueError(f"a tensor of size {size} and stride {stride} is not that of a storage")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        count = math.prod(size)
        if min(numbers) < 0 or (count and last >= storage.size) or count > storage.size:
            raise ValueError(
                f"a tensor of size {size}, stride {stride}, offset {offset} exceeds {storage.size} numbers"
            )
        strides = [step * storage.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False).copy()


class _Parameter:
    """Stands for torch._utils._rebuild_parameter: the tensor itself."""

    __slots__ = ()

    def __call__(self, tensor: HostArray, *rest: Any) -> HostArray:
        del rest
        return tensor


class _Size:
    """Stands for torch.Size."""

    __slots__ = ()

    def __call__(self, numbers: Any = ()) -> tuple:
        return tuple(numbers)


ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): _Size(),
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor(),
    ("torch._utils", "_rebuild_parameter"): _Parameter(),
    **{("torch", name): _StorageType(dtype) for name, dtype in STORAGES.items()},
}


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, folder: str, path: pathlib.Path) -> None:
        super().__init__(io.BytesIO(_stored(archive, f"{folder}data.pkl", path)))
        self.archive, self.folder, self.path = archive, folder, path
        self.storages: dict[str, HostArray] = {}
        order = f"{folder}byteorder"
        self.big = order in archive.namelist() and _stored(archive, order, path).strip() == b"big"

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may name."""
        if (module, name) not in ADMITTED:
            raise InputError(
                f"{self.path}: holds {module}.{name}, which is not a tensor; it was not run. Save the state dict "
                "alone: torch.save(model.state_dict(), FILE)"
            )
        return ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> HostArray:
        """A storage: ("storage", its type, the name of its file, device, count)."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or not isinstance(pid[1], _StorageType):
            raise InputError(f"{self.path}: refers to {pid!r}, expected a storage of tensors")
        _, kind, key, _, count = pid
        if key not in self.storages:
            dtype = kind.dtype.newbyteorder(">" if self.big else "<") if kind.dtype.kind in "fiu" else kind.dtype
            data = _stored(self.archive, f"{self.folder}data/{key}", self.path)
            if len(data) < count * dtype.itemsize:
                raise InputError(f"{self.path}: storage {key} has {len(data)} bytes, expected {count} of {dtype}")
            self.storages[key] = np.frombuffer(data, dtype, count)
        return self.storages[key]


def read(path: str | os.PathLike) -> Any:
    """Reads what ``torch.save`` wrote, tensors as NumPy arrays.

    Args:
        path: of a .pth, .pt or .bin file, of torch 1.6 or newer.
    Returns:
        dicts, lists, numbers, texts and arrays, nested as they were saved.
    Raises:
        InputError: the format of torch before 1.6, a damaged file, or one that holds anything else.
    """
    path = pathlib.Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise InputError(f"{path}: a zip archive with {len(pickles)} data.pkl, expected the one of torch.save")
            return _Reader(archive, pickles[0].removesuffix("data.pkl"), path).load()
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{path}: not the zip archive of torch 1.6 or newer ({error}). An older format is a bare pickle and is not "
            f"read; in PyTorch: {SAVE_AGAIN}"
        ) from error
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    except _ERRORS as error:
        raise InputError(f"{path}: a damaged pickle: {type(error).__name__}: {error}") from error


def _stored(archive: zipfile.ZipFile, name: str, path: pathlib.Path) -> bytes:
    """A member's bytes; torch never compresses, so that a small file cannot become a large one."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise InputError(f"{path}: {name} is compressed, which torch.save does not do; in PyTorch: {SAVE_AGAIN}")
    return archive.read(info)
