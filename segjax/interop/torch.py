"""A torch state dict as one of our models and its variables, and the way back; no torch is needed.

    module, variables = load(files.read("resnet50.pth").arrays, source="torchvision", model="resnet50")
    logits = module.apply(variables, image)["logits"]
    state_dict = to_torch(module, variables, source="torchvision", model="resnet50")

Names and options are the source's: load(..., source="smp", model="Unet", encoder_name="vgg16_bn").
"""

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from segjax import layers
from segjax.interop import classifiers, mask_rcnn, smp, torchvision
from segjax.interop.source import Source, axis_length
from segjax.interop.tensors import COUNTER, Tensor, tensors
from segjax.types import HostArray, InputError, Variables

StateDict = Mapping[str, HostArray]
FAMILIES = (classifiers, torchvision, mask_rcnn, smp)
_IMAGE = (1, 64, 64)  # of the shapes that are asked for; the variables of no model depend on it
# Fields no logit depends on, but in training.
_INCIDENTAL = (
    *("parent", "name", "dtype", "axis_name", "dropout", "aspp_dropout", "image_dropout"),
    *("backbone_norm", "frozen_stages", "rpn_samples", "rpn_positive", "box_samples", "box_positive"),
)


def known() -> dict[str, dict[str, Source]]:
    """Returns {source: {model: what it is}} of everything that can be loaded."""
    found: dict[str, dict[str, Source]] = {}
    for family in FAMILIES:
        for source, models in family.SOURCES.items():
            found.setdefault(source, {}).update(models)
    return found


def find(source: str, model: str) -> Source:
    """Returns what is known of a published model.

    Args:
        source: "torchvision", "smp" or "timm".
        model: as the source names it; timm's tag after a dot ("resnet50.a1_in1k") is passed over.
    Raises:
        InputError: an unknown source or model; the message has the nearest and lists the known ones.
    """
    sources = known()
    if source not in sources:
        raise InputError(f"no source {source!r}{layers.nearest(source, list(sources))}; known are {', '.join(sources)}")
    name = model.partition(".")[0] if source == "timm" else model
    if name not in sources[source]:
        names = list(sources[source])
        raise InputError(f"no model {model!r} of {source}{layers.nearest(name, names)}; known are {', '.join(names)}")
    return sources[source][name]


def load(state_dict: StateDict, *, source: str, model: str, **options: Any) -> tuple[layers.Network, dict[str, Any]]:
    """Turns published weights into a model and its variables: every tensor used once, every leaf filled.

    Args:
        state_dict: {name: array} in torch's names and layouts; float16 and bfloat16 become float32.
        source: "torchvision", "smp" or "timm".
        model: as the source names it: "resnet50", "deeplabv3_resnet50", "DeepLabV3Plus".
        **options: as the source names them, ``encoder_name="resnet34"``; left out ones take the source's defaults.
            The numbers of classes and of input channels and the auxiliary head are read off the tensors.
    Returns:
        (module, {"params", "batch_stats"} as NumPy arrays, float32).
    Raises:
        InputError: an unknown source, model or option; a tensor that is missing, unknown or of another shape.
    """
    module, found = match(state_dict, source=source, model=model, **options)
    state_dict = _todays(state_dict, find(source, model))
    leaves = {tensor.path: tensor.ours(np.asarray(state_dict[tensor.name])) for tensor in found}
    return module, {"batch_stats": {}, **flax.traverse_util.unflatten_dict(leaves, sep="/")}


def match(state_dict: StateDict, *, source: str, model: str, **options: Any) -> tuple[layers.Network, list[Tensor]]:
    """Pairs every tensor with a leaf without converting any; arguments and errors as in ``load``.

    Returns:
        (module, tensors in the order of the state dict).
    """
    published = find(source, model)
    state_dict = _todays(state_dict, published)
    shapes = {name: tuple(np.shape(value)) for name, value in state_dict.items()}
    module = _build(published, f"{model!r} of {source}", shapes, options)
    channels = axis_length(shapes, published.first(module, options), 1)
    expected = tensors(_shapes(module, channels), published.rules(module, options))
    given = [name for name in shapes if name.rpartition(".")[2] != COUNTER]
    _check_names(f"{source} {model}", given, list(expected))
    return module, [expected[name] for name in given]


