"""Images per second of the input pipeline alone, against a torch DataLoader with the same number of workers.

    SEGJAX_DATA=DATA SEGJAX_PEER_PYTHON=PYTHON_WITH_TORCH python benchmarks/pipeline.py

Both decode the same JPEG images and PNG labels (CamVid, 480x360, train split) with Pillow, shuffle, and make batches of
8: u8[8, 360, 480, 3] and i32[8, 360, 480]. No resizing, no augmentation. The two run in turns, each in a fresh process,
and only steady batches are timed. `--modes` measures segjax alone: threads and processes, with and without the cache.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

BATCH = 8
WARM = 6  # batches before the clock starts: the buffers are full by then, and `batches` is far more than they hold


def timed(batches, count: int) -> float:
    """Returns images per second over `count` batches after the warm-up."""
    for _ in range(WARM):
        next(batches)
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    return BATCH * count / (time.perf_counter() - start)


def run_segjax(root: str, workers: int, mode: str, cache: bool, count: int) -> float:
    """Returns images per second of segjax's training batches."""
    from segjax import data
    from segjax.data import pipeline

    dataset = data.build("folder", split="train", root=root, folder="camvid")
    if cache:
        pipeline.verify(dataset, size=(360, 480), cache=True)
    with pipeline.train_batches(
        dataset, size=(360, 480), batch_size=BATCH, seed=0, workers=workers, worker_mode=mode, cache=cache
    ) as batches:
        return timed(batches, count)


def run_torch(root: str, workers: int, count: int) -> float:
    """Returns images per second of a torch DataLoader."""
    import numpy as np
    import torch
    from PIL import Image

    place = pathlib.Path(root, "camvid") if pathlib.Path(root, "camvid").is_dir() else pathlib.Path(root)
    images = sorted((place / "train").glob("*.jpg"))

    class Set(torch.utils.data.Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, i):
            image = np.array(Image.open(images[i]).convert("RGB"))
            label = np.array(Image.open(place / "trainannot" / f"{images[i].stem}.png"), dtype=np.int32)
            return torch.from_numpy(image), torch.from_numpy(label)

    sampler = torch.utils.data.RandomSampler(Set(), replacement=False, num_samples=100 * len(images))
    loader = torch.utils.data.DataLoader(
        Set(), batch_size=BATCH, sampler=sampler, num_workers=workers, persistent_workers=workers > 0, drop_last=True
    )
    torch.set_num_threads(1 if workers else torch.get_num_threads())
    return timed(iter(loader), count)


def child(python: str, **job) -> float:
    """Runs one measurement in a fresh process."""
    command = [python, __file__, "--job", json.dumps(job)]
    out = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."})
    return json.loads(out.stdout.splitlines()[-1])


def job(spec: dict) -> None:
    """The child's side of `child`."""
    kind = spec.pop("kind")
    print(json.dumps((run_segjax if kind == "segjax" else run_torch)(**spec)))


def against_torch(args: argparse.Namespace) -> None:
    """Prints one row per worker count: medians over the rounds and their ratio."""
    peer = os.environ.get("SEGJAX_PEER_PYTHON", sys.executable)
    print(f"{'workers':>8} {'segjax img/s':>24} {'torch img/s':>24} {'ratio':>6}")
    for workers in args.workers:
        ours, theirs = [], []
        for _ in range(args.rounds):
            common = {"root": args.root, "workers": workers, "count": args.batches}
            ours.append(child(sys.executable, kind="segjax", mode=args.mode, cache=False, **common))
            theirs.append(child(peer, kind="torch", **common))
        cells = [f"{statistics.median(x):7.1f} ({min(x):.0f} .. {max(x):.0f})" for x in (ours, theirs)]
        ratio = statistics.median(ours) / statistics.median(theirs)
        print(f"{workers:>8} {cells[0]:>24} {cells[1]:>24} {ratio:6.2f}", flush=True)


def modes(args: argparse.Namespace) -> None:
    """Prints segjax's own modes."""
    print(f"{'mode':>10} {'workers':>8} {'cache':>6} {'img/s':>24}")
    for mode in ("threads", "processes"):
        for workers in args.workers:
            for cache in (False, True):
                if mode == "processes" and (workers == 0 or cache):
                    continue
                spec = {"root": args.root, "workers": workers, "count": args.batches, "mode": mode, "cache": cache}
                rates = [child(sys.executable, kind="segjax", **spec) for _ in range(args.rounds)]
                cell = f"{statistics.median(rates):7.1f} ({min(rates):.0f} .. {max(rates):.0f})"
                print(f"{mode:>10} {workers:>8} {cache!s:>6} {cell:>24}", flush=True)


def main() -> None:
    """Reads the flags and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=os.environ.get("SEGJAX_DATA", ""), help="the folder that holds camvid/")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=46, help="timed batches of 8 (46 is one epoch)")
    parser.add_argument("--mode", default="threads", choices=("threads", "processes"))
    parser.add_argument("--modes", action="store_true", help="segjax alone, every mode")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        return job(json.loads(args.job))
    if not args.root:
        parser.error("--root or SEGJAX_DATA must name the folder that holds camvid/")
    print(f"CamVid train, 480x360, JPEG and PNG, batch {BATCH}, {os.cpu_count()} CPU cores, {args.rounds} rounds")
    return modes(args) if args.modes else against_torch(args)


if __name__ == "__main__":
    main()
