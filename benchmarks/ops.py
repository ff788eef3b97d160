"""The operations of segmentation one by one, the rows of ops_rows.py: segjax against PyTorch, in turns.

    python benchmarks/ops.py --peer-python=PYTHON_WITH_TORCH                    (or SEGJAX_PEER_PYTHON)
    python benchmarks/ops.py --peer-python=PYTHON --only='depthwise.*kernel' --rounds 9
    python benchmarks/ops.py --device=cuda --peer-python=PYTHON_WITH_TORCH      float32, bfloat16, share of the roof

Transposed convolutions, depthwise convolutions, max-pools and resizes, each at two shapes. Forward, gradient of the
input and gradient of the kernel are rows of their own; both sides draw the same numbers, and a row counts only if
their results agree. Each side is a process of its own with --threads threads; both stay alive, and each round gives
first one, then the other, one untimed and --repetitions timed calls. Every round is printed (median of its calls),
then per row the ratio of the medians over all calls, torch / segjax (above 1: segjax is faster), the geometric mean
over the rows and the worst row. The ratio of the minima stands beside it: on a busy machine PyTorch's threads wait
for each other for whole time slices. --realtime takes the cores away from every other process while calls are timed
(Linux, root).

segjax: a jitted function of arrays that are on the device, until its result is there. A gradient row is the jitted
pull-back for one argument, from ready inputs and cotangent: the forward pass is dead code in it. The process keeps
freed memory, as segjax's entry points do.
PyTorch: channels_last; forward in inference mode; a gradient row is torch.autograd.grad of a retained graph for one
input, so that it does not pay for the forward pass either. Max-pool's gradient has the indices which the forward pass
saved; segjax's starts from the input and finds its maxima again. The allocator has the same settings as segjax's
(--peer-allocator=default: the system's, as an untouched PyTorch program has them).

On cuda one call runs the row on --copies different inputs, as one program (segjax) and one CUDA graph (PyTorch), so
that neither the dispatch nor the cache is measured; times are per copy. float32 convolutions may use TF32 on both
sides (their defaults). The share of the roof is what the row must move (its inputs and its output once) over the
time and --bandwidth.
"""

import argparse
import json
import math
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from ops_rows import CASES, segjax_call, torch_call
from train_step import keep_freed_memory, realtime

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}


def rows_of(device: str, only: str) -> Iterator[tuple[int, str, str, str]]:
    """(case, part, dtype, name of the row) for every row that `only` finds."""
    for dtype in ("float32",) if device == "cpu" else ("float32", "bfloat16"):
        for index, case in enumerate(CASES):
            for part in case.parts:
                name = f"{case.name} {part}" + (f" {dtype}" if device == "cuda" else "")
                if re.search(only, name):
                    yield index, part, dtype, name


def fingerprint(result: np.ndarray) -> list[float]:
    """Two numbers that tell results apart: the product with a fixed vector, and the norm."""
    flat = result.astype(np.float64).ravel()
    return [float(flat @ np.random.default_rng(7).standard_normal(flat.size)), float(np.linalg.norm(flat))]


def worker(arguments: argparse.Namespace) -> None:
    """Answers each JSON line on standard input with one on standard output: a row to prepare, or calls to time."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print goes to standard error
    if arguments.worker == "segjax":
        sys.path.insert(0, str(ROOT))
        from segjax.training import host_memory

        host_memory.keep_freed_memory()
        import jax

        assert jax.default_backend() == {"cpu": "cpu", "cuda": "gpu"}[arguments.device], jax.devices()
        versions, prepare = f"jax {jax.__version__}", segjax_call
    else:
        if arguments.peer_allocator == "keep":
            keep_freed_memory()
        import torch

        torch.set_num_threads(arguments.threads)
        versions, prepare = f"torch {torch.__version__}", torch_call
    print(json.dumps({"versions": f"python {platform.python_version()}, {versions}"}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), prepare, arguments)), file=out, flush=True)


def answer(question: dict, prepare: Callable, arguments: argparse.Namespace, kept: list = []) -> dict:  # noqa: B006
    """{"row": [case, part, dtype]} makes what {"calls": n} times after an untimed one; an error is the row's."""
    if "calls" in question:
        seconds = []
        with realtime(arguments.realtime):
            for _ in range(1 + question["calls"]):
                start = time.perf_counter()
                kept[0]()
                seconds.append((time.perf_counter() - start) / arguments.copies)
        return {"seconds": seconds[1:]}
    kept.clear()
    index, part, dtype = question["row"]
    try:
        call, result = prepare(CASES[index], part, dtype, arguments)
        kept.append(call)
        return {"fingerprint": fingerprint(result())}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def start(side: str, python: str, arguments: argparse.Namespace) -> subprocess.Popen:
    """A worker, with its number of threads fixed."""
    n = str(arguments.threads)
    environment = dict(os.environ, OMP_NUM_THREADS=n, MKL_NUM_THREADS=n, PYTHONUNBUFFERED="1")
    if arguments.device == "cpu":
        environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    command = [python, __file__, "--worker", side, "--device", arguments.device, "--threads", n,
               "--copies", str(arguments.copies), "--peer-allocator", arguments.peer_allocator]  # fmt: skip
    if arguments.realtime:
        command.append("--realtime")
    if arguments.device == "cpu" and hasattr(os, "sched_getaffinity"):  # XLA starts a thread per core it may use
        cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
        command = ["taskset", "-c", ",".join(map(str, cores)), *command]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def ask(process: subprocess.Popen, question: dict | None = None) -> dict:
    """One answer of a worker; without a question its first."""
    if question:
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a worker ended with status {process.wait()}: {' '.join(process.args)}")
    return json.loads(line)


