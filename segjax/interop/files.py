"""Files of weights: a local path or a Hugging Face hub id to {name: array}."""

import contextlib
import dataclasses
import functools
import importlib
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax import layers
from segjax.interop import pickled, safetensors
from segjax.types import HostArray, InputError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # tried in this order
CONFIG = "config.json"  # what timm and smp save beside the weights
_HUB_ID = re.compile(r"(?:hf-hub:|hf://)?(?P<id>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+))?(?::(?P<file>[\w./-]+))?")
_NESTED = ("state_dict", "model_state_dict", "model")  # where training scripts put a model's tensors


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a file holds.

    Attributes:
        arrays: {name: array}.
        metadata: of a safetensors header.
        config: of the config.json beside the file, {} if there is none.
        path: of the file that was read.
    """

    arrays: dict[str, HostArray]
    metadata: Mapping[str, str]
    config: Mapping[str, Any]
    path: pathlib.Path


def read(where: str | os.PathLike) -> Weights:
    """Reads a file of weights; its kind is told by its first bytes.

    Args:
        where: a path, or a hub id: "timm/resnet18.a1_in1k", also with "hf-hub:" before it, "@REVISION" and ":FILE"
            after it. Ids need the package huggingface_hub (``pip install 'segjax[hub]'``), whose cache is looked at
            first and is all that is looked at with HF_HUB_OFFLINE=1.
    Returns:
        the arrays by name; a training script's {"state_dict": ...} is opened, and "module." (of DataParallel) dropped.
    Raises:
        InputError: no such file or id, a damaged file, or one that holds anything but tensors.
    """
    path = locate(where)
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        arrays, metadata = safetensors.read(path)
    else:
        arrays, metadata = _state_dict(path, pickled.read(path)), {}
    if arrays and all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): value for name, value in arrays.items()}
    return Weights(arrays, metadata, _config(path.with_name(CONFIG)), path)


def locate(where: str | os.PathLike) -> pathlib.Path:
    """Returns the path of a local file, or of the cached copy of a hub id's; see ``read``.

    Raises:
        InputError: there is none.
    """
    path = pathlib.Path(where)
    if path.is_file():
        return path
    found = _HUB_ID.fullmatch(os.fspath(where))
    if path.is_dir():
        raise InputError(f"{path} is a folder: expected a file of weights in it, {', '.join(_beside(path)) or 'none'}")
    if found is None or path.suffix in SUFFIXES and not found["file"] and not os.fspath(where).startswith("hf"):
        names = _beside(path.parent)
        hint = f"{layers.nearest(path.name, names)}; weights there: {', '.join(names[:12]) or 'none'}"
        raise InputError(f"there is no file {path}{hint if path.parent.is_dir() else f': no folder {path.parent}'}")
    return _download(found["id"], found["revision"], found["file"])


def _download(repository: str, revision: str | None, file: str | None) -> pathlib.Path:
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise InputError(
            f"there is no file {repository}, and as an id of the Hugging Face hub it needs the package "
            "huggingface_hub: pip install 'segjax[hub]', or download the file and give its path"
        ) from error
    errors: list[Exception] = []
    for local in (True, False):  # what is cached needs no network
        for name in (file,) if file else HUB_FILES:
            get = functools.partial(hub.hf_hub_download, repository, revision=revision, local_files_only=local)
            try:
                path = get(name)
            except Exception as error:  # of the network, and the hub's own kinds
                errors.append(error)
                if not local and type(error).__name__ == "LocalEntryNotFoundError":  # no network: it has been retried
                    break
                continue
            with contextlib.suppress(Exception):  # not every repository has one; it comes to lie beside the weights
                get(CONFIG)
            return pathlib.Path(path)
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    kind = "is not in the cache, and HF_HUB_OFFLINE allows no download" if offline else "cannot be downloaded"
    last = (str(errors[-1]).strip() or type(errors[-1]).__name__).splitlines()[0]
    raise InputError(f"{repository} of the Hugging Face hub {kind}: {last}") from errors[-1]


def _state_dict(path: pathlib.Path, content: Any) -> dict[str, HostArray]:
    for key in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: holds {type(content).__name__}, expected a state dict {{name: tensor}}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, (HostArray, np.generic)):
            raise InputError(f"{path}: {name!r} is {type(value).__name__}, expected tensors by name: a state dict")
    return dict(content)


def _config(path: pathlib.Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _beside(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*") if path.suffix in SUFFIXES)
