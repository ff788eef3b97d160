"""RoIAlign and non-maximum suppression: segjax against torchvision, in turns.

    python benchmarks/roi_ops.py --peer-python=PYTHON_WITH_TORCHVISION        (or SEGJAX_PEER_PYTHON)
    python benchmarks/roi_ops.py --peer-python=PYTHON --only='nms' --rounds 9

roi_align: 512 boxes to 7x7 bins of 2x2 samples on two images' maps of 256 channels, boxes of any size or of a feature
pyramid's (14 to 28 pixels of the map); forward and gradient of the map are rows of their own. nms: 2,000 boxes with
room for all of them. How rounds, ratios and threads work: benchmarks/ops.py, whose parts these are.

segjax: NHWC, a jitted function, until its result is there; the gradient row is the pull-back alone. torchvision: NCHW,
the layout its kernel wants, forward in inference mode; a gradient row is torch.autograd.grad of a retained graph.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from ops import ROOT, TOLERANCE, ask, fingerprint, report
from train_step import keep_freed_memory, realtime

STRIDE = 16


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation: boxes of sides `sides` pixels (None: between two random corners) on maps of `size`."""

    kind: str
    size: tuple[int, int]
    sides: tuple[int, int] | None
    boxes: int
    threshold: float = 0.0

    @property
    def name(self) -> str:
        """Of its rows."""
        sides = f"sides {self.sides[0]}-{self.sides[1]}" if self.sides else "any sides"
        what = f"threshold {self.threshold}" if self.kind == "nms" else "2x{}x{}x256 to 7x7".format(*self.size)
        return f"{self.kind} {self.boxes} boxes, {sides}, {what}"

    @property
    def parts(self) -> tuple[str, ...]:
        """Its rows."""
        return ("forward",) if self.kind == "nms" else ("forward", "input gradient")

    def arrays(self) -> dict[str, np.ndarray]:
        """The same numbers in every process."""
        rng = np.random.default_rng(0)
        height, width = (STRIDE * n for n in self.size)
        corners = rng.uniform(0, 1, (self.boxes, 2, 2)) * (width, height)
        if self.sides:
            corners[:, 1] = corners[:, 0] + rng.uniform(*self.sides, (self.boxes, 2))
        arrays = {"boxes": np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float32)}
        if self.kind == "nms":
            return arrays | {"scores": rng.permutation(self.boxes).astype(np.float32)}
        arrays["index"] = rng.integers(0, 2, self.boxes)
        arrays["x"] = rng.standard_normal((2, *self.size, 256), np.float32)
        return arrays | {"g": rng.standard_normal((self.boxes, 7, 7, 256), np.float32)}


CASES = (
    Case("roi_align", (50, 68), None, 512),
    Case("roi_align", (100, 136), (224, 448), 512),
    Case("roi_align", (200, 272), None, 512),
    Case("roi_align", (200, 272), (224, 448), 512),
    Case("nms", (50, 84), None, 2000, 0.7),
    Case("nms", (50, 84), (8, 200), 2000, 0.7),
    Case("nms", (50, 84), (8, 200), 2000, 0.3),
)


def segjax_call(case: Case, part: str) -> tuple[Callable, Callable]:
    """The call to time, and one that fetches its result."""
    import jax

    from segjax import ops

    a = {name: jax.numpy.asarray(value) for name, value in case.arrays().items()}
    if case.kind == "nms":
        run = jax.jit(lambda b, s: ops.nms(b, s, iou_threshold=case.threshold, max_outputs=case.boxes))
        call = lambda: jax.block_until_ready(run(a["boxes"], a["scores"]))
        return call, lambda: np.asarray(call()[0])[np.asarray(call()[1])]
    options = {"output_size": 7, "spatial_scale": 1 / STRIDE, "sampling_ratio": 2, "aligned": False}
    align = lambda x, b, i: ops.roi_align(x, b, i, **options)
    if part == "forward":
        run = jax.jit(lambda a: align(a["x"], a["boxes"], a["index"]))
    else:
        run = jax.jit(lambda a: jax.vjp(lambda x: align(x, a["boxes"], a["index"]), a["x"])[1](a["g"])[0])
    call = lambda: jax.block_until_ready(run(a))
    return call, lambda: np.asarray(call())


def torch_call(case: Case, part: str) -> tuple[Callable, Callable]:
    """The same for torchvision."""
    import torch
    import torchvision

    a = case.arrays()
    if case.kind == "nms":
        boxes, scores = torch.from_numpy(a["boxes"]), torch.from_numpy(a["scores"])
        call = lambda: torchvision.ops.nms(boxes, scores, case.threshold)
        return call, lambda: call().numpy()
    x, g = (torch.from_numpy(a[key].transpose(0, 3, 1, 2).copy()) for key in ("x", "g"))
    boxes = torch.from_numpy(np.concatenate([a["index"][:, None].astype(np.float32), a["boxes"]], axis=1))
    align = lambda: torchvision.ops.roi_align(x, boxes, (7, 7), 1 / STRIDE, 2, False)
    if part == "forward":
        call = torch.inference_mode()(align)
    else:
        x.requires_grad_()
        y = align()
        call = lambda: torch.autograd.grad(y, x, g, retain_graph=True)[0]
    return call, lambda: call().numpy().transpose(0, 2, 3, 1)