def measure(sides: dict[str, subprocess.Popen], row: tuple, arguments: argparse.Namespace) -> dict:
    """One row in turns: {"name", "segjax": seconds, "torch": seconds, "ratio", "bytes"}, or {"name", "error"}."""
    index, part, dtype, name = row
    answers = {side: ask(process, {"row": [index, part, dtype]}) for side, process in sides.items()}
    errors = [f"{side}: {a['error'].splitlines()[0]}" for side, a in answers.items() if "error" in a]
    if not errors:
        a, b = (answers[side]["fingerprint"] for side in sides)
        if max(abs(p - q) for p, q in zip(a, b, strict=True)) > TOLERANCE[dtype] * b[1]:
            errors = [f"results differ: product and norm {a} against {b}"]
    if errors:
        print(f"{name:66} ERROR {'; '.join(errors)}", flush=True)
        return {"name": name, "error": "; ".join(errors)}
    seconds = {side: [] for side in sides}
    rounds = {side: [] for side in sides}
    for _ in range(arguments.rounds):
        for side, process in sides.items():
            time.sleep(arguments.pause)
            times = ask(process, {"calls": arguments.repetitions})["seconds"]
            seconds[side] += times
            rounds[side].append(f"{1e3 * statistics.median(times):.3f}")
    for side, times in rounds.items():
        print(f"  {name:66} {side:6} ms {' '.join(times)}", flush=True)
    ratio = statistics.median(seconds["torch"]) / statistics.median(seconds["segjax"])
    return {"name": name, **seconds, "ratio": ratio, "bytes": CASES[index].moved(part, 4 if dtype == "float32" else 2)}


def report(results: list[dict], arguments: argparse.Namespace) -> None:
    """The table, the geometric mean and the worst row."""
    measured = [row for row in results if "ratio" in row]
    roof = f"{'roof: segjax':>13} {'torch':>6}" if arguments.device == "cuda" else ""
    print(f"\n{'medians':66} {'segjax ms':>10} {'torch ms':>10} {'ratio':>6} {'minima':>6} {roof}")
    for row in measured:
        medians = [statistics.median(row[side]) for side in ("segjax", "torch")]
        minima = min(row["torch"]) / min(row["segjax"])
        shares = [row["bytes"] / m / (1e12 * arguments.bandwidth) for m in medians] if roof else []
        print(f"{row['name']:66} {1e3 * medians[0]:10.3f} {1e3 * medians[1]:10.3f} {row['ratio']:6.2f} {minima:6.2f} "
              + "".join(f"{share:13.1%}" for share in shares))  # fmt: skip
    for row in results:
        if "error" in row:
            print(f"{row['name']:66} ERROR {row['error']}")
    if measured:
        worst = min(measured, key=lambda row: row["ratio"])
        mean = math.exp(statistics.mean(math.log(row["ratio"]) for row in measured))
        slow = sum(row["ratio"] < 1 / 1.25 for row in measured)
        print(f"\n{len(measured)} rows of {len(results)}: geometric mean of the ratios {mean:.3f}; "
              f"{slow} rows below 0.8; worst {worst['ratio']:.3f}: {worst['name']}")  # fmt: skip


def main() -> None:
    """Parses the command line; runs the comparison, or a worker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segjax-python", default=sys.executable)
    parser.add_argument("--peer-python", default=os.environ.get("SEGJAX_PEER_PYTHON"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", default="", metavar="REGEX", help="rows whose name it is found in")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=3, help="timed calls per round and side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0.02, help="seconds before each side's turn")
    parser.add_argument("--copies", type=int, help="inputs per call: 1 on the cpu, 16 on cuda")
    parser.add_argument("--bandwidth", type=float, default=4.8, help="of the device's memory, TB/s (an H200's)")
    parser.add_argument("--peer-allocator", choices=("default", "keep"), default="keep")
    parser.add_argument("--realtime", action="store_true")
    parser.add_argument("--json", type=pathlib.Path, help="file for every time")
    parser.add_argument("--worker", choices=("segjax", "torch"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.copies = arguments.copies or (1 if arguments.device == "cpu" else 16)
    if arguments.worker:
        worker(arguments)
        return
    if not arguments.peer_python:
        parser.error("--peer-python (or SEGJAX_PEER_PYTHON): a Python that has torch")
    rows = list(rows_of(arguments.device, arguments.only))
    if not rows:
        parser.error(f"--only={arguments.only!r} finds no row")
    load = lambda: f"load average {os.getloadavg()[0]:.1f}, {time.strftime('%Y-%m-%d %H:%M')}"
    sides = {side: start(side, python, arguments)
             for side, python in (("segjax", arguments.segjax_python), ("torch", arguments.peer_python))}  # fmt: skip
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