def report(state_dict: StateDict, *, source: str, model: str, **options: Any) -> str:
    """Returns a line per tensor: torch's name, its shape, the layout rule, our path; arguments as in ``load``."""
    _, found = match(state_dict, source=source, model=model, **options)
    rows = [(tensor.name, str(list(tensor.shape)), tensor.layout, tensor.path) for tensor in found]
    rows += [(name, "", "not used: a counter of batches", "") for name in state_dict if name.endswith(f".{COUNTER}")]
    header = ("tensor", "shape", "layout", "leaf")
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (header, *rows)]
    numbers = sum(math.prod(tensor.shape) for tensor in found if tensor.path.startswith("params/"))
    lines.append(f"{len(found)} tensors, {numbers:,} parameters: each used once, every leaf filled")
    return "\n".join(lines)


def to_torch(
    module: layers.Network, variables: Variables, *, source: str, model: str, **options: Any
) -> dict[str, HostArray]:
    """Returns the state dict that the source's model loads: the inverse of ``load``.

    Args:
        module: the model, one that ``load`` with these options builds.
        variables: {"params", "batch_stats"}.
        source, model, **options: as in ``load``.
    Returns:
        {torch's name: float32 array}; the counters of torch's batch norms are int64 0.
    Raises:
        InputError: the module is not that model: its options would be lost and the numbers others.
    """
    published = find(source, model)
    where = f"{model!r} of {source}"
    try:
        found = tensors(variables, published.rules(module, options))
    except (ValueError, AttributeError) as error:
        raise InputError(f"{type(module).__module__} is not {where}: {error}") from error
    twin = _build(published, where, {name: tensor.shape for name, tensor in found.items()}, options)
    if type(twin) is not type(module):
        raise InputError(f"{type(module).__module__} is not {where}, which is {type(twin).__module__}")
    for name, (own, theirs) in differences(module, twin).items():
        raise InputError(f"{where} has {name}={theirs!r}, this model {own!r}: it would compute other numbers")
    leaves = flax.traverse_util.flatten_dict(dict(variables), sep="/")
    state_dict = {}
    for name, tensor in found.items():
        state_dict[name] = tensor.torchs(np.asarray(leaves[tensor.path]))
        if name.endswith(".running_var"):
            state_dict[f"{name.rpartition('.')[0]}.{COUNTER}"] = np.zeros((), np.int64)
    return state_dict


def differences(module: layers.Network, twin: layers.Network) -> dict[str, tuple[Any, Any]]:
    """Returns {option: (the module's value, the twin's)} of two of one class, where logits depend on it."""
    without = {*_INCIDENTAL, *twin.unread()}
    names = [name for name in type(module).__dataclass_fields__ if name not in without]
    both = {name: (getattr(module, name), getattr(twin, name)) for name in names}
    return {name: (own, theirs) for name, (own, theirs) in both.items() if own != theirs}


def _todays(state_dict: StateDict, published: Source) -> StateDict:
    """The tensors by the names they have now; InputError for one that is there by two names."""
    renamed: dict[str, HostArray] = {}
    for name, value in state_dict.items():
        if published.todays(name) in renamed:
            raise InputError(f"tensor {name!r} is there twice: also as {published.todays(name)!r}")
        renamed[published.todays(name)] = value
    return renamed


def _build(
    published: Source, where: str, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]
) -> layers.Network:
    parameters = inspect.signature(published.build).parameters.values()
    legal = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for name in options:
        if name not in legal:
            hint = layers.nearest(name, legal)
            raise InputError(f"model {where}: no option {name!r}{hint}; its options are {', '.join(legal)}")
    return published.build(shapes, **options)


def _shapes(module: layers.Network, channels: int) -> Variables:
    init: Callable[..., Variables] = module.init
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros((*_IMAGE, channels)))


def _check_names(where: str, given: list[str], expected: list[str]) -> None:
    """InputError for the first tensor that is unknown, or else missing, with the names nearest to it."""
    unknown = sorted(set(given) - set(expected))
    missing = [name for name in expected if name not in set(given)]
    if not unknown and not missing:
        return
    name, others = (unknown[0], expected) if unknown else (missing[0], given)
    close = difflib.get_close_matches(name, others, n=3)
    hint = f"; nearest: {', '.join(map(repr, close))}" if close else ""
    count = f"{len(unknown)} unknown, {len(missing)} missing"
    what = f"no tensor of {where}" if unknown else f"missing, a tensor of {where}"
    raise InputError(f"{name!r} is {what} ({count} of {len(expected)}){hint}")
