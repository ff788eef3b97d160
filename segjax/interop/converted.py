"""Weights in our names and layouts, with what they are and how their images were prepared: one .safetensors file.

``python -m segjax.convert`` writes such files; ``config.model.pretrained`` names one, or a published file to be read
as one on the spot: "torchvision:resnet50:resnet50.pth", "smp:Unet,encoder_name=resnet34:unet.safetensors".
"""

import ast
import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import flax.traverse_util

from segjax import layers, models
from segjax.interop import files, preprocessing, safetensors, smp, torch
from segjax.interop.preprocessing import Preprocessing
from segjax.types import InputError, Variables

FORMAT = "segjax 1"
_NOT_OPTIONS = ("parent", "name", "axis_name", "dtype")


@dataclasses.dataclass(frozen=True)
class Converted:
    """A model with its weights.

    Attributes:
        module: the model.
        variables: {"params", "batch_stats"}, float32 on the host.
        preprocessing: of the images it was trained on.
        source: "torchvision", "smp" or "timm".
        name: of the model there.
        options: of the model there.
    """

    module: layers.Network
    variables: Variables
    preprocessing: Preprocessing
    source: str
    name: str
    options: Mapping[str, Any]

    @property
    def model(self) -> str:
        """Our name of the model, a file of ``segjax/models``."""
        return type(self.module).__module__.rpartition(".")[2]


def from_torch(weights: files.Weights, *, source: str, model: str, options: Mapping[str, Any]) -> Converted:
    """Turns a file of published weights into ours; arguments and errors as in ``torch.load``."""
    if weights.metadata.get("format") == FORMAT:
        raise InputError(f"{weights.path} is converted already: it is used by its path alone, and --to-torch undoes it")
    module, variables = torch.load(weights.arrays, source=source, model=model, **options)
    prepared = smp.prepared(options) if source == "smp" else torch.find(source, model).preprocessing
    if source == "timm":
        prepared = preprocessing.of_timm(weights.config, prepared, str(weights.path))
    return Converted(module, variables, prepared, source, model, dict(options))


def write(path: str | os.PathLike, converted: Converted) -> None:
    """Writes a file of ours.

    Raises:
        InputError: it cannot be written there.
    """
    module = converted.module
    fields = [field.name for field in dataclasses.fields(module) if field.name not in _NOT_OPTIONS]
    metadata = {
        "format": FORMAT,
        "model": converted.model,
        "options": json.dumps({name: getattr(module, name) for name in fields}),
        "source": converted.source,
        "source_model": converted.name,
        "source_options": json.dumps(converted.options),
        "preprocessing": converted.preprocessing.json(),
    }
    safetensors.write(path, flax.traverse_util.flatten_dict(dict(converted.variables), sep="/"), metadata)


def from_file(weights: files.Weights) -> Converted:
    """Reads what ``write`` wrote.

    Raises:
        InputError: a file of another kind, or one whose model this version does not build.
    """
    metadata = weights.metadata
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{weights.path} is not a converted file ({FORMAT!r}): python -m segjax.convert makes one of published "
            "weights, or say what they are: SOURCE:MODEL:FILE, such as torchvision:resnet50:FILE"
        )
    try:
        options, theirs = json.loads(metadata["options"]), json.loads(metadata["source_options"])
        names = metadata["model"], metadata["source"], metadata["source_model"]
        text = metadata["preprocessing"]
    except (KeyError, ValueError) as error:
        raise InputError(f"{weights.path}: a damaged header: {error!r}") from error
    module = models.build(names[0], **options)
    variables = {"batch_stats": {}, **flax.traverse_util.unflatten_dict(weights.arrays, sep="/")}
    prepared = preprocessing.from_json(text, str(weights.path))
    return Converted(module, variables, prepared, names[1], names[2], theirs)


def read(where: str) -> Converted:
    """Reads weights by what a config or a command line says of them.

    Args:
        where: a converted file (path or hub id), or "SOURCE:MODEL[,OPTION=VALUE]*:FILE" of published ones.
    Raises:
        InputError: whatever is wrong with the text or the file.
    """
    source, _, rest = where.partition(":")
    if source not in torch.known() or ":" not in rest:
        return from_file(files.read(where))
    (model, *pairs), file = rest.partition(":")[0].split(","), rest.partition(":")[2]
    torch.find(source, model)  # before a file is read
    options = dict(option(pair) for pair in pairs)
    return from_torch(files.read(file), source=source, model=model, options=options)


def option(text: str) -> tuple[str, Any]:
    """Returns (name, value) of "encoder_name=resnet34": a Python literal where it is one, else text.

    Raises:
        InputError: no "=".
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"option {text!r}: expected NAME=VALUE, such as encoder_name=resnet34")
    try:
        return name.strip(), ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name.strip(), value.strip()
