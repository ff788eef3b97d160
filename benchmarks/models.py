"""Forward pass and training step of every model, the rows of models_rows.py: segjax against PyTorch, in turns.

    python benchmarks/models.py --peer-python=PYTHON_WITH_SMP                    (or SEGJAX_PEER_PYTHON)
    python benchmarks/models.py --peer-python=PYTHON --only='FCN.*training' --rounds 9
    python benchmarks/models.py --device=cuda --peer-python=PYTHON_WITH_SMP      bfloat16, larger batches, torch.compile

The twin of a network is torchvision's, segmentation_models_pytorch's (smp's) or, where neither has it, a plain module
of models_torch.py. A row counts only if both sides have as many parameters and logits of one shape. Random weights,
the same batch, on the device before the clock starts; a training step is the forward pass with dropout, cross entropy
over all pixels, the gradient and SGD with momentum 0.9; a call ends when its logits (its loss) are there.

Each side is a process of its own with --threads threads, and PyTorch has two: one in NCHW, one in channels_last
(NHWC); all stay alive, and each round times one call of each. Every round is printed, then per row the ratio of the
medians, torch / segjax, torch in the layout that is faster in this row (above 1: segjax is faster), the geometric mean
over the rows and the worst row. segjax runs as its entry points do (make_train_step, jit_step, freed memory kept);
PyTorch's allocator has the same settings (--peer-allocator=default: the system's, as an untouched PyTorch program has
them). --realtime takes the cores away from every other process while a call runs (Linux, root).
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

from models_rows import CASES, PARTS, segjax_calls, torch_calls
from ops import ask
from train_step import keep_freed_memory, realtime

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIDES = ("segjax", "NCHW", "NHWC")


def worker(arguments: argparse.Namespace) -> None:
    """Answers each JSON line on standard input with one on standard output: a model to prepare, or a call to time."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print goes to standard error
    if arguments.worker == "segjax":
        sys.path.insert(0, str(ROOT))
        from segjax.training import host_memory

        host_memory.keep_freed_memory()
        import jax

        assert jax.default_backend() == {"cpu": "cpu", "cuda": "gpu"}[arguments.device], jax.devices()
        versions = f"jax {jax.__version__}"
    else:
        if arguments.peer_allocator == "keep":
            keep_freed_memory()
        import torch

        torch.set_num_threads(arguments.threads)
        versions = f"torch {torch.__version__}"
    print(json.dumps({"versions": f"python {platform.python_version()}, {versions}"}), file=out, flush=True)
    kept = {}
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), kept, arguments)), file=out, flush=True)


