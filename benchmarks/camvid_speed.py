"""Parameters and img/s of experiments as they are trained: the compiled training step and the forward pass.

    python benchmarks/camvid_speed.py [--realtime] [EXPERIMENT.py:MODE ...]

By default the four of the CamVid table. Each is built as segjax.train builds it, from the experiment's config: batch
size, canvas, optimizer and augmentation; images and labels are random, on the host before the clock starts. The models
are timed in turns; medians over --rounds. --realtime takes the cores away from every other process while a call runs
(Linux, root): for a machine that others use too.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
CLASSES = 11
DEFAULT = ("fcn.py:camvid", "segnet.py:camvid", "unet.py:camvid", "deeplab.py:camvid_small")


def prepare(spec: str) -> tuple[int, int, dict[str, Callable[[], None]]]:
    """(parameters, images of a call, {"training step": call, "forward": call}), both compiled."""
    import jax
    import numpy as np

    from segjax import config as configs
    from segjax.data.metadata import Classes
    from segjax.training import parallel, setup

    config = configs.load_experiment(str(ROOT / "experiments" / spec))
    classes = Classes(tuple(f"class {k}" for k in range(CLASSES)))
    rng, rows = np.random.default_rng(0), config.train.batch_size
    shape = (rows, *config.data.size)
    batch = {
        "image": rng.integers(0, 256, (*shape, 3), np.uint8),
        "label": rng.integers(0, CLASSES, shape, np.int32),
        "valid": np.ones(rows, bool),
    }
    mesh = parallel.make_mesh()
    module = setup.build_model(config, CLASSES)
    kept = [parallel.replicate(setup.first_state(config, CLASSES), mesh)]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(kept[0].params))
    step = parallel.jit_step(setup.make_step(config, classes), mesh)
    forward = jax.jit(lambda variables, image: module.apply(variables, image / 255.0)["logits"])

    def train() -> None:
        kept[0], metrics = step(kept[0], parallel.shard_batch(batch, mesh))
        jax.block_until_ready(metrics)

    def infer() -> None:
        variables = {"params": kept[0].params, "batch_stats": kept[0].batch_stats}
        jax.block_until_ready(forward(variables, batch["image"]))

    calls = {"training step": train, "forward": infer}
    for call in calls.values():
        call()
    return parameters, rows, calls


def main() -> None:
    """Prints one line for each experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--realtime", action="store_true")
    arguments = parser.parse_args()
    from train_step import realtime

    from segjax.training import host_memory

    host_memory.keep_freed_memory()
    models = {spec: prepare(spec) for spec in arguments.experiments}
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(arguments.rounds):
        for spec, (_, _, calls) in models.items():
            for name, call in calls.items():
                with realtime(arguments.realtime):
                    start = time.perf_counter()
                    call()
                    seconds.setdefault((spec, name), []).append(time.perf_counter() - start)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, medians of {arguments.rounds}")
    for spec, (parameters, rows, calls) in models.items():
        rates = (f"{name} {rows / statistics.median(seconds[spec, name]):6.1f} img/s" for name in calls)
        print(f"{spec:26} {parameters:>11,} parameters  {'  '.join(rates)}")


if __name__ == "__main__":
    main()
