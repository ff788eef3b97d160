"""The one evaluation: of the training loop, of ``segjax.evaluate`` and, as far as the arg-max, of ``segjax.predict``.

An image is fitted to the canvas (in ``data/pipeline.py``), the model runs on the canvas, the part of the logits that
the image occupies is resized bilinearly to the label's own size, and the arg-max is counted there. Two stages are
compiled apart: the forward pass once per canvas, the light second stage once per padded label size (multiples of 64;
the true sizes are traced), so that a set of many image sizes compiles its network once.

The counts are integers, so neither the batch size nor the number of devices or processes changes them, as long as the
logits are the same; padded rows are counted nowhere.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax import augment
from segjax.data import canvas
from segjax.inference.views import WHOLE, Views, make_logits
from segjax.metrics import confusion, conventions
from segjax.types import CONTENT_SIZE, DATA_AXIS, IMAGE, LABEL, VALID, Array, Batch, HostArray, Variables

RESOLUTIONS = ("native", "input")
NATIVE_SIZE, INDEX = "native_size", "index"  # i32[B, 2], i32[B]
_STEP_KEYS = (IMAGE, LABEL, VALID, CONTENT_SIZE, NATIVE_SIZE)
_SPLIT, _WHOLE = PartitionSpec(DATA_AXIS), PartitionSpec()

Apply = Callable[..., Mapping[str, Array]]
Read = Callable[[Array, Array, Array, tuple[int, int]], Array]
Predict = Callable[[Variables, Batch, tuple[int, int]], Array]
EvalStep = Callable[[Variables, confusion.Counts, Batch], tuple[confusion.Counts, Array]]


def resize_and_classify(logits: Array, content_size: Array, native_size: Array, padded_size: tuple[int, int]) -> Array:
    """Class of each pixel of one image at its own size, from logits on the canvas.

    The content is resized as ``ops.resize(method="bilinear")``: output i reads the input at
    (i + 0.5) content / native - 0.5, clamped to the content. No gradient is taken here, so rows and columns are
    gathered rather than multiplied by a matrix, and classes compared one by one, which XLA fuses into one pass
    (CPU, 192x256x11 to 384x512: 3 ms against 35 ms, and no logits of the native size in memory).

    Args:
        logits: f32[H, W, K] on the canvas.
        content_size: i32[2], rows and columns of the canvas, from the top left, that the image occupies; traced.
        native_size: i32[2], rows and columns of the result, traced.
        padded_size: (Hn, Wn), static, at least native_size; what lies outside native_size is unspecified.

    Returns:
        [Hn, Wn] class ids, the first of equals; K where a logit is NaN. u8 for K < 256, else i32.
    """
    return arg_max(resize_logits(logits, content_size, native_size, padded_size))


def resize_logits(logits: Array, content_size: Array, native_size: Array, padded_size: tuple[int, int]) -> Array:
    """The logits f32[Hn, Wn, K] that ``resize_and_classify`` takes the arg-max of; its arguments."""
    for axis in (0, 1):
        logits = _resize_axis(logits, axis, content_size[axis], native_size[axis], padded_size[axis])
    return logits


def make_predict(
    apply: Apply,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    mesh: Mesh | None = None,
    views: Views = WHOLE,
    read: Read = resize_and_classify,
) -> Predict:
    """Makes the function from a batch of canvases to class ids at native size.

    Args:
        apply: apply(variables, image f32[B, H, W, 3], train=False) -> {"logits": f32[B, H, W, K]}.
        mean: of each channel, subtracted from the image in [0, 1].
        std: of each channel, which divides it then.
        mesh: devices to split the batch over (axis "data"); None: the default device.
        views: the looks at an image that its logits are put together from.
        read: what becomes of an image's logits, with the arguments of ``resize_and_classify``.

    Returns:
        predict(variables, batch, padded_size) -> [B, Hn, Wn] class ids (or what ``read`` returns), with the keys
        "image", "content_size", "native_size" of the batch; compiled once per shape. The rows must divide evenly among
        the devices.
    """
    logits_of = make_logits(apply, views)

    def forward(variables: Variables, image: Array, content: Array) -> Array:
        normalised = augment.normalise({IMAGE: image}, mean, std)[IMAGE]
        return logits_of(variables, normalised, content)

    def classify(logits: Array, content: Array, native: Array, padded_size: tuple[int, int]) -> Array:
        def one(row: tuple[Array, Array, Array]) -> Array:
            return read(*row, padded_size)

        return jax.lax.map(one, (logits, content, native))  # one image's intermediates at a time in memory

    run_forward = jax.jit(_sharded(forward, mesh, (_WHOLE, _SPLIT, _SPLIT), _SPLIT))

    @functools.partial(jax.jit, static_argnums=3)
    def run_classify(logits: Array, content: Array, native: Array, padded_size: tuple[int, int]) -> Array:
        local = functools.partial(classify, padded_size=padded_size)
        return _sharded(local, mesh, (_SPLIT, _SPLIT, _SPLIT), _SPLIT)(logits, content, native)

    def predict(variables: Variables, batch: Batch, padded_size: tuple[int, int]) -> Array:
        logits = run_forward(variables, batch[IMAGE], batch[CONTENT_SIZE])
        return run_classify(logits, batch[CONTENT_SIZE], batch[NATIVE_SIZE], padded_size)

    return predict


def make_eval_step(
    apply: Apply,
    *,
    num_classes: int,
    ignore_label: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    mesh: Mesh | None = None,
    views: Views = WHOLE,
) -> EvalStep:
    """Makes the function that adds one batch to the counts.

    Args:
        apply: as ``make_predict``.
        num_classes: K.
        ignore_label: the label that counts nowhere.
        mean: as ``make_predict``.
        std: as ``make_predict``.
        mesh: as ``make_predict``.
        views: as ``make_predict``.

    Returns:
        step(variables, counts, batch) -> (counts, prediction [B, Hn, Wn]), with the keys of
        ``data.pipeline.eval_batches``; the counts are those of all devices of the mesh.

    Raises:
        ValueError: (the step) the model has another number of classes.
    """
    predict = make_predict(apply, mean=mean, std=std, mesh=mesh, views=views)

    def count(prediction: Array, label: Array, valid: Array) -> confusion.Counts:
        new = confusion.update(confusion.empty(num_classes), prediction, label, ignore_label=ignore_label, valid=valid)
        return new if mesh is None else jax.lax.psum(new, DATA_AXIS)

    @jax.jit
    def add(counts: confusion.Counts, prediction: Array, label: Array, valid: Array) -> confusion.Counts:
        new = _sharded(count, mesh, (_SPLIT, _SPLIT, _SPLIT), _WHOLE)(prediction, label, valid)
        return confusion.merge(counts, new)

    def step(variables: Variables, counts: confusion.Counts, batch: Batch) -> tuple[confusion.Counts, Array]:
        prediction = predict(variables, batch, batch[LABEL].shape[1:])
        return add(counts, prediction, batch[LABEL], batch[VALID]), prediction

    return step


def evaluate(
    apply: Apply,
    variables: Variables,
    batches: Iterable[Batch],
    *,
    num_classes: int,
    ignore_label: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    mesh: Mesh | None = None,
    resolution: str = "native",
    absent: str = "skip",
    convention: str = "segjax",
    views: Views = WHOLE,
    progress: Callable[[int], None] | None = None,
    collect: int = 0,
) -> dict[str, Any]:
    """Scores a model on batches of ``data.pipeline.eval_batches``.

    The processes of a group read different batches: each evaluates its own on its own devices, in its own pace, and
    the counts are added at the end. Call it with the same ``apply`` again and nothing is compiled anew.

    Args:
        apply: as ``make_predict``.
        variables: {"params", "batch_stats"}.
        batches: image u8[B, H, W, 3], label i32[B, Hn, Wn], valid bool[B], native_size, content_size i32[B, 2].
        num_classes: K.
        ignore_label: the label that counts nowhere.
        mean: as ``make_predict``.
        std: as ``make_predict``.
        mesh: the devices; a batch is filled up with rows that are not valid to a multiple of their number.
        resolution: "native": scored at the label's own size; "input": the label is fitted to the canvas (nearest)
            and scored there, as yardsticks that resize the labels are.
        absent: the policy of ``confusion.compute`` for classes without pixels.
        convention: of the scores, see ``conventions.compute``.
        views: as ``make_predict``.
        progress: called with the number of examples done, after each batch.
        collect: how many of the first examples to return as pictures.

    Returns:
        the scores of ``conventions.compute``, "counts" and "examples" (both of all processes), and "pictures" (of this
        one): a list of {"image": u8[h, w, 3], "label": i32[Hn, Wn], "prediction": [Hn, Wn], "index": int}.

    Raises:
        ValueError: unknown resolution, policy or convention.
    """
    if convention not in conventions.CONVENTIONS:  # before the work
        raise ValueError(f"convention is {convention!r}, expected one of {', '.join(conventions.CONVENTIONS)}")
    if resolution not in RESOLUTIONS:
        raise ValueError(f"resolution is {resolution!r}, expected one of {', '.join(RESOLUTIONS)}")
    mesh = None if mesh is None else mesh.local_mesh
    step = _cached_eval_step(
        apply,
        num_classes=num_classes,
        ignore_label=ignore_label,
        mean=tuple(mean),
        std=tuple(std),
        mesh=mesh,
        views=views,
    )
    variables = place_variables(variables, mesh)
    counts, examples, pictures = confusion.empty(num_classes), 0, []
    for batch in batches:
        if resolution == "input":
            batch = fit_labels(batch, ignore_label)
        previous, arrays = counts, {key: batch[key] for key in _STEP_KEYS}
        counts, prediction = step(variables, counts, place_batch(arrays, mesh))
        jax.block_until_ready(previous)  # one batch computes while the next is read, and no more wait in memory
        examples += int(np.sum(batch[VALID]))
        if len(pictures) < collect:
            pictures += _pictures(batch, np.asarray(prediction), collect - len(pictures))
        if progress is not None:
            progress(examples)
    counts, examples = _over_processes(counts, examples)
    scores = conventions.compute(counts, convention=convention, absent=absent)
    return scores | {"counts": counts, "examples": examples, "pictures": pictures}


def fit_labels(batch: Batch, ignore_label: int) -> dict[str, Any]:
    """The batch with its labels resized (nearest, pixel centres) to the canvas; scored there as they are.

    Args:
        batch: as ``evaluate``; host arrays.
        ignore_label: fills the canvas around the content.

    Returns:
        the batch with label i32[B, H, W], and native_size = content_size.
    """
    fitted = np.full((len(batch[LABEL]), *batch[IMAGE].shape[1:3]), ignore_label, np.int32)
    for out, label, content, native in zip(fitted, batch[LABEL], batch[CONTENT_SIZE], batch[NATIVE_SIZE], strict=True):
        y, x = (canvas.nearest(int(n), int(m)) for n, m in zip(content, native, strict=True))
        out[: content[0], : content[1]] = label[y[:, None], x[None, :]]
    return {**batch, LABEL: fitted, NATIVE_SIZE: batch[CONTENT_SIZE]}


def place_variables(variables: Variables, mesh: Mesh | None) -> Variables:
    """Replicates variables on this process's devices; free if they are there already.

    Args:
        variables: arrays of the host, of a device, or replicated over the devices of all processes.
        mesh: of this process's devices; None: where they are.
    """
    local = jax.tree.map(
        lambda x: x.addressable_data(0) if isinstance(x, jax.Array) and not x.is_fully_addressable else x, variables
    )
    return local if mesh is None else jax.device_put(local, NamedSharding(mesh, _WHOLE))


def place_batch(batch: Batch, mesh: Mesh | None) -> dict[str, Any]:
    """Splits a batch over the devices, filled up to a multiple of their number with rows whose "valid" is False.

    Args:
        batch: host arrays [B, ...], "valid" among them.
        mesh: of this process's devices; None: the batch as it is.
    """
    if mesh is None:
        return dict(batch)
    rows = len(batch[VALID])
    extra = -rows % mesh.size
    # Repeats of the last row, so that no size is 0.
    filled = {
        key: np.pad(value, [(0, extra)] + [(0, 0)] * (value.ndim - 1), mode="edge") for key, value in batch.items()
    }
    filled[VALID][rows:] = False
    return jax.device_put(filled, NamedSharding(mesh, _SPLIT))


# Keyed by the identity of a bound method's module or of a function: the loop passes the same one each time.
_cached_eval_step = functools.lru_cache(maxsize=8)(make_eval_step)


def _sharded(function: Callable, mesh: Mesh | None, in_specs: tuple, out_specs: PartitionSpec) -> Callable:
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)


def _resize_axis(x: Array, axis: int, true_in: Array, true_out: Array, padded_out: int) -> Array:
    ratio = true_in.astype(jnp.float32) / true_out.astype(jnp.float32)
    source = (jnp.arange(padded_out, dtype=jnp.float32) + 0.5) * ratio - 0.5
    source = jnp.clip(source, 0, true_in.astype(jnp.float32) - 1)
    low = jnp.floor(source).astype(jnp.int32)
    high = jnp.minimum(low + 1, true_in - 1)
    weight = jnp.expand_dims(source - low.astype(jnp.float32), [k for k in range(x.ndim) if k != axis])
    lower, upper = (jnp.take(x, index, axis=axis, mode="clip") for index in (low, high))
    return lower * (1 - weight) + upper * weight


def arg_max(logits: Array) -> Array:
    """Class of each pixel, by comparisons that XLA fuses into one pass.

    Args:
        logits: f32[..., K].

    Returns:
        [...] class ids, the first of equals; K where a logit is NaN. u8 for K < 256, else i32.
    """
    num_classes = logits.shape[-1]
    ids = jnp.uint8 if num_classes < 256 else jnp.int32
    best, index = logits[..., 0], jnp.zeros(logits.shape[:-1], ids)
    for k in range(1, num_classes):
        index = jnp.where(logits[..., k] > best, ids(k), index)
        best = jnp.maximum(best, logits[..., k])  # carries a NaN to the end
    return jnp.where(jnp.isnan(best), ids(num_classes), index)


def _over_processes(counts: confusion.Counts, examples: int) -> tuple[confusion.Counts, int]:
    if jax.process_count() == 1:
        return counts, examples
    low, high, done = multihost_utils.process_allgather((counts.low, counts.high, np.int32(examples)), tiled=False)
    each = (confusion.Counts(*limbs) for limbs in zip(jnp.asarray(low), jnp.asarray(high), strict=True))
    return functools.reduce(confusion.merge, each), int(np.sum(done))


def _pictures(batch: Batch, prediction: HostArray, limit: int) -> list[dict[str, Any]]:
    rows = np.flatnonzero(batch[VALID])[:limit]
    out = []
    for i in rows:
        (h, w), (rows_, columns) = batch[CONTENT_SIZE][i], batch[NATIVE_SIZE][i]
        out.append({
            "image": np.asarray(batch[IMAGE][i, :h, :w]),
            "label": np.asarray(batch[LABEL][i, :rows_, :columns]),
            "prediction": prediction[i, :rows_, :columns],
            "index": int(batch[INDEX][i]),
        })  # fmt: skip
    return out
