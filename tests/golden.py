"""Reads a folder of reference outputs of PyTorch models, and turns their state dicts into our variables."""

import importlib.util
import json
import pathlib
import re
from collections.abc import Callable, Mapping

import flax.traverse_util
import jax
import numpy as np

NORM_LEAVES = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
CONV_LEAVES = {"weight": ("params", "kernel"), "bias": ("params", "bias")}

# (pattern of a torch module's name, path of ours); the last part of ours tells a norm from a convolution.
RESNET = (
    (r"conv1", "stem/conv"),
    (r"bn1", "stem/norm"),
    (r"layer(\d)\.(\d+)\.conv(\d)", r"layer\1_\2/conv\3/conv"),
    (r"layer(\d)\.(\d+)\.bn(\d)", r"layer\1_\2/conv\3/norm"),
    (r"layer(\d)\.(\d+)\.downsample\.0", r"layer\1_\2/shortcut/conv"),
    (r"layer(\d)\.(\d+)\.downsample\.1", r"layer\1_\2/shortcut/norm"),
)
MOBILENET_V2 = (
    (r"features\.0\.0", "stem/conv"),
    (r"features\.0\.1", "stem/norm"),
    (r"features\.1\.conv\.0\.0", "block1/depthwise/conv"),
    (r"features\.1\.conv\.0\.1", "block1/depthwise/norm"),
    (r"features\.1\.conv\.1", "block1/project/conv"),
    (r"features\.1\.conv\.2", "block1/project/norm"),
    (r"features\.18\.0", "head/conv"),
    (r"features\.18\.1", "head/norm"),
    (r"features\.(\d+)\.conv\.0\.0", r"block\1/expand/conv"),
    (r"features\.(\d+)\.conv\.0\.1", r"block\1/expand/norm"),
    (r"features\.(\d+)\.conv\.1\.0", r"block\1/depthwise/conv"),
    (r"features\.(\d+)\.conv\.1\.1", r"block\1/depthwise/norm"),
    (r"features\.(\d+)\.conv\.2", r"block\1/project/conv"),
    (r"features\.(\d+)\.conv\.3", r"block\1/project/norm"),
)
BACKBONES = {"resnet": RESNET, "mobilenet_v2": MOBILENET_V2}
SMP_DEEPLABV3PLUS = (
    (r"decoder\.aspp\.0\.convs\.0\.0", "aspp/point/conv"),
    (r"decoder\.aspp\.0\.convs\.0\.1", "aspp/point/norm"),
    (r"decoder\.aspp\.0\.convs\.4\.1", "aspp/pool/conv"),
    (r"decoder\.aspp\.0\.convs\.4\.2", "aspp/pool/norm"),
    (r"decoder\.aspp\.0\.convs\.(\d)\.0\.0", r"aspp/dilated\1/depthwise"),
    (r"decoder\.aspp\.0\.convs\.(\d)\.0\.1", r"aspp/dilated\1/pointwise/conv"),
    (r"decoder\.aspp\.0\.convs\.(\d)\.1", r"aspp/dilated\1/pointwise/norm"),
    (r"decoder\.aspp\.0\.project\.0", "aspp/project/conv"),
    (r"decoder\.aspp\.0\.project\.1", "aspp/project/norm"),
    (r"decoder\.aspp\.1\.0", "aspp_out/depthwise"),
    (r"decoder\.aspp\.1\.1", "aspp_out/pointwise/conv"),
    (r"decoder\.aspp\.2", "aspp_out/pointwise/norm"),
    (r"decoder\.block1\.0", "low_level/conv"),
    (r"decoder\.block1\.1", "low_level/norm"),
    (r"decoder\.block2\.0\.0", "decoder1/depthwise"),
    (r"decoder\.block2\.0\.1", "decoder1/pointwise/conv"),
    (r"decoder\.block2\.1", "decoder1/pointwise/norm"),
    (r"segmentation_head\.0", "head"),
)
# The options of our DeepLabv3+ under which it is segmentation_models_pytorch's.
SMP_OPTIONS = {
    "aspp_rates": (12, 24, 36),
    "aspp_out_conv": True,
    "decoder_convs": 1,
    "separable": True,
    "depthwise_norm": False,
    "align_corners": True,
    "dilate_first_block": True,
}


