"""Training step and inference of Mask R-CNN: segjax against torchvision, in turns.

    python benchmarks/mask_rcnn.py --peer-python=PYTHON_WITH_TORCHVISION        (or SEGJAX_PEER_PYTHON)
    python benchmarks/mask_rcnn.py --peer-python=PYTHON --cases nuclei --repetitions 5
    python benchmarks/mask_rcnn.py --peer-python=PYTHON --device=cuda           bfloat16 against autocast, larger images

Both sides have the same weights and the same images of random ellipses, each in the form that it reads masks in: boxes
with 56x56 crops in as many rows as the experiment has, or whole masks of the objects alone. "nuclei" is
experiments/mask_rcnn.py:nuclei (with the background as the first class, so that the networks are equal), "resnet50"
torchvision's maskrcnn_resnet50_fpn with frozen statistics and stages. The bias of the background is such that about as
many detections come out as there are objects: torchvision's time depends on them.

Each side is a process of its own with --threads threads; rounds, --realtime and --pause as in train_step.py. PyTorch
runs in the faster of its two memory layouts (by CPU time, chosen for each row) and with our allocator settings.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from train_step import ROOT, ask, realtime

PARTS = ("inference", "training step")
CROP = 56  # rows and columns of a compact mask
Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Case:
    """One network and what it is run on; ``options`` are segjax's, and torchvision's follow from them."""

    backbone: str
    side: int
    batch: int
    objects: int  # on each image
    sides: tuple[float, float]  # of their boxes, pixels
    rows: int  # for the objects of an image
    optimizer: str
    options: dict[str, Any]

    def images(self) -> np.ndarray:
        """f32[B, H, W, 3], the same in every process."""
        return np.random.default_rng(1).standard_normal((self.batch, self.side, self.side, 3), np.float32)

    def boxes(self) -> np.ndarray:
        """f32[B, objects, 4]."""
        rng = np.random.default_rng(0)
        sides = rng.uniform(*self.sides, (self.batch, self.objects, 2))
        corner = rng.uniform(0, 1, sides.shape) * (self.side - sides)
        return np.concatenate([corner, corner + sides], axis=-1).astype(np.float32)

    def classes(self) -> np.ndarray:
        """i64[B, objects], from 0."""
        return np.random.default_rng(2).integers(0, self.options["num_classes"], (self.batch, self.objects))

    def compact(self) -> dict[str, np.ndarray]:
        """The batch as segjax reads it."""
        shape, own = (self.batch, self.rows), np.s_[:, : self.objects]
        place = np.abs(np.arange(CROP) - (CROP - 1) / 2)
        disc = (np.hypot(place[:, None], place) < CROP / 2).astype(np.uint8) * 255
        batch = {
            "image": self.images(),
            "boxes": np.zeros((*shape, 4), np.float32),
            "classes": np.zeros(shape, np.int32),
            "crowd": np.zeros(shape, bool),
            "boxes_valid": np.zeros(shape, bool),
            "masks": np.zeros((*shape, CROP, CROP), np.uint8),
            "content_size": np.full((self.batch, 2), self.side, np.int32),
            "valid": np.ones(self.batch, bool),
        }
        batch["boxes"][own], batch["classes"][own] = self.boxes(), self.classes()
        batch["boxes_valid"][own], batch["masks"][own] = True, disc
        return batch | {"mask_boxes": batch["boxes"].copy()}

    def whole_masks(self) -> np.ndarray:
        """u8[B, objects, H, W]: the same ellipses."""
        x0, y0, x1, y1 = (self.boxes()[..., i, None] for i in range(4))
        pixel = np.arange(self.side) + 0.5
        x, y = (2 * (pixel - a) / (b - a) - 1 for a, b in ((x0, x1), (y0, y1)))
        return (y[..., :, None] ** 2 + x[..., None, :] ** 2 < 1).astype(np.uint8)


NUCLEI = {
    "num_classes": 1, "preset": "segjax", "background": "first", "backbone": "resnet18", "channels": 128,
    "box_channels": 256, "mask_channels": 64, "anchor_sizes": (8, 16, 32, 64, 128), "rpn_pre_nms": (1000, 1000),
    "rpn_post_nms": (500, 1000), "box_samples": 128, "detections": 500,
}  # fmt: skip
RESNET50 = {
    "num_classes": 90, "preset": "torchvision", "backbone": "resnet50", "channels": 256, "box_channels": 1024,
    "mask_channels": 256, "anchor_sizes": (32, 64, 128, 256, 512), "rpn_pre_nms": (2000, 1000),
    "rpn_post_nms": (2000, 1000), "box_samples": 512, "detections": 100,
}  # fmt: skip
CASES = {
    "cpu": {
        "nuclei": Case("resnet18", 256, 4, 44, (8, 40), 400, "adamw", NUCLEI),
        "resnet50": Case("resnet50", 320, 2, 8, (24, 160), 100, "sgd", RESNET50),
    },
    "cuda": {
        "nuclei": Case("resnet18", 256, 16, 44, (8, 40), 400, "adamw", NUCLEI),
        "resnet50": Case("resnet50", 800, 8, 8, (24, 400), 100, "sgd", RESNET50),
    },
}


def segjax_side(case: Case, arguments: argparse.Namespace) -> tuple[dict, dict[str, Call]]:
    """What is to be told of this side, and the two things to time; writes the weights for the other one."""
    sys.path.insert(0, str(ROOT))
    from segjax.training import host_memory

    host_memory.keep_freed_memory()
    import jax

    from segjax import losses, models
    from segjax.training import optimizer, parallel, state
    from segjax.training.step import make_train_step

    assert jax.default_backend() == {"cpu": "cpu", "cuda": "gpu"}[arguments.device], jax.devices()
    dtype = "float32" if arguments.device == "cpu" else "bfloat16"
    model = models.build("mask_rcnn", dtype=dtype, **case.options)
    mesh = parallel.make_mesh(jax.devices()[:1])
    batch = parallel.shard_batch(case.compact(), mesh)
    forward = compiled(jax.jit(model.apply))
    variables = model.init(jax.random.key(0), batch["image"])
    variables = with_few_detections(variables, forward(variables, batch["image"]), case)
    export(model, variables, arguments.weights)
    options = {"sgd": {"momentum": 0.9}, "adamw": {"clip_norm": 10.0, "weight_decay": 1e-4}}[case.optimizer]
    tx, _ = optimizer.make_optimizer(
        name=case.optimizer, learning_rate=1e-4, schedule="constant", total_steps=1000, **options
    )
    loss = losses.build("mask_rcnn", num_classes=case.options["num_classes"], ignore_label=255)
    step = make_train_step(model.apply, loss, tx, frozen=model.frozen)
    step = compiled(parallel.jit_step(step, mesh))
    kept = [parallel.replicate(state.create(variables, tx, key=jax.random.key(1)), mesh)]
    told = {"parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))}

    def infer() -> None:
        found = jax.block_until_ready(forward(variables, batch["image"]))
        told.setdefault("detections", int(found["valid"].sum()))

    def train() -> None:
        kept[0], metrics = step(kept[0], batch)
        told.setdefault("loss", float(metrics["loss"]))
        jax.block_until_ready(kept[0])

    calls = {"inference": infer, "training step": train}
    for part in arguments.parts:
        calls[part](), calls[part]()
    told["first call, cpu seconds"] = {"inference": forward.seconds, "training step": step.seconds}
    return told, calls


def compiled(function: Callable) -> Any:
    """The function; ``seconds`` is the CPU time of its first call: tracing, compiling and one run."""

    def call(*args: Any) -> Any:
        begin = time.process_time()
        result = function(*args)
        if call.seconds is None:
            import jax

            jax.block_until_ready(result)
            call.seconds = round(time.process_time() - begin, 1)
        return result

    call.seconds = None
    return call


def with_few_detections(variables: dict, found: dict, case: Case) -> dict:
    """The scores spread, and the background's bias such that twice as many candidates pass as there are objects."""
    import jax

    variables = jax.tree.map(lambda x: x, variables)
    predictor = variables["params"]["box_predictor"]["classes"]
    logits, valid = np.asarray(found["class_logits"], np.float64), np.asarray(found["proposals_valid"])
    logits = logits[valid] - logits[valid].mean(axis=0)
    spread = 2.0 / logits.std()
    low, high = -20.0, 40.0
    for _ in range(40):
        bias = (low + high) / 2
        powers = np.exp(spread * logits + bias * (np.arange(logits.shape[1]) == 0))
        passed = (powers[:, 1:] / powers.sum(axis=1, keepdims=True) > 0.05).sum()
        low, high = (bias, high) if passed > 2 * case.batch * case.objects else (low, bias)
    mean = np.asarray(found["class_logits"], np.float64)[valid].mean(axis=0)
    predictor["kernel"] = predictor["kernel"] * spread
    predictor["bias"] = jax.numpy.asarray(np.eye(1, len(mean))[0] * bias - spread * mean, "float32")
    return variables


