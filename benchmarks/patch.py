"""What a labelled pixel costs: patches, the same network dense, strided or at full resolution, and FCN-8s.

    python benchmarks/patch.py                    float32, 128x128, minutes on two cores
    python benchmarks/patch.py --size=512 --dtype=bfloat16

One image, 11 classes, random weights. Of each way: the side of the square that a logit sees; multiply-adds per labelled
pixel, as XLA counts them; seconds of a forward pass and of a gradient (loss, forward and backward), the median of
--repetitions after a warm-up, divided by the pixels that got a logit (a label); and the memory for intermediate results
that the gradient's program sets aside, per labelled pixel.

    patches             every pixel's window of 95 x 95 cut out and classified: --windows of them, drawn at random
    dense               the same logits for every pixel in one pass, dilated instead of strided
    strided             the same network in one pass with its strides: a logit every 16 pixels, enlarged bilinearly
    full resolution     the same convolutions zero-padded, without pools: sees 16 pixels
    full, deep          46 convolutions of 3x3 at full resolution, to see 95 pixels without pools
    FCN-8s              VGG-16 at a quarter of its channels, padded variant, learned up-sampling
"""

import argparse
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from segjax import losses, models, ops
from segjax.models import patch

CLASSES, IGNORE = 11, 255
DEEP = {"form": "full_resolution", "channels": (48,) * 46, "kernels": (3,) * 46}
Logits = Callable[..., Any]


def strided(module: Any) -> Logits:
    """The dense model's weights with strides: FCN's way at its coarsest."""
    side = patch.window(module.kernels, module.last)
    names = ("num_classes", "channels", "kernels", "last", "hidden", "norm", "dropout")
    classifier = patch.Classifier(form="patches", **{name: getattr(module, name) for name in names})

    def apply(variables: Any, image: Any, **_: Any) -> dict[str, Any]:
        x = jnp.pad(image, ((0, 0), (side // 2, side // 2), (side // 2, side // 2), (0, 0)), mode="reflect")
        variables = {collection: tree["classifier"] for collection, tree in variables.items()}
        coarse = classifier.apply(variables, x.astype(module.dtype), train=False)
        return {"logits": ops.resize(coarse, image.shape[1:3], method="bilinear")}

    return apply


def ways(dtype: str, windows: int) -> dict[str, tuple[Any, Logits | None, int]]:
    """{name: (model, another way to apply it, pixels that a logit sees)}."""
    options = {"num_classes": CLASSES, "dropout": 0.0, "dtype": dtype}
    dense = models.build("patch", **options, norm=False)
    return {
        "patches": (models.build("patch", **options, norm=False, form="patches", samples=windows), None, 95),
        "dense": (dense, None, 95),
        "strided": (dense, strided(dense), 95),
        "full resolution": (models.build("patch", **options, norm=False, form="full_resolution"), None, 16),
        "full, deep": (models.build("patch", **options, norm=False, **DEEP), None, 95),
        "FCN-8s": (models.build("fcn", **options, backbone="vgg16", width=0.25), None, 212),
    }


def measure(module: Any, apply: Logits | None, label: np.ndarray, repetitions: int) -> dict[str, float]:
    """Multiply-adds, seconds forward and of a gradient, bytes: all of the image."""
    image = np.random.default_rng(0).normal(size=(*label.shape, 3)).astype(np.float32)
    variables = module.init(jax.random.key(0), image)
    loss = losses.build("cross_entropy", num_classes=CLASSES, ignore_label=IGNORE)
    sampled = getattr(module, "samples", 0) > 0

    def forward(variables: Any, image: Any, label: Any) -> Any:
        if sampled:
            return module.apply(variables, image, train=True, targets={"label": label})[0]["logits"]
        return (apply or module.apply)(variables, image)["logits"]

    def objective(params: Any, image: Any, label: Any) -> Any:
        outputs = {"logits": forward({**variables, "params": params}, image, label)}
        ((total, weight),) = loss(outputs, {"label": label}).values()
        return total / weight

    seconds, lowered = [], jax.jit(forward).lower(variables, image, label)
    gradient = jax.jit(jax.value_and_grad(objective)).lower(variables["params"], image, label).compile()
    for program, first in ((lowered.compile(), variables), (gradient, variables["params"])):
        call = lambda program=program, first=first: jax.block_until_ready(program(first, image, label))
        call()
        times = []
        for _ in range(repetitions):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        seconds.append(statistics.median(times))
    memory = gradient.memory_analysis().temp_size_in_bytes
    return {"flops": lowered.cost_analysis()["flops"], "forward": seconds[0], "gradient": seconds[1], "memory": memory}


def main() -> None:
    """Parses the command line, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="rows and columns of the image")
    parser.add_argument("--windows", type=int, default=64, help="pixels that are classified by their windows")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    print(f"{platform.platform()}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, "
          f"load {os.getloadavg()[0]:.1f}, {time.strftime('%Y-%m-%d %H:%M')}")  # fmt: skip
    print("python", " ".join(sys.argv), flush=True)
    print("| | sees | million multiply-adds | forward, us | gradient, us | memory, kB |\n|---|---|---|---|---|---|")
    rng = np.random.default_rng(1)
    label = rng.integers(0, CLASSES, (1, arguments.size, arguments.size), np.int32)
    few, chosen = np.full(label.size, IGNORE, np.int32), rng.choice(label.size, arguments.windows, replace=False)
    few[chosen] = label.ravel()[chosen]
    for name, (module, apply, sees) in ways(arguments.dtype, arguments.windows).items():
        labelled = arguments.windows if name == "patches" else label.size
        known = few.reshape(label.shape) if name == "patches" else label
        cost = measure(module, apply, known, arguments.repetitions)
        numbers = (cost["flops"] / 2e6, 1e6 * cost["forward"], 1e6 * cost["gradient"], cost["memory"] / 1e3)
        print(f"| {name} | {sees} | " + " | ".join(f"{n / labelled:.3g}" for n in numbers) + " |", flush=True)


if __name__ == "__main__":
    main()