class Case:
    """One reference case: its weights and input drawn anew, its outputs as stored."""

    def __init__(self, folder: pathlib.Path, name: str) -> None:
        spec = importlib.util.spec_from_file_location("golden_weights", folder / "weights.py")
        weights = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(weights)
        self.info = json.loads((folder / "dev" / f"{name}.json").read_text())
        self.state_dict = weights.case_state_dict(self.info)
        assert weights.checksum(self.state_dict) == self.info["weights_crc32"], "NumPy draws other bits here"
        self.image = np.ascontiguousarray(weights.make_input(self.info["input"]).transpose(0, 2, 3, 1))
        self.stored = np.load(folder / "dev" / f"{name}.npz")

    def check(self, key: str, mine: jax.Array) -> None:
        """Compares one output, ours NHWC, within the case's tolerance."""
        stride = self.info["outputs"][key]["stored_stride"]
        mine = np.asarray(mine).transpose(0, 3, 1, 2)
        assert list(mine.shape) == self.info["outputs"][key]["shape"]
        mine = mine[tuple(slice(None, None, step) for step in stride)]
        np.testing.assert_allclose(
            mine, self.stored[key], rtol=self.info["rtol"], atol=self.info["outputs"][key]["atol"], err_msg=key
        )

    def check_inner(self, module: str, mine: jax.Array) -> None:
        """Compares the stored corners and channel statistics of one inner activation, ours NHWC."""
        x = np.asarray(mine, np.float32).transpose(0, 3, 1, 2)
        views = {
            "head": x[0, :4, :6, :6],
            "tail": x[0, -4:, -6:, -6:],
            "channel_mean": x.mean(axis=(0, 2, 3), dtype=np.float64),
            "channel_std": x.std(axis=(0, 2, 3), dtype=np.float64),
        }
        for view, value in views.items():
            stored, atol = self.stored[f"checkpoint/{module}/{view}"], self.info["checkpoints"][module][view]
            np.testing.assert_allclose(value, stored, rtol=1e-5, atol=atol, err_msg=f"{module} {view}")


def renamer(backbone: str, prefix: str = "", rest: tuple = (), under: str = "") -> Callable[[str], str | None]:
    """Returns torch module name -> our path, for a backbone under a prefix and the modules around it."""
    family = next(rules for name, rules in BACKBONES.items() if backbone.startswith(name))
    rules = [(re.escape(prefix) + pattern, under + path) for pattern, path in family] + list(rest)

    def rename(module: str) -> str | None:
        found = (re.sub(pattern, path, module) for pattern, path in rules if re.fullmatch(pattern, module))
        return next(found, None)

    return rename


def convert(
    state_dict: Mapping[str, np.ndarray], rename: Callable[[str], str | None], like: Mapping, *, skip: str = "$^"
) -> dict:
    """Turns a torch state dict into variables: every tensor used exactly once, every leaf filled.

    Args:
        state_dict: {name: array}; convolution kernels are OIHW and become HWIO.
        rename: name of a torch module -> path of ours, "a/b/conv" or "a/b/norm".
        like: variables or their shapes (``jax.eval_shape`` of init).
        skip: pattern of the names to leave out, besides ``num_batches_tracked``.
    """
    wanted = {"/".join(path): leaf.shape for path, leaf in flax.traverse_util.flatten_dict(dict(like)).items()}
    filled = {}
    for name, value in state_dict.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked" or re.match(skip, name):
            continue
        path = rename(module)
        assert path is not None, f"no rule for {name}"
        collection, ours = (NORM_LEAVES if path.rpartition("/")[2] == "norm" else CONV_LEAVES)[leaf]
        path = f"{collection}/{path}/{ours}"
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        assert path in wanted, f"{name} -> {path}, which the model lacks"
        assert path not in filled, f"{name} -> {path}, which is filled already"
        assert value.shape == wanted[path], f"{name} {value.shape} -> {path} {wanted[path]}"
        filled[path] = value
    missing = sorted(set(wanted) - set(filled))
    assert not missing, f"nothing for {missing}"
    return flax.traverse_util.unflatten_dict({tuple(path.split("/")): value for path, value in filled.items()})
