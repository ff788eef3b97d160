"""One update of the confusion matrix: segjax against torch.bincount and torchmetrics on the same CPU.

    python benchmarks/metrics.py --peer-python=PYTHON_WITH_TORCH_AND_TORCHMETRICS       (or SEGJAX_PEER_PYTHON)

8 x 512 x 512 pixels, 21 classes, 5 % ignored; two inputs: "random" (every pixel its own) and "regions" (labels in
32 x 32 squares, predictions 90 % right, as real ones are). Every measurement is a process of its own on two cores,
the four ways in turn; a process prints the median of its repetitions after a warm-up. The ways:

    segjax          confusion.update(counts, prediction, label, ignore_label=255), jitted: range checks, ignore
                    label, counting, exact accumulation
    bincount        torch.bincount(index, minlength=K * K) alone, on indices made beforehand: counting only
    torch           the update people write around it: mask, index, bincount, add (torchvision's reference scripts)
    torchmetrics    MulticlassConfusionMatrix(num_classes=21, ignore_index=255).update
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

CLASSES, IGNORE, SHAPE = 21, 255, (8, 512, 512)
WAYS, INPUTS = ("segjax", "bincount", "torch", "torchmetrics"), ("random", "regions")
ROOT = pathlib.Path(__file__).resolve().parents[1]


def pixels(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(prediction, label), i64[8, 512, 512], the same in every process."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, CLASSES, SHAPE)
    if name == "random":
        prediction, label = noise, rng.integers(0, CLASSES, SHAPE)
    else:
        squares = rng.integers(0, CLASSES, (SHAPE[0], SHAPE[1] // 32, SHAPE[2] // 32))
        label = squares.repeat(32, axis=1).repeat(32, axis=2)
        prediction = np.where(rng.random(SHAPE) < 0.9, label, noise)
    return prediction, np.where(rng.random(SHAPE) < 0.05, IGNORE, label)


def segjax_update(prediction: np.ndarray, label: np.ndarray) -> Callable[[], object]:
    """A call that adds the batch to the counts it keeps."""
    sys.path.insert(0, str(ROOT))
    import functools

    import jax

    from segjax.metrics import confusion

    update = jax.jit(functools.partial(confusion.update, ignore_label=IGNORE), donate_argnums=0)
    prediction, label = (jax.device_put(x.astype(np.int32)) for x in (prediction, label))
    kept = [confusion.empty(CLASSES)]

    def call() -> None:
        kept[0] = jax.block_until_ready(update(kept[0], prediction, label))

    return call


def torch_update(way: str, prediction: np.ndarray, label: np.ndarray) -> Callable[[], object]:
    """The same with torch; "bincount" only counts indices made beforehand."""
    import torch

    torch.set_num_threads(2)
    prediction, label = torch.from_numpy(prediction), torch.from_numpy(label)
    if way == "torchmetrics":
        from torchmetrics.classification import MulticlassConfusionMatrix

        metric = MulticlassConfusionMatrix(num_classes=CLASSES, ignore_index=IGNORE)
        return lambda: metric.update(prediction, label)
    if way == "bincount":
        counted = (label >= 0) & (label < CLASSES)
        index = label[counted] * CLASSES + prediction[counted]
        return lambda: torch.bincount(index, minlength=CLASSES**2)
    matrix = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)

    def call() -> None:
        counted = (label >= 0) & (label < CLASSES)
        index = label[counted] * CLASSES + prediction[counted]
        matrix.add_(torch.bincount(index, minlength=CLASSES**2).reshape(CLASSES, CLASSES))

    return call


def measure(way: str, name: str, repetitions: int) -> float:
    """Median milliseconds of one update, in this process, on two cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    data = pixels(name)
    call = segjax_update(*data) if way == "segjax" else torch_update(way, *data)
    for _ in range(3):
        call()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=os.environ.get("SEGJAX_PEER_PYTHON", sys.executable))
    parser.add_argument("--rounds", type=int, default=5, help="processes per way and input")
    parser.add_argument("--repetitions", type=int, default=15, help="updates timed per process")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "INPUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure, args.repetitions)))
        return
    for name in INPUTS:
        rows: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn in range(args.rounds):
            for way in WAYS:
                python = sys.executable if way == "segjax" else args.peer_python
                command = [python, __file__, "--measure", way, name, "--repetitions", str(args.repetitions)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                rows[way].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{name:8} round {turn} {way:13} {rows[way][-1]:9.2f} ms", flush=True)
        ours = statistics.median(rows["segjax"])
        for way in WAYS:
            median = statistics.median(rows[way])
            print(f"{name:8} median  {way:13} {median:9.2f} ms   {median / ours:6.1f} x segjax's time", flush=True)


if __name__ == "__main__":
    main()
