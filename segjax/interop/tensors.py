"""Which torch tensor each of our leaves is: its name, its shape and the layout rule between the two.

A rule is (pattern of our module's path, name of the torch module[, "linear"]); the first rule whose pattern matches
the whole path holds. Rules lead from our names to torch's, and so serve loading, saving and the report alike.

    leaf                  torch tensor            layout
    conv kernel           [Cout, Cin / g, h, w]   transposed to [h, w, Cin / g, Cout]
    of depthwise          [C, 1, h, w]            the same: [h, w, 1, C]
    of transposed conv    [Cin, Cout / g, h, w]   the same: [h, w, Cout / g, Cin], of the conv it is the transpose of
    linear (1x1 kernel)   [out, in]               [1, 1, in, out]
    linear after flatten  [out, C h w]            read as [out, C, h, w], transposed to [h, w, C, out]
    the rest              [C]                     as it is
"""

import dataclasses
import re
from collections.abc import Iterable

import flax.traverse_util
import numpy as np

from segjax.types import HostArray, InputError, Variables

Rules = tuple[tuple[str, ...], ...]

LEAVES = {"kernel": "weight", "bias": "bias", "scale": "weight", "mean": "running_mean", "var": "running_var"}
COUNTER = "num_batches_tracked"  # of a torch batch norm: how many batches it saw; nothing is computed from it


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One leaf of ours and the torch tensor it comes from.

    Attributes:
        name: torch's, "layer1.0.conv1.weight".
        shape: torch's.
        path: ours, "params/backbone/layer1_0/conv1/conv/kernel".
        size: shape of our leaf.
        layout: the rule between the two, in words.
    """

    name: str
    shape: tuple[int, ...]
    path: str
    size: tuple[int, ...]
    layout: str

    def ours(self, value: HostArray) -> HostArray:
        """The torch tensor in our layout, float32.

        Raises:
            InputError: another shape, or no numbers with a fraction.
        """
        if tuple(value.shape) != self.shape:
            raise InputError(
                f"tensor {self.name!r} is {list(value.shape)}, expected {list(self.shape)} for {self.path} "
                f"{list(self.size)}: weights of another model or other options"
            )
        if not np.issubdtype(value.dtype, np.floating) and value.dtype.name != "bfloat16":
            raise InputError(f"tensor {self.name!r} holds {value.dtype}, expected a floating type")
        value = np.asarray(value, np.float32)
        if len(self.size) == 4:
            value = value.reshape([self.size[axis] for axis in (3, 2, 0, 1)]).transpose(2, 3, 1, 0)
        return np.ascontiguousarray(value)

    def torchs(self, value: HostArray) -> HostArray:
        """Our leaf as the torch tensor: the inverse of ``ours``."""
        value = np.asarray(value, np.float32)
        if len(self.size) == 4:
            value = value.transpose(3, 2, 0, 1).reshape(self.shape)
        return np.ascontiguousarray(value)


def tensors(like: Variables, rules: Rules) -> dict[str, Tensor]:
    """Returns the torch tensor of every leaf.

    Args:
        like: variables or their shapes.
        rules: see above.
    Returns:
        {torch's name: tensor}, in the order of our leaves.
    Raises:
        ValueError: a leaf without a rule, or two leaves with one name: the rules are wrong.
    """
    found: dict[str, Tensor] = {}
    for path, leaf in flax.traverse_util.flatten_dict(dict(like), sep="/").items():
        _, _, rest = path.partition("/")
        module, _, last = rest.rpartition("/")
        name, kind = _rule(module, rules)
        size = tuple(leaf.shape)
        shape, layout = _layout(size, "depthwise" if kind == "conv" and "depthwise" in module else kind)
        tensor = Tensor(f"{name}.{LEAVES[last]}", shape, path, size, layout)
        if tensor.name in found:
            raise ValueError(f"rules give both {found[tensor.name].path} and {path} the name {tensor.name!r}")
        found[tensor.name] = tensor
    return found


def under(prefix: str, torch_prefix: str, rules: Iterable[tuple[str, ...]]) -> Rules:
    """Returns rules for the same modules below a path of ours and a torch module: under("backbone/", "encoder.", R)."""
    return tuple((prefix + pattern, torch_prefix + name, *kind) for pattern, name, *kind in rules)


def _rule(module: str, rules: Rules) -> tuple[str, str]:
    for pattern, name, *kind in rules:
        if match := re.fullmatch(pattern, module):
            return match.expand(name), kind[0] if kind else "conv"
    raise ValueError(f"no rule names the module {module!r}: expected one whose pattern matches it")


def _layout(size: tuple[int, ...], kind: str) -> tuple[tuple[int, ...], str]:
    """Torch's shape of a leaf of ours, and the rule in words."""
    if len(size) != 4:
        return size, "as it is"
    h, w, cin, cout = size
    if kind == "linear":
        flat = "[out, in] to [1, 1, in, out]" if h == w == 1 else "[out, C h w] to [h, w, C, out]"
        return (cout, cin * h * w), flat
    return (cout, cin, h, w), "[C, 1, h, w] to [h, w, 1, C]" if kind == "depthwise" else "OIHW to HWIO"