def worker(arguments: argparse.Namespace) -> None:
    """Answers each JSON line on standard input with one on standard output: a row to prepare, or calls to time."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if arguments.worker == "segjax":
        sys.path.insert(0, str(ROOT))
        from segjax.training import host_memory

        host_memory.keep_freed_memory()
        import jax

        versions, prepare = f"jax {jax.__version__}", segjax_call
    else:
        keep_freed_memory()
        import torch
        import torchvision

        torch.set_num_threads(arguments.threads)
        versions, prepare = f"torch {torch.__version__}, torchvision {torchvision.__version__}", torch_call
    print(json.dumps({"versions": f"python {platform.python_version()}, {versions}"}), file=out, flush=True)
    call = None
    for line in sys.stdin:
        question = json.loads(line)
        if "row" in question:
            call, result = prepare(CASES[question["row"][0]], question["row"][1])
            answer = {"fingerprint": fingerprint(result())}
        else:
            answer = {"seconds": timed(call, question["calls"], arguments)}
        print(json.dumps(answer), file=out, flush=True)


def timed(call: Callable, calls: int, arguments: argparse.Namespace) -> list[float]:
    """Seconds of each call, after an untimed one."""
    seconds = []
    with realtime(arguments.realtime):
        for _ in range(1 + calls):
            begin = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def start(side: str, python: str, arguments: argparse.Namespace) -> subprocess.Popen:
    """A worker, with its number of threads fixed."""
    n = str(arguments.threads)
    environment = dict(os.environ, OMP_NUM_THREADS=n, MKL_NUM_THREADS=n, JAX_PLATFORMS="cpu", CUDA_VISIBLE_DEVICES="")
    command = [python, __file__, "--worker", side, "--threads", n] + ["--realtime"] * arguments.realtime
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
        command = ["taskset", "-c", ",".join(map(str, cores)), *command]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def measure(sides: dict[str, subprocess.Popen], row: tuple[int, str, str], arguments: argparse.Namespace) -> dict:
    """One row in turns: {"name", "segjax": seconds, "torch": seconds, "ratio"}, or {"name", "error"}."""
    index, part, name = row
    answers = [ask(process, {"row": [index, part]})["fingerprint"] for process in sides.values()]
    if max(abs(p - q) for p, q in zip(*answers, strict=True)) > TOLERANCE["float32"] * answers[1][1]:
        print(f"{name} ERROR results differ: product and norm {answers}", flush=True)
        return {"name": name, "error": f"results differ: {answers}"}
    seconds = {side: [] for side in sides}
    for _ in range(arguments.rounds):
        for side, process in sides.items():
            time.sleep(arguments.pause)
            seconds[side] += ask(process, {"calls": arguments.repetitions})["seconds"]
    for side, times in seconds.items():
        print(f"  {name:66} {side:6} ms {' '.join(f'{1e3 * t:.1f}' for t in times)}", flush=True)
    return {
        "name": name,
        **seconds,
        "ratio": statistics.median(seconds["torch"]) / statistics.median(seconds["segjax"]),
    }


def main() -> None:
    """Parses the command line; runs the comparison, or a worker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segjax-python", default=sys.executable)
    parser.add_argument("--peer-python", default=os.environ.get("SEGJAX_PEER_PYTHON"))
    parser.add_argument("--only", default="", metavar="REGEX", help="rows whose name it is found in")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=2, help="timed calls per round and side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0.02, help="seconds before each side's turn")
    parser.add_argument("--realtime", action="store_true")
    parser.add_argument("--json", type=pathlib.Path, help="file for every time")
    parser.add_argument("--worker", choices=("segjax", "torch"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.device = "cpu"
    if arguments.worker:
        worker(arguments)
        return
    if not arguments.peer_python:
        parser.error("--peer-python (or SEGJAX_PEER_PYTHON): a Python that has torchvision")
    rows = [(i, part, f"{case.name} {part}") for i, case in enumerate(CASES) for part in case.parts]
    rows = [row for row in rows if re.search(arguments.only, row[2])]
    if not rows:
        parser.error(f"--only={arguments.only!r} finds no row")
    load = lambda: f"load average {os.getloadavg()[0]:.1f}, {time.strftime('%Y-%m-%d %H:%M')}"
    pythons = (("segjax", arguments.segjax_python), ("torch", arguments.peer_python))
    sides = {side: start(side, python, arguments) for side, python in pythons}
    header = [f"{platform.platform()}, {os.cpu_count()} cores, {arguments.threads} threads a side, {load()}"]
    try:
        header += [f"{side}: {ask(process)['versions']}" for side, process in sides.items()]
        header.append("python " + " ".join(sys.argv))
        print("\n".join(header), flush=True)
        results = [measure(sides, row, arguments) for row in rows]
    finally:
        for process in sides.values():
            process.stdin.close()
            process.wait()
    report(results, arguments)
    print(load(), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"header": [*header, load()], "rows": results}, indent=1))
    if any("error" in row for row in results):
        raise SystemExit("some rows have no figure")


if __name__ == "__main__":
    main()
