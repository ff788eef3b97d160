"""Checkpoints: bit for bit, the right ones kept, nothing damaged loaded."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import struct

from segjax.training import checkpoint_files
from segjax.training.checkpoint import Checkpoints, NoCheckpoint, restore_variables
from segjax.training.retention import LatestAndBest
from segjax.types import InputError


@struct.dataclass
class State:
    """As the training state: a tree of dicts, tuples, odd dtypes and empty places."""

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    key: Any


def make_state(seed: int = 0, classes: int = 5, ema: bool = False) -> State:
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((3, 3, 4, classes)).astype(np.float32)
    params = {
        "head": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(classes)},
        "scale": jnp.asarray(1.5, jnp.bfloat16),
    }
    return State(
        step=jnp.asarray(seed, jnp.int32),
        params=params,
        batch_stats={"norm": {"mean": jnp.asarray([np.nan, -0.0, np.inf, 1e-42], jnp.float32)}},
        opt_state=(jax.tree.map(jnp.zeros_like, params), (), (jnp.asarray(7, jnp.int32), jnp.zeros((0, 3)))),
        ema=jax.tree.map(lambda leaf: leaf + 1, params) if ema else {},
        key=jax.random.PRNGKey(seed),
    )


def abstract(state: State) -> State:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def assert_same_bits(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == np.asarray(b).tobytes()


def data_files(step_folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in sorted((step_folder / "state").rglob("*")) if path.is_file() and path.parent.name == "d"]


def fill(directory: pathlib.Path, scores: dict[int, float | None], **options: Any) -> None:
    with Checkpoints(directory, **options) as checkpoints:
        for step, miou in scores.items():
            checkpoints.save(step, make_state(step), metrics=None if miou is None else {"miou": miou})


def test_restored_state_is_bit_for_bit_the_saved_one(tmp_path):
    state = make_state(3, ema=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(3, state, metrics={"miou": np.float32(0.5)})
        restored, step, info = checkpoints.restore(abstract(state))
    assert step == 3 and info["data_position"] == 3 and info["metrics"] == {"miou": 0.5}
    assert_same_bits(restored, state)


def test_a_donated_state_is_saved_as_it_was_when_save_was_called(tmp_path):
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)
    state = {"params": {"kernel": jnp.arange(2_000_000, dtype=jnp.float32)}}
    expected = np.array(state["params"]["kernel"])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        for _ in range(5):
            state = overwrite(state)
        restored, _, _ = checkpoints.restore(state)
    np.testing.assert_array_equal(restored["params"]["kernel"], expected)


def test_a_state_replicated_over_eight_devices(tmp_path):
    mesh = jax.make_mesh((8,), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = make_state(2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, jax.device_put(jax.device_get(state), everywhere))
        restored, _, _ = checkpoints.restore(abstract(state))
    assert_same_bits(restored, state)


@pytest.mark.parametrize(
    ("scores", "kept", "best"),
    [
        ({1: None, 2: None, 3: None}, [2, 3], None),
        ({1: 0.3, 2: 0.9, 3: 0.5, 4: 0.4}, [2, 3, 4], 2),
        ({1: 0.3, 2: 0.9, 3: 0.5, 4: 0.4, 5: None, 6: None}, [2, 5, 6], 2),
        ({1: 0.9, 2: float("nan"), 3: 0.0, 4: 0.1}, [1, 3, 4], 1),
        ({1: 0.5, 2: 0.5, 3: None, 4: None}, [2, 3, 4], 2),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, scores, kept, best):
    fill(tmp_path, scores, keep_last=2, keep_best=1)
    for read_only in (True, False):
        checkpoints = Checkpoints(tmp_path, read_only=read_only)
        assert checkpoints.steps() == kept
        assert checkpoints.best_step() == best
        _, step, _ = checkpoints.restore(abstract(make_state()), which="best")
        assert step == (best or kept[-1])


def test_the_policy_by_its_definition():
    class At:
        def __init__(self, step: int) -> None:
            self.step = step

    policy = LatestAndBest(2, 2, {1: 0.9, 2: 0.1, 3: 0.8, 4: 0.95})
    assert policy.should_preserve([At(step) for step in (1, 2, 3, 4, 5, 6)], context=None) == [
        True,
        False,
        False,
        True,
        True,
        True,
    ]
    assert LatestAndBest(1, 0, {1: 0.9}).should_preserve([At(1), At(2)], context=None) == [False, True]


def test_the_best_is_remembered_when_the_folder_is_opened_again(tmp_path):
    fill(tmp_path, {1: 0.9, 2: 0.1})
    fill(tmp_path, {3: 0.2, 4: 0.3, 5: None})
    assert Checkpoints(tmp_path).steps() == [1, 4, 5]


def test_saving_a_step_again_changes_nothing_but_adds_metrics(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1))
        assert not checkpoints.save(1, make_state(9), metrics={"miou": 0.75})
        assert not checkpoints.save(1, make_state(9), metrics={"miou": 0.1})
        checkpoints.save(2, make_state(2), metrics={"miou": 0.5})
        checkpoints.save(3, make_state(3))
        checkpoints.save(4, make_state(4))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step() == 1 and checkpoints.steps() == [1, 3, 4]
        restored, _, info = checkpoints.restore(abstract(make_state()), which=1)
        assert info["metrics"] == {"miou": 0.75}
        assert_same_bits(restored, make_state(1))
        with pytest.raises(ValueError, match="older than the newest"):
            checkpoints.save(2, make_state(2))


def flip(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(255 - byte for byte in content[middle : middle + 8])
    path.write_bytes(bytes(content))


def largest_data_file(folder: pathlib.Path) -> pathlib.Path:
    return max(data_files(folder), key=lambda path: path.stat().st_size)


def rewrite_metrics(folder: pathlib.Path) -> None:
    path = folder / "info" / "metadata"
    path.write_text(path.read_text().replace('"miou": 0.5', '"miou": 0.9'))


def drop_leaf_from_json(folder: pathlib.Path) -> None:
    path = folder / "info" / "metadata"
    info = json.loads(path.read_text())
    del info["leaves"]["params/scale"]
    info["crc32"] = checkpoint_files._seal(info)
    path.write_text(json.dumps(info))


def empty_folder(folder: pathlib.Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def empty_file(path: pathlib.Path) -> None:
    path.write_bytes(b"")


DAMAGES = {
    "flipped bytes": lambda folder: flip(largest_data_file(folder)),
    "truncated data": lambda folder: os.truncate(largest_data_file(folder), 100),
    "emptied data": lambda folder: empty_file(largest_data_file(folder)),
    "missing data": lambda folder: largest_data_file(folder).unlink(),
    "empty folder": empty_folder,
    "no state": lambda folder: shutil.rmtree(folder / "state"),
    "no manifest": lambda folder: (folder / "state" / "manifest.ocdbt").unlink(),
    "flipped manifest": lambda folder: flip(folder / "state" / "manifest.ocdbt"),
    "no tree": lambda folder: (folder / "state" / "_METADATA").unlink(),
    "emptied tree": lambda folder: empty_file(folder / "state" / "_METADATA"),
    "no json": lambda folder: shutil.rmtree(folder / "info"),
    "emptied json": lambda folder: empty_file(folder / "info" / "metadata"),
    "truncated json": lambda folder: os.truncate(folder / "info" / "metadata", 200),
    "altered score": rewrite_metrics,
    "one leaf too many": drop_leaf_from_json,
    "another step's folder": lambda folder: (shutil.rmtree(folder), shutil.copytree(folder.parent / "1", folder)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken(tmp_path, damage):
    fill(tmp_path, {1: 0.1, 2: 0.5})
    DAMAGES[damage](tmp_path / "2")

    lines: list[str] = []
    reader = Checkpoints(tmp_path, read_only=True, warn=lines.append)
    _, step, _ = reader.restore(abstract(make_state()), which="best")
    assert step == 1 and reader.skipped[0][0] == 2
    assert (tmp_path / "2").exists() and not (tmp_path / "damaged").exists()

    lines.clear()
    with Checkpoints(tmp_path, warn=lines.append) as checkpoints:
        restored, step, _ = checkpoints.restore(abstract(make_state()))
        assert step == 1
        assert_same_bits(restored, make_state(1))
        assert [found for found, _ in checkpoints.skipped] == [2]
        assert len(lines) == 1 and str(tmp_path / "damaged" / "2") in lines[0] and "checkpoint 2" in lines[0]
        assert (tmp_path / "damaged" / "2").is_dir() and not (tmp_path / "2").exists()
        assert checkpoints.save(2, make_state(2))
        restored, step, _ = checkpoints.restore(abstract(make_state()))
        assert step == 2
        assert_same_bits(restored, make_state(2))


def test_flipped_bytes_that_orbax_does_not_notice(tmp_path):
    kernel = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"kernel": kernel})
    flip(largest_data_file(tmp_path / "1"))
    restored = ocp.PyTreeCheckpointHandler().restore(tmp_path / "1" / "state", args=ocp.args.PyTreeRestore())
    assert 0 < np.sum(restored["kernel"] != kernel) < 1_000_000
    with pytest.raises(NoCheckpoint, match="1: leaf kernel: crc32 .*, saved as"):
        Checkpoints(tmp_path, read_only=True).restore({"kernel": kernel})


def test_an_undamaged_checkpoint_passes_every_check_above(tmp_path):
    fill(tmp_path, {1: 0.1, 2: 0.5})
    with Checkpoints(tmp_path, warn=pytest.fail) as checkpoints:
        assert checkpoints.restore(abstract(make_state()))[1] == 2


def test_a_damaged_best_does_not_push_a_good_one_out(tmp_path):
    fill(tmp_path, {1: 0.9, 2: 0.8, 3: 0.1})
    flip(largest_data_file(tmp_path / "1"))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(make_state()))[1] == 3
        checkpoints.save(4, make_state(4), metrics={"miou": 0.2})
        checkpoints.save(5, make_state(5), metrics={"miou": 0.2})
        assert checkpoints.steps() == [2, 4, 5] and checkpoints.best_step() == 2
    assert (tmp_path / "damaged" / "1").is_dir()


def test_nothing_whole_is_an_error_that_lists_what_was_found(tmp_path):
    with pytest.raises(NoCheckpoint, match="nothing has been saved"):
        Checkpoints(tmp_path / "absent", read_only=True).restore({})
    assert not (tmp_path / "absent").exists()
    fill(tmp_path, {1: None})
    flip(largest_data_file(tmp_path / "1"))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(NoCheckpoint, match="not whole are\n  1: "):
        checkpoints.restore(abstract(make_state()))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == []


def test_a_step_that_is_damaged_twice_keeps_both_remains(tmp_path):
    for _ in range(2):
        fill(tmp_path, {1: None})
        empty_folder(tmp_path / "1")
    Checkpoints(tmp_path)
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["1", "1-2"]


def test_an_unfinished_save_is_no_checkpoint_and_is_cleared_with_a_word(tmp_path):
    fill(tmp_path, {1: None})
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", unfinished)
    assert Checkpoints(tmp_path, read_only=True).steps() == [1] and unfinished.exists()
    lines: list[str] = []
    with Checkpoints(tmp_path, warn=lines.append) as checkpoints:
        assert checkpoints.steps() == [1]
        assert "cut short" in lines[0] and not unfinished.exists()


@pytest.mark.parametrize(
    ("which", "message"), [(7, r"no checkpoint 7 .* \[1, 2\]"), ("newest", "'newest'"), (-1, "-1")]
)
def test_an_unknown_step_names_those_that_exist(tmp_path, which, message):
    fill(tmp_path, {1: None, 2: None})
    with pytest.raises(InputError, match=message):
        Checkpoints(tmp_path, read_only=True).restore(abstract(make_state()), which=which)


def test_another_number_of_classes_names_the_leaf_and_both_shapes(tmp_path):
    fill(tmp_path, {1: None})
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(
            InputError, match=r"opt_state/0/head/bias.*float32\[5\].*expected float32\[9\]|params/head/bias"
        ):
            checkpoints.restore(abstract(make_state(classes=9)))
        assert checkpoints.skipped == [] and checkpoints.steps() == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.replace(key=jax.ShapeDtypeStruct((2,), jnp.int32)), r"key is uint32\[2\], expected int32\[2\]"),
        (lambda s: s.replace(params=s.params | {"new": s.key}), "no leaf params/new"),
        (lambda s: s.replace(batch_stats={}), "1 leaves that this model has not.*batch_stats/norm/mean"),
    ],
)
def test_another_structure_or_dtype_is_refused(tmp_path, change, message):
    fill(tmp_path, {1: None})
    with pytest.raises(InputError, match=message):
        Checkpoints(tmp_path, read_only=True).restore(change(abstract(make_state())))


def test_variables_alone_with_or_without_moving_average(tmp_path):
    state = make_state(4, ema=True)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, state, metrics={"miou": 0.1})
    variables, step = restore_variables(tmp_path, "best")
    assert step == 4
    assert_same_bits(variables, {"params": state.params, "batch_stats": state.batch_stats})
    variables, _ = restore_variables(
        tmp_path, "latest", ema=True, expected={"params": state.params, "batch_stats": state.batch_stats}
    )
    assert_same_bits(variables, {"params": state.ema, "batch_stats": state.batch_stats})
    other = make_state(classes=3)
    with pytest.raises(InputError, match=r"params/head/bias is float32\[5\], expected float32\[3\]"):
        restore_variables(tmp_path, expected={"params": other.params, "batch_stats": other.batch_stats})
    fill(tmp_path / "plain", {1: None})
    with pytest.raises(InputError, match="no moving average"):
        restore_variables(tmp_path / "plain", ema=True)


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
def test_a_disk_that_really_is_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", disk], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        state = {"kernel": np.random.default_rng(0).standard_normal(500_000).astype(np.float32)}  # 2 MB
        checkpoints = Checkpoints(disk / "checkpoints")
        checkpoints.save(1, state, wait=True)
        with pytest.raises(InputError, match=r"disk full while saving checkpoint 2 .*2\.0 MB"):
            checkpoints.save(2, state, wait=True)
        checkpoints.close()
        with Checkpoints(disk / "checkpoints") as again:
            restored, step, _ = again.restore(state)
        assert step == 1
        assert_same_bits(restored, state)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_wrong_options_and_a_read_only_save(tmp_path):
    with pytest.raises(ValueError, match="keep_last=0"):
        Checkpoints(tmp_path, keep_last=0)
    with pytest.raises(ValueError, match="read-only"):
        Checkpoints(tmp_path, read_only=True).save(1, {})


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
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
