"""One device, jit over a mesh and pmap take the same five steps; shapes, copies and donation of the two wrappers."""

import os
import pathlib
import socket
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest
import small_net

from segjax import augment, losses
from segjax.training import optimizer, parallel, state, step
from segjax.types import DATA_AXIS

AUGMENT = {
    "size": (8, 10), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "ignore_label": 255,
    "scale": (0.5, 2.0), "brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1,
}  # fmt: skip
LOSS = losses.build("cross_entropy", num_classes=small_net.CLASSES, ignore_label=255)


def five_steps(way, devices, *, accumulate=1, rows=slice(None)):
    tx, _ = optimizer.make_optimizer(
        name="sgd", learning_rate=0.1, total_steps=8, warmup_steps=2, momentum=0.9, weight_decay=1e-3
    )
    axis = DATA_AXIS if way == "pmap" else None
    net = small_net.make(axis_name=axis, dropout=0.3)
    one = step.make_train_step(
        net.apply, LOSS, tx, axis_name=axis, augment=augment.make_augment(**AUGMENT), accumulate=accumulate,
        ema_decay=0.9,
    )  # fmt: skip
    devices = jax.devices()[:devices]
    run = parallel.pmap_step(one, devices) if way == "pmap" else parallel.jit_step(one, parallel.make_mesh(devices))
    now, history = state.create(net.init(), tx, key=jax.random.key(3), ema=True), []
    for i in range(5):
        now, metrics = run(now, {name: value[rows] for name, value in small_net.batch(i).items()})
        history.append(jax.device_get(metrics))
    return jax.device_get(now), history


@pytest.fixture(scope="module")
def alone():
    return five_steps("jit", 1)


@pytest.mark.parametrize(
    ("way", "devices"),
    [
        ("jit", 8),
        ("pmap", 8),
        *(pytest.param(*few, marks=pytest.mark.slow) for few in (("jit", 2), ("pmap", 1), ("pmap", 4))),
    ],
)
def test_five_steps_agree_on_any_devices(way, devices, alone):
    expected, expected_history = alone
    mine, history = five_steps(way, devices)
    assert jax.tree.structure(mine) == jax.tree.structure(expected)
    assert small_net.distance(mine, expected) < 1e-5
    for part in ("params", "batch_stats", "opt_state", "ema"):  # none hides behind another
        assert small_net.distance(getattr(mine, part), getattr(expected, part)) < 1e-5, part
    for metrics, theirs in zip(history, expected_history, strict=True):
        for name, value in metrics.items():
            np.testing.assert_allclose(value, theirs[name], rtol=1e-4, err_msg=name)


def test_the_steps_move_and_draw(alone):
    """What the agreement is worth: the run changes every part of the state, and its draws matter."""
    final, history = alone
    first = small_net.make().init()
    assert small_net.distance(final.params, first["params"]) > 0.05
    assert small_net.distance(final.batch_stats, first["batch_stats"]) > 0.05
    assert small_net.distance(final.ema["params"], final.params) > 1e-3
    assert int(final.step) == 5 and all(metrics["finite"] for metrics in history)


def test_accumulated_steps_agree_on_any_devices():
    assert small_net.distance(five_steps("pmap", 4, accumulate=2)[0], five_steps("jit", 2, accumulate=2)[0]) < 1e-5


@pytest.mark.parametrize("way", ["jit", "pmap"])
def test_a_batch_that_the_devices_do_not_divide_is_refused(way):
    run = parallel.jit_step(print, parallel.make_mesh()) if way == "jit" else parallel.pmap_step(print)
    net, tx = small_net.make(), optimizer.make_optimizer(name="sgd", learning_rate=0.1, total_steps=1)[0]
    first = state.create(net.init(), tx, key=jax.random.key(0))
    with pytest.raises(ValueError, match="12 examples .* 8 devices: use a batch size of 8 or 16"):
        run(first, small_net.batch(rows=12))
    with pytest.raises(ValueError, match="3 examples .* 8 devices: use a batch size of 8,"):
        run(first, small_net.batch(rows=3))


@pytest.mark.parametrize("way", ["jit", "pmap"])
def test_the_callers_state_stays_and_the_returned_one_is_donated(way):
    axis = DATA_AXIS if way == "pmap" else None
    net, tx = small_net.make(axis_name=axis), optimizer.make_optimizer(name="sgd", learning_rate=0.1, total_steps=1)[0]
    one = step.make_train_step(net.apply, LOSS, tx, axis_name=axis)
    run = parallel.pmap_step(one) if way == "pmap" else parallel.jit_step(one, parallel.make_mesh())
    data = small_net.as_float(small_net.batch())
    first = state.create(net.init(), tx, key=jax.random.key(0))
    before = jax.device_get(first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second, _ = run(first, data)
        third, metrics = run(second, data)
    assert not first.params["conv"]["kernel"].is_deleted() and second.params["conv"]["kernel"].is_deleted()
    assert small_net.distance(first.params, before.params) == 0.0
    assert third.params["conv"]["kernel"].shape == first.params["conv"]["kernel"].shape
    assert third.step.shape == metrics["loss"].shape == ()


def test_replicate_copies_and_shard_batch_places_rows():
    mesh = parallel.make_mesh()
    original = {"a": jax.numpy.arange(6.0)}
    copy = parallel.replicate(original, mesh)
    assert copy["a"].sharding.is_fully_replicated and len(copy["a"].sharding.device_set) == 8
    copy["a"].delete()
    np.testing.assert_array_equal(original["a"], np.arange(6.0))
    rows = parallel.shard_batch({"x": np.arange(16)}, mesh)
    assert [shard.data.tolist() for shard in rows["x"].addressable_shards] == [[2 * i, 2 * i + 1] for i in range(8)]
    assert parallel.shard_batch(rows, mesh)["x"] is rows["x"]
    with pytest.raises(ValueError, match="found none"):
        parallel.make_mesh([])


PROCESS = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
process, port, way, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process, heartbeat_timeout_seconds=20)
import numpy as np
import small_net, test_parallel
rows = slice(8 * process, 8 * process + 8)
final, _ = test_parallel.five_steps(way, None, rows=rows)
np.savez(f"{folder}/{way}{process}.npz", *jax.tree.leaves(final))
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["jit", "pmap"])
def test_two_processes_agree_with_one(way, alone, tmp_path):
    """Each process feeds its own rows of the global batch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = pathlib.Path(__file__).parent
    path = os.pathsep.join([str(here.parents[1]), str(here)])
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(p), port, way, tmp_path], env=os.environ | {"PYTHONPATH": path}
        )
        for p in (0, 1)
    ]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    for p in (0, 1):
        stored = np.load(tmp_path / f"{way}{p}.npz")
        assert small_net.distance([stored[name] for name in stored.files], jax.tree.leaves(alone[0])) < 1e-5