def answer(question: dict, kept: dict, arguments: argparse.Namespace) -> dict:
    """{"case": number, "parts": names} makes what {"part": name} times once; an error is the row's."""
    if "part" in question:
        with realtime(arguments.realtime):
            start = time.perf_counter()
            kept[question["part"]]()
            return {"seconds": time.perf_counter() - start}
    kept.clear()
    try:
        case = CASES[question["case"]]
        if arguments.worker == "segjax":
            parameters, logits, calls = segjax_calls(case, arguments)
        else:
            parameters, logits, calls = torch_calls(case, arguments, arguments.worker)
        kept.update({part: calls[part] for part in question["parts"]})
        losses = [call() for call in kept.values() for _ in range(2)]
        if any(loss is not None and not math.isfinite(loss) for loss in losses):
            return {"error": f"losses {losses}"}
        return {"parameters": parameters, "logits": list(logits)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def start(side: str, python: str, arguments: argparse.Namespace) -> subprocess.Popen:
    """A worker, with its number of threads fixed."""
    n = str(arguments.threads)
    environment = dict(os.environ, OMP_NUM_THREADS=n, MKL_NUM_THREADS=n, PYTHONUNBUFFERED="1")
    if arguments.device == "cpu":
        environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    else:  # three processes share the device: none may take most of its memory at the start
        environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    command = [python, __file__, "--worker", side, "--device", arguments.device, "--threads", n,
               "--peer-allocator", arguments.peer_allocator]  # fmt: skip
    if arguments.realtime:
        command.append("--realtime")
    if arguments.device == "cpu" and hasattr(os, "sched_getaffinity"):  # XLA starts a thread per core it may use
        cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
        command = ["taskset", "-c", ",".join(map(str, cores)), *command]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def measure(sides: dict[str, subprocess.Popen], number: int, parts: list[str], arguments: argparse.Namespace) -> list:
    """One model in turns: per part {"name", a list of seconds for each side, "ratio"}, or {"name", "error"}."""
    case = CASES[number]
    batch, pixels = getattr(case, arguments.device)
    name = f"{case.name} {batch}x{pixels}x{pixels}"
    answers = {side: ask(process, {"case": number, "parts": parts}) for side, process in sides.items()}
    errors = [f"{side}: {a['error'].splitlines()[0]}" for side, a in answers.items() if "error" in a]
    if not errors and any(a != answers["segjax"] for a in answers.values()):
        errors = [f"the networks differ: {answers}"]
    if errors:
        print(f"{name} ERROR {'; '.join(errors)}", flush=True)
        return [{"name": f"{name} {part}", "error": "; ".join(errors)} for part in parts]
    print(f"{name}: {answers['segjax']['parameters']} parameters, logits {answers['segjax']['logits']}", flush=True)
    rows = []
    for part in parts:
        seconds = {side: [] for side in sides}
        for _ in range(arguments.rounds):
            for side, process in sides.items():
                time.sleep(arguments.pause)
                seconds[side].append(ask(process, {"part": part})["seconds"])
        for side, times in seconds.items():
            print(f"  {part:14} {side:6} ms {' '.join(f'{1e3 * t:.1f}' for t in times)}", flush=True)
        rows.append({"name": f"{name} {part}", "seconds": seconds, **ratios(seconds)})
    return rows


def ratios(seconds: dict[str, list[float]]) -> dict:
    """PyTorch's faster layout, and its median (minimum) over segjax's."""
    layout = min(SIDES[1:], key=lambda side: statistics.median(seconds[side]))
    ratio, minima = (f(seconds[layout]) / f(seconds["segjax"]) for f in (statistics.median, min))
    return {"layout": layout, "ratio": ratio, "minima": minima}


def report(results: list[dict]) -> None:
    """The table, the geometric means and the worst row."""
    measured = [row for row in results if "ratio" in row]
    print(f"\n{'medians, ms':60} {'segjax':>9} {'NCHW':>9} {'NHWC':>9} {'ratio':>6} {'minima':>6}")
    for row in measured:
        medians = " ".join(f"{1e3 * statistics.median(row['seconds'][side]):9.1f}" for side in SIDES)
        print(f"{row['name']:60} {medians} {row['ratio']:6.2f} {row['minima']:6.2f}")
    for row in results:
        if "error" in row:
            print(f"{row['name']:60} ERROR {row['error']}")
    for part in ("", *PARTS):
        rows = [row for row in measured if row["name"].endswith(part)]
        if rows:
            worst = min(rows, key=lambda row: row["ratio"])
            mean = math.exp(statistics.mean(math.log(row["ratio"]) for row in rows))
            slow = sum(row["ratio"] < 1 / 1.25 for row in rows)
            print(f"{part or 'all'}: {len(rows)} rows, geometric mean of the ratios {mean:.3f}; {slow} below 0.8; "
                  f"worst {worst['ratio']:.3f}: {worst['name']}")  # fmt: skip


def main() -> None:
    """Parses the command line; runs the comparison, or a worker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segjax-python", default=sys.executable)
    parser.add_argument("--peer-python", default=os.environ.get("SEGJAX_PEER_PYTHON"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", default="", metavar="REGEX", help="rows whose name it is found in")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds before each side's turn")
    parser.add_argument("--peer-allocator", choices=("default", "keep"), default="keep")
    parser.add_argument("--realtime", action="store_true")
    parser.add_argument("--json", type=pathlib.Path, help="file for every time")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    if not arguments.peer_python:
        parser.error("--peer-python (or SEGJAX_PEER_PYTHON): a Python that has torchvision and smp")
    wanted = [[part for part in PARTS if re.search(arguments.only, f"{case.name} {part}")] for case in CASES]
    if not any(wanted):
        parser.error(f"--only={arguments.only!r} finds no row")
    load = lambda: f"load average {os.getloadavg()[0]:.1f}, {time.strftime('%Y-%m-%d %H:%M')}"
    header = [f"{platform.platform()}, {os.cpu_count()} cores, {arguments.threads} threads a side, {load()}"]
    pythons = {side: arguments.segjax_python if side == "segjax" else arguments.peer_python for side in SIDES}
    sides = {side: start(side, python, arguments) for side, python in pythons.items()}
    try:
        header += [f"{side}: {ask(process)['versions']}" for side, process in sides.items()]
        header.append("python " + " ".join(sys.argv))
        print("\n".join(header), flush=True)
        results = [row for n, parts in enumerate(wanted) if parts for row in measure(sides, n, parts, arguments)]
    finally:
        for process in sides.values():
            process.stdin.close()
            process.wait()
    report(results)
    print(load(), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"header": [*header, load()], "rows": results}, indent=1))
    if any("error" in row for row in results):
        raise SystemExit("some rows have no figure")


if __name__ == "__main__":
    main()
