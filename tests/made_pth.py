"""Writes .pth files as torch.save does, without torch: a zip of one pickle and the storages it refers to."""

import collections
import io
import pickle
import sys
import types
import zipfile

import numpy as np

KINDS = {"f4": "FloatStorage", "f8": "DoubleStorage", "f2": "HalfStorage", "i8": "LongStorage", "u1": "ByteStorage"}


def _modules():
    """Stand-ins for the modules whose names a pickle of tensors holds."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in KINDS.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2(*args):
        raise AssertionError("nothing is rebuilt while writing")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    return {"torch": torch, "torch._utils": utils}


class _Storage:
    def __init__(self, kind, key, count):
        self.pid = ("storage", kind, key, "cpu", count)


class _View:
    def __init__(self, rebuild, storage, array):
        self.rebuild, self.storage, self.shape = rebuild, storage, array.shape
        self.strides = tuple(n // array.itemsize for n in array.strides)

    def __reduce__(self):
        return self.rebuild, (self.storage, 0, self.shape, self.strides, False, collections.OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, _Storage) else None


def write(path, content, *, compression=zipfile.ZIP_STORED, cut=0):
    """Saves a dict whose arrays become tensors; ``cut`` bytes are taken off each storage."""
    modules = _modules()
    arrays, before = [], {name: sys.modules.get(name) for name in modules}

    def converted(value):
        if isinstance(value, dict):
            return collections.OrderedDict((key, converted(inner)) for key, inner in value.items())
        if not isinstance(value, np.ndarray):
            return value
        value = np.asarray(value, order="C")
        kind = getattr(modules["torch"], KINDS[value.dtype.str[1:]])
        arrays.append(value)
        return _View(
            modules["torch._utils"]._rebuild_tensor_v2, _Storage(kind, str(len(arrays) - 1), value.size), value
        )

    stream = io.BytesIO()
    sys.modules.update(modules)
    try:
        _Pickler(stream, protocol=2).dump(converted(content))
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        for number, value in enumerate(arrays):
            archive.writestr(f"archive/data/{number}", value.tobytes()[: value.nbytes - cut])
        archive.writestr("archive/version", b"3\n")