def export(model: Any, variables: dict, path: str) -> None:
    """The weights by torchvision's names."""
    import flax.traverse_util

    from segjax.interop import tensors, torch

    leaves = flax.traverse_util.flatten_dict(dict(variables), sep="/")
    rules = torch.find("torchvision", "maskrcnn_resnet50_fpn").rules(model, {})
    found = tensors.tensors(variables, rules)
    np.savez(path, **{name: tensor.torchs(np.asarray(leaves[tensor.path])) for name, tensor in found.items()})


def worker(arguments: argparse.Namespace) -> None:
    """Answers each line "NAME of what to time" on standard input with {"seconds", "cpu_seconds"} on standard output."""
    case = CASES[arguments.device][arguments.case]
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print goes to standard error
    if arguments.worker == "segjax":
        told, calls = segjax_side(case, arguments)
    else:
        from mask_rcnn_torch import peer_side

        told, calls = peer_side(case, arguments)
    told["resident memory, GB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    print(json.dumps(told), file=out, flush=True)
    for line in sys.stdin:
        with realtime(arguments.realtime):
            begin, cpu = time.perf_counter(), time.process_time()
            calls[line.strip()]()
            seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu}), file=out, flush=True)


def start(side: str, name: str, weights: str, arguments: argparse.Namespace) -> subprocess.Popen:
    """A worker, with its number of threads fixed."""
    n = str(arguments.threads)
    environment = dict(os.environ, OMP_NUM_THREADS=n, MKL_NUM_THREADS=n, PYTHONUNBUFFERED="1")
    if arguments.device == "cpu":
        environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    python = arguments.segjax_python if side == "segjax" else arguments.peer_python
    command = [python, __file__, "--worker", side, "--case", name, "--weights", weights, "--device", arguments.device,
               "--threads", n, "--parts", *arguments.parts] + ["--realtime"] * arguments.realtime  # fmt: skip
    if arguments.device == "cpu" and hasattr(os, "sched_getaffinity"):  # XLA starts a thread per core it may use
        cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
        command = ["taskset", "-c", ",".join(map(str, cores)), *command]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def compare(name: str, arguments: argparse.Namespace) -> None:
    """Both sides in turns, one table."""
    case, sides = CASES[arguments.device][name], {}
    print(f"\n{name}: {case.backbone}, batch {case.batch} at {case.side}x{case.side}, {case.objects} objects each")
    with tempfile.TemporaryDirectory() as folder:
        try:
            parameters = []
            for side in ("segjax", "torch"):  # the first one writes the weights of the second
                sides[side] = start(side, name, str(pathlib.Path(folder) / "weights.npz"), arguments)
                told = ask(sides[side], "")
                parameters.append(told["parameters"])
                print(f"  {side}: {told}", flush=True)
            if len(set(parameters)) > 1:
                raise SystemExit(f"the two networks differ: {parameters} parameters")
            for part in arguments.parts:
                in_turns(part, case, sides, arguments)
        finally:
            for process in sides.values():
                process.stdin.close()
                process.wait()


