"""Reads a folder of reference outputs of PyTorch models; ``interop.torch.load`` makes variables of their weights."""

import importlib.util
import json
import pathlib

import jax
import numpy as np


class Case:
    """One reference case: its weights and input drawn anew, its outputs as stored."""

    def __init__(self, folder: pathlib.Path, name: str) -> None:
        spec = importlib.util.spec_from_file_location("golden_weights", folder / "weights.py")
        weights = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(weights)
        self.info = json.loads((folder / "dev" / f"{name}.json").read_text())
        self.state_dict = weights.case_state_dict(self.info)
        assert weights.checksum(self.state_dict) == self.info["weights_crc32"], "NumPy draws other bits here"
        image = weights.make_input(self.info["input"])
        self.image = np.ascontiguousarray(image.reshape(-1, *image.shape[-3:]).transpose(0, 2, 3, 1))
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
