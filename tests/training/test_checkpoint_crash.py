"""Saving when the disk is full, when the process is killed, and from several processes."""

import os
import socket
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from made_checkpoints import abstract, assert_same_bits, fill, make_state

from segjax.training.checkpoint import Checkpoints
from segjax.types import InputError


def test_a_full_disk_names_the_folder_and_the_space_and_leaves_older_checkpoints(tmp_path, monkeypatch):
    """The error orbax meets when a write fails, in the background as it does there."""
    fill(tmp_path, {1: None})
    checkpoints = Checkpoints(tmp_path)
    manager = checkpoints._open_manager()

    def no_space(*_: Any, **__: Any) -> None:
        raise RuntimeError("wrapped") from OSError(28, "No space left on device")

    monkeypatch.setattr(manager, "wait_until_finished", no_space)
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    with pytest.raises(InputError, match=rf"disk full .*{tmp_path}.* MB.* MB are free.*\[1\]"):
        checkpoints.wait()
    assert not list(tmp_path.glob("*tmp*"))
    checkpoints.close()
    assert Checkpoints(tmp_path, read_only=True).restore(abstract(make_state()))[1] == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_really_is_full(tmp_path, capfd):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", disk], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        state = {f"kernel{i}": np.random.default_rng(i).standard_normal(50_000).astype(np.float32) for i in range(10)}
        checkpoints = Checkpoints(disk / "checkpoints")
        checkpoints.save(1, state, wait=True)
        with pytest.raises(InputError, match=r"disk full while saving checkpoint 2 .*2\.0 MB"):
            checkpoints.save(2, state, wait=True)
        checkpoints.close()
        assert capfd.readouterr().err == ""
        with Checkpoints(disk / "checkpoints") as again:
            restored, step, _ = again.restore(state)
        assert step == 1
        assert_same_bits(restored, state)
    finally:
        subprocess.run(["umount", disk], check=True)


KILLED = """
import os, signal, sys, threading, time, numpy as np
from segjax.training.checkpoint import Checkpoints
state = {"kernel": np.arange(3_000_000, dtype=np.float32)}
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, state, wait=True)
checkpoints.save(2, {"kernel": state["kernel"] + 1})
time.sleep(float(sys.argv[2]))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("delay", [0.0, 0.03, 0.3])
def test_kill_9_in_the_middle_of_a_save(tmp_path, delay):
    process = subprocess.run([sys.executable, "-c", KILLED, tmp_path, str(delay)], check=False)
    assert process.returncode == -9
    with Checkpoints(tmp_path) as checkpoints:
        restored, step, _ = checkpoints.restore({"kernel": jax.ShapeDtypeStruct((3_000_000,), np.float32)})
        assert step in (1, 2)
        np.testing.assert_array_equal(restored["kernel"], np.arange(3_000_000, dtype=np.float32) + (step - 1))
        assert checkpoints.skipped == []
        checkpoints.save(step + 1, restored, wait=True)
        assert checkpoints.steps()[-1] == step + 1


TWO_PROCESSES = """
import sys, jax, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]), heartbeat_timeout_seconds=10)
from jax.sharding import NamedSharding, PartitionSpec
from segjax.training.checkpoint import Checkpoints
mesh = jax.make_mesh((4,), ("data",))
local = np.arange(6.0, dtype=np.float32)
state = {"kernel": jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec()), local)}
with Checkpoints(sys.argv[1]) as checkpoints:
    for step in (1, 2, 3):
        checkpoints.save(step, state, metrics={"miou": 1 / step}, wait=True)
if jax.process_index() == 0:
    data = max((p for p in checkpoints.directory.glob("3/state/**/d/*")), key=lambda p: p.stat().st_size)
    data.write_bytes(b"")
jax.experimental.multihost_utils.sync_global_devices("damaged")
with Checkpoints(sys.argv[1]) as checkpoints:
    restored, step, _ = checkpoints.restore(state)
    assert step == 2 and checkpoints.steps() == [1, 2], (step, checkpoints.steps())
    np.testing.assert_array_equal(restored["kernel"], np.arange(6.0))
    checkpoints.save(3, state, wait=True)
    assert checkpoints.steps() == [1, 2, 3]
print("fine", flush=True)
"""


def test_two_processes_write_once_and_agree_on_what_is_damaged(tmp_path, unused_port):
    command = [sys.executable, "-c", TWO_PROCESSES, str(tmp_path), f"127.0.0.1:{unused_port}"]
    processes = [
        subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for i in range(2)
    ]
    outputs = [process.communicate(timeout=100)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert all("fine" in output for output in outputs)


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
