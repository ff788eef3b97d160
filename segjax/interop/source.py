"""What a family file says of published weights: the model they stand for, and how their tensors are named."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from segjax import layers
from segjax.interop.preprocessing import Preprocessing
from segjax.interop.tensors import Rules
from segjax.types import InputError

Shapes = Mapping[str, tuple[int, ...]]  # of a state dict
Options = Mapping[str, Any]  # as the source names them


@dataclasses.dataclass(frozen=True)
class Body:
    """Names of a backbone's tensors.

    Attributes:
        rules: of the backbone's modules.
        head: of the classifier's fully connected layers.
        first: the torch module whose kernel sees the image.
    """

    rules: Rules
    head: Rules
    first: str


@dataclasses.dataclass(frozen=True)
class Source:
    """One published model.

    Attributes:
        build: (shapes of the state dict, **options as the source names them) -> our module.
        rules: (our module, options) -> the rules of all its tensors.
        first: (our module, options) -> the tensor whose axis 1 is the number of the image's channels.
        preprocessing: what these weights expect.
        todays: the name that a tensor of an older file has now.
    """

    build: Callable[..., layers.Network]
    rules: Callable[[layers.Network, Options], Rules]
    first: Callable[[layers.Network, Options], str]
    preprocessing: Preprocessing
    todays: Callable[[str], str] = str


def axis_length(shapes: Shapes, name: str, axis: int = 0) -> int:
    """The length of a tensor's axis: the number of classes, of channels.

    Raises:
        InputError: there is no such tensor, or it has fewer axes.
    """
    if name not in shapes:
        raise InputError(f"tensor {name!r} is missing{layers.nearest(name, list(shapes))}: weights of another model?")
    if len(shapes[name]) <= axis:
        raise InputError(f"tensor {name!r} is {list(shapes[name])}, expected at least {axis + 1} axes")
    return shapes[name][axis]


def agreed(option: str, given: Any, found: Any) -> Any:
    """What the tensors say; an option that is given must say the same.

    Raises:
        InputError: it does not.
    """
    if given is not None and given != found:
        raise InputError(f"{option}={given!r}, but the tensors are those of {option}={found!r}")
    return found
