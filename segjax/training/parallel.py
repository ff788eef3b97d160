"""The same step on many devices: jit over a mesh (the default) or pmap. Both take and return the same types.

Under jit the batch is one global array sharded over its first axis and the state is replicated; XLA adds what
must be added. Under pmap the step and the model must have been made with ``axis_name=DATA_AXIS`` and add by psum.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax.training.state import TrainState
from segjax.training.step import Metrics, Step
from segjax.types import DATA_AXIS, Batch, PyTree


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh, "data", over the devices given or all there are (of every process).

    Args:
      devices: at least one device.
    Returns:
      Mesh with the axis DATA_AXIS.
    Raises:
      ValueError: no device.
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("a mesh needs at least one device, found none")
    return Mesh(np.asarray(devices), (DATA_AXIS,))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """A copy of every leaf on every device of the mesh; the originals stay usable even if the copy is donated.

    Args:
      tree: arrays, equal on every process.
      mesh: of ``make_mesh``.
    Returns:
      The tree with replicated global arrays.
    """
    sharding = NamedSharding(mesh, PartitionSpec())

    def place(leaf: object) -> jax.Array:
        # Through a copy on the host: device_put of a jax array may alias it, and a donated alias deletes the original.
        value = np.array(leaf)
        return jax.make_array_from_process_local_data(sharding, value, value.shape)

    return jax.tree.map(place, tree)


def shard_batch(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays, rows spread over the mesh, from this process's rows of the batch.

    Args:
      batch: arrays [B / processes, ...]; process p holds the rows from p B / processes on.
      mesh: of ``make_mesh``.
    Returns:
      {key: [B, ...] sharded over the first axis}.
    Raises:
      ValueError: the devices do not divide the global batch.
    """
    processes = len({device.process_index for device in mesh.devices.flat})
    sharding = NamedSharding(mesh, PartitionSpec(DATA_AXIS))

    def place(value: object) -> jax.Array:
        """This process's rows as part of a global array; one that is there already passes."""
        if isinstance(value, jax.Array) and value.sharding == sharding:
            return value
        value = np.asarray(value)
        rows = value.shape[0] * processes
        _check_rows(rows, mesh.size)
        return jax.make_array_from_process_local_data(sharding, value, (rows, *value.shape[1:]))

    return {name: place(value) for name, value in batch.items()}


def jit_step(step: Step, mesh: Mesh) -> Step:
    """The step under jit, state replicated and donated, batch sharded over the mesh.

    A state that is not on the mesh yet is copied there first (and stays usable); one that this function returned is
    donated: its buffers are gone after the next call.

    Args:
      step: of ``make_train_step`` with axis_name=None.
      mesh: of ``make_mesh``.
    Returns:
      step(state, batch) -> (state, metrics); the batch may be host arrays (this process's rows) or sharded ones.
    Raises:
      ValueError: at call, the devices do not divide the batch.
    """
    everywhere, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    compiled = jax.jit(step, in_shardings=(everywhere, rows), out_shardings=everywhere, donate_argnums=0)

    def run(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if getattr(state.step, "sharding", None) != everywhere:
            state = replicate(state, mesh)
        return compiled(state, shard_batch(batch, mesh))

    return run


def pmap_step(step: Step, devices: Sequence[jax.Device] | None = None) -> Step:
    """The step under pmap, called like that of ``jit_step``: no array has an axis of devices.

    The state is donated as there: one from elsewhere is copied first, one that this function returned is used up.

    Args:
      step: of ``make_train_step`` with axis_name=DATA_AXIS, its model built with the same.
      devices: those of this run, default all.
    Returns:
      step(state, batch) -> (state, metrics); batch: this process's rows, [B / processes, ...].
    Raises:
      ValueError: at call, this process's devices do not divide its rows.
    """
    devices = jax.devices() if devices is None else list(devices)
    local = sum(device.process_index == jax.process_index() for device in devices)
    mapped = jax.pmap(step, DATA_AXIS, in_axes=(None, 0), out_axes=None, devices=devices, donate_argnums=0)
    returned = None  # where pmap leaves its states: only those are ours to donate

    def run(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Copies a foreign state, splits the rows, steps."""
        nonlocal returned
        if getattr(state.step, "sharding", None) != returned:
            state = jax.tree.map(np.array, state)
        state, metrics = mapped(state, {name: _split(value, local) for name, value in batch.items()})
        returned = state.step.sharding
        return state, metrics

    return run


def _split(value: object, devices: int) -> np.ndarray:
    value = np.asarray(value)
    _check_rows(value.shape[0], devices)
    return value.reshape(devices, value.shape[0] // devices, *value.shape[1:])


def _check_rows(rows: int, devices: int) -> None:
    if rows % devices:
        above = -(-rows // devices) * devices
        near = f"{above - devices} or {above}" if above > devices else f"{above}"
        raise ValueError(
            f"a batch of {rows} examples cannot be split evenly over {devices} devices: use a batch size of {near}, "
            f"or a number of devices that divides {rows}"
        )