def in_turns(part: str, case: Case, sides: dict[str, subprocess.Popen], arguments: argparse.Namespace) -> None:
    """The rows of one thing that is timed, and the ratio of medians."""
    answers = {side: [] for side in sides}
    for repetition in range(arguments.repetitions):
        for side, process in sides.items():
            answers[side].append(ask(process, part))
            times = "{seconds:8.4f} s wall  {cpu_seconds:8.4f} s cpu".format(**answers[side][-1])
            print(f"  {part:14} {repetition + 1:2} {side:7} {times}", flush=True)
            time.sleep(arguments.pause)
    of = lambda key, side: [answer[key] for answer in answers[side]]
    medians = {key: {side: statistics.median(of(key, side)) for side in sides} for key in ("seconds", "cpu_seconds")}
    pairs = sorted(b / a for a, b in zip(of("seconds", "segjax"), of("seconds", "torch"), strict=True))
    ratios = {key: median["torch"] / median["segjax"] for key, median in medians.items()}
    speeds = ", ".join(f"{side} {case.batch / median:.2f} img/s" for side, median in medians["seconds"].items())
    print(f"  {part:14} medians: {speeds}; ratio {ratios['seconds']:.3f} (single pairs {pairs[0]:.3f} to "
          f"{pairs[-1]:.3f}), of CPU time {ratios['cpu_seconds']:.3f}", flush=True)  # fmt: skip


def main() -> None:
    """Parses the command line; runs the comparisons, or a worker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segjax-python", default=sys.executable)
    parser.add_argument("--peer-python", default=os.environ.get("SEGJAX_PEER_PYTHON"))
    parser.add_argument("--device", choices=tuple(CASES), default="cpu")
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES["cpu"]), default=list(CASES["cpu"]))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between two iterations")
    parser.add_argument("--realtime", action="store_true")
    parser.add_argument("--worker", choices=("segjax", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    if not arguments.peer_python:
        parser.error("--peer-python (or SEGJAX_PEER_PYTHON): a Python that has torchvision")
    when, load = time.strftime("%Y-%m-%d %H:%M"), os.getloadavg()[0]
    print(f"{platform.platform()}, {os.cpu_count()} cores, load {load:.1f}, {when}")
    print("python", " ".join(sys.argv), flush=True)
    for name in arguments.cases:
        compare(name, arguments)


if __name__ == "__main__":
    main()
