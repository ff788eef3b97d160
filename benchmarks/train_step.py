"""Inference and the training step of DeepLabv3+: segjax against segmentation_models_pytorch (smp), in turns.

    python benchmarks/train_step.py --peer-python=PYTHON_WITH_SMP                    (or SEGJAX_PEER_PYTHON)
    python benchmarks/train_step.py --device=cuda --peer-python=PYTHON_WITH_SMP      bfloat16, 513x513, torch.compile

Both sides train the same network: smp's DeepLabV3Plus, 11 classes, output stride 16, random weights, of the same
number of parameters (checked). Same batch, cross entropy over all pixels, SGD with momentum 0.9, batch on the device
before the clock starts; an iteration ends when its loss (its logits) is there. Each side is a process of its own with
--threads threads, both stay alive, and the repetitions go in turns, so that a slow moment of the machine meets both.
Every repetition is printed, then the ratio of medians (above 1: segjax is faster).

segjax runs as its entry points do (make_train_step, jit_step, keep_freed_memory); PyTorch in channels_last.
--peer-allocator=keep gives PyTorch the same allocator settings. --realtime takes the cores away from every other
process while an iteration runs (Linux, root): for a machine that others use too.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

CLASSES = 11
BATCH = {"cpu": {"resnet50": 4, "mobilenet_v2": 8}, "cuda": {"resnet50": 16, "mobilenet_v2": 32}}
SIZE = {"cpu": (192, 256), "cuda": (513, 513)}
ROOT = pathlib.Path(__file__).resolve().parents[1]
Call = Callable[[], object]


def batch_of(backbone: str, device: str) -> tuple:
    """Image f32[B, H, W, 3] and label i32[B, H, W], the same in every process."""
    import numpy as np

    rng, shape = np.random.default_rng(0), (BATCH[device][backbone], *SIZE[device])
    return rng.standard_normal((*shape, 3), np.float32), rng.integers(0, CLASSES, shape, np.int32)


def segjax_side(backbone: str, device: str) -> tuple[int, dict[str, Call]]:
    """Number of parameters, and the two things to time."""
    sys.path.insert(0, str(ROOT))
    from segjax.training import host_memory

    host_memory.keep_freed_memory()
    import jax
    import numpy as np

    from segjax import losses, models
    from segjax.training import optimizer, parallel, state
    from segjax.training.step import make_train_step

    assert jax.default_backend() == {"cpu": "cpu", "cuda": "gpu"}[device], jax.devices()
    # smp's choices, where they differ from the paper's.
    model = models.build(
        "deeplab", num_classes=CLASSES, backbone=backbone, decoder_convs=1, aspp_rates=(12, 24, 36), aspp_out_conv=True,
        align_corners=True, dilate_first_block=True, depthwise_norm=False,
        dtype="float32" if device == "cpu" else "bfloat16",
    )  # fmt: skip
    image, label = batch_of(backbone, device)
    mesh = parallel.make_mesh(jax.devices()[:1])
    variables = model.init(jax.random.key(0), image)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    tx, _ = optimizer.make_optimizer(
        name="sgd", learning_rate=0.01, schedule="constant", total_steps=1000, momentum=0.9
    )
    loss = losses.build("cross_entropy", num_classes=CLASSES, ignore_label=255)
    step = parallel.jit_step(make_train_step(model.apply, loss, tx), mesh)
    batch = parallel.shard_batch({"image": image, "label": label, "valid": np.ones(len(image), bool)}, mesh)
    kept = [parallel.replicate(state.create(variables, tx, key=jax.random.key(1)), mesh)]
    forward = jax.jit(lambda variables, image: model.apply(variables, image)["logits"])

    def infer() -> None:
        jax.block_until_ready(forward(variables, batch["image"]))

    def train() -> float:
        kept[0], metrics = step(kept[0], batch)
        return float(metrics["loss"])

    return parameters, {"inference": infer, "training step": train}


def keep_freed_memory() -> None:
    """What segjax.training.host_memory does, for a process that has no segjax."""
    import ctypes

    for parameter, value in ((-8, 1), (-4, 0), (-1, -1)):
        ctypes.CDLL(None).mallopt(parameter, value)


def peer_side(backbone: str, device: str, threads: int) -> tuple[int, dict[str, Call]]:
    """Number of parameters, and the two things to time."""
    import segmentation_models_pytorch as smp
    import torch

    torch.set_num_threads(threads)
    model = smp.DeepLabV3Plus(backbone, encoder_weights=None, classes=CLASSES)
    parameters = sum(p.numel() for p in model.parameters())
    model = model.to(device, memory_format=torch.channels_last)
    image, label = batch_of(backbone, device)
    image = torch.from_numpy(image).permute(0, 3, 1, 2).to(device, memory_format=torch.channels_last)
    label = torch.from_numpy(label).long().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    if device == "cuda":
        model = torch.compile(model)
    precision = lambda: torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda")

    def infer() -> None:
        model.eval()
        with torch.inference_mode(), precision():
            model(image)
        if device == "cuda":
            torch.cuda.synchronize()

    def train() -> float:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with precision():
            loss = torch.nn.functional.cross_entropy(model(image), label)
        loss.backward()
        optimizer.step()
        return loss.item()

    return parameters, {"inference": infer, "training step": train}


@contextlib.contextmanager
def realtime(wanted: bool) -> Iterator[None]:
    """All threads of this process before every ordinary one, for as long as the block runs."""

    def schedule(policy: int, priority: int) -> None:
        for thread in os.listdir("/proc/self/task"):
            os.sched_setscheduler(int(thread), policy, os.sched_param(priority))

    if wanted:
        schedule(os.SCHED_RR, 5)
    try:
        yield
    finally:
        if wanted:
            schedule(os.SCHED_OTHER, 0)


def worker(arguments: argparse.Namespace) -> None:
    """Answers each line "NAME of what to time" on standard input with {"seconds", "cpu_seconds"} on standard output."""
    side, backbone, device = arguments.worker, arguments.backbone, arguments.device
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print goes to standard error
    if side == "segjax":
        parameters, calls = segjax_side(backbone, device)
    else:
        if arguments.peer_allocator == "keep":
            keep_freed_memory()
        parameters, calls = peer_side(backbone, device, arguments.threads)
    for call in calls.values():
        call(), call()
    print(json.dumps({"parameters": parameters}), file=out, flush=True)
    for line in sys.stdin:
        with realtime(arguments.realtime):
            start, cpu = time.perf_counter(), time.process_time()
            calls[line.strip()]()
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu}), file=out, flush=True)


def start(side: str, python: str, backbone: str, arguments: argparse.Namespace) -> subprocess.Popen:
    """A worker, with its number of threads fixed."""
    n = str(arguments.threads)
    environment = dict(os.environ, OMP_NUM_THREADS=n, MKL_NUM_THREADS=n, PYTHONUNBUFFERED="1")
    if arguments.device == "cpu":
        environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    command = [python, __file__, "--worker", side, "--backbone", backbone, "--device", arguments.device,
               "--threads", n, "--peer-allocator", arguments.peer_allocator]  # fmt: skip
    if arguments.realtime:
        command.append("--realtime")
    if arguments.device == "cpu" and hasattr(os, "sched_getaffinity"):  # XLA starts a thread per core it may use
        cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
        command = ["taskset", "-c", ",".join(map(str, cores)), *command]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def ask(process: subprocess.Popen, what: str) -> dict:
    """One answer of a worker; "" waits for its first."""
    if what:
        process.stdin.write(what + "\n")
        process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a worker ended with status {process.wait()}: {' '.join(process.args)}")
    return json.loads(line)


def compare(backbone: str, arguments: argparse.Namespace) -> None:
    """Both sides in turns, one table."""
    sides = {side: start(side, python, backbone, arguments)
             for side, python in (("segjax", arguments.segjax_python), ("smp", arguments.peer_python))}  # fmt: skip
    try:
        parameters = {side: ask(process, "")["parameters"] for side, process in sides.items()}
        if len(set(parameters.values())) > 1:
            raise SystemExit(f"the two networks differ: {parameters}")
        batch, (height, width) = BATCH[arguments.device][backbone], SIZE[arguments.device]
        print(f"\n{backbone}: {parameters['segjax']} parameters on both sides, batch {batch} at {height}x{width}")
        for what in ("inference", "training step"):
            seconds = {side: [] for side in sides}
            for repetition in range(arguments.repetitions):
                for side, process in sides.items():
                    answer = ask(process, what)
                    seconds[side].append(answer["seconds"])
                    print(f"  {what:14} {repetition + 1:2} {side:7} {answer['seconds']:8.4f} s wall  "
                          f"{answer['cpu_seconds']:8.4f} s cpu", flush=True)  # fmt: skip
                    time.sleep(arguments.pause)
            medians = {side: statistics.median(times) for side, times in seconds.items()}
            pairs = sorted(b / a for a, b in zip(seconds["segjax"], seconds["smp"], strict=True))
            ratio, minima = medians["smp"] / medians["segjax"], min(seconds["smp"]) / min(seconds["segjax"])
            speeds = ", ".join(f"{side} {batch / median:.2f} img/s" for side, median in medians.items())
            print(f"  {what:14} medians: {speeds}; ratio {ratio:.3f} (single pairs {pairs[0]:.3f} to {pairs[-1]:.3f}; "
                  f"minima {minima:.3f})", flush=True)  # fmt: skip
    finally:
        for process in sides.values():
            process.stdin.close()
            process.wait()


def main() -> None:
    """Parses the command line; runs the comparisons, or a worker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segjax-python", default=sys.executable)
    parser.add_argument("--peer-python", default=os.environ.get("SEGJAX_PEER_PYTHON"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--backbones", nargs="+", choices=tuple(BATCH["cpu"]), default=list(BATCH["cpu"]))
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between two iterations")
    parser.add_argument("--peer-allocator", choices=("default", "keep"), default="default")
    parser.add_argument("--realtime", action="store_true")
    parser.add_argument("--worker", choices=("segjax", "smp"), help=argparse.SUPPRESS)
    parser.add_argument("--backbone", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    if not arguments.peer_python:
        parser.error("--peer-python (or SEGJAX_PEER_PYTHON): a Python that has torch and segmentation_models_pytorch")
    when, load = time.strftime("%Y-%m-%d %H:%M"), os.getloadavg()[0]
    print(f"{platform.platform()}, {os.cpu_count()} cores, load {load:.1f}, {when}")
    print("python", " ".join(sys.argv), flush=True)
    for backbone in arguments.backbones:
        compare(backbone, arguments)


if __name__ == "__main__":
    main()
