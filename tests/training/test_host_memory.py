"""The allocator keeps freed memory: measured by the page faults of a block that is freed and taken again."""

import os
import subprocess
import sys

from segjax.training import host_memory

PROGRAM = """
import ctypes, resource, sys
from segjax.training.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes, libc.memset.argtypes = (
    ctypes.c_void_p, [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t])
size = 256 << 20
for turn in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(ctypes.c_size_t(size))
    libc.memset(block, 1, size)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(mode: str) -> int:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM, mode]
    return int(subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout)


def test_a_block_taken_again_costs_no_page_faults():
    assert _faults("keep") < 1000


def test_without_it_every_block_would():
    """So that the test above cannot pass by itself (with transparent huge pages always on a fault covers 512 pages)."""
    assert _faults("leave") >= 128


def test_it_stays_away_from_accelerators(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert not host_memory.keep_freed_memory()
