"""The EM challenge's scores of a trained model: probabilities of its cells against the labels of whole sections.

Class 1 is the cell, class 0 the membrane. The network is run as ``evaluation.evaluate`` runs it; a pixel is cell where
its probability at the label's size is above a threshold: 0.5 is the arg-max. Pixels with the ignore label are membrane
in both maps. Scores are means over the sections. Those called best are at the one threshold that is best for the mean,
for every score its own: the challenge's tables are made so.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from segjax.inference import evaluation
from segjax.inference.views import WHOLE, Views
from segjax.metrics import em
from segjax.types import CONTENT_SIZE, IMAGE, LABEL, VALID, Array, Batch, HostArray, Variables

CELL = 1
ARG_MAX = 0.5
RULE = "cell where its probability is above the threshold; mean over sections; best: one threshold for all of them"
BEST = ("pixel_error", "rand_score", "rand_score_thin", "information_score", "information_score_thin", "warping_error")
_KEYS = (IMAGE, VALID, CONTENT_SIZE, evaluation.NATIVE_SIZE)


def evaluate(
    apply: evaluation.Apply,
    variables: Variables,
    batches: Iterable[Batch],
    *,
    ignore_label: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    mesh: Mesh | None = None,
    resolution: str = "native",
    views: Views = WHOLE,
    thresholds: Sequence[float] = em.THRESHOLDS,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Scores a model of two classes.

    Args:
        apply: as ``evaluation.evaluate``, with logits f32[B, H, W, 2].
        variables, batches, ignore_label, mean, std, mesh, resolution, views: as ``evaluation.evaluate``.
        thresholds: of the best scores.
        progress: called with the number of sections done, after each.

    Returns:
        {"sections": int, "rule": str, "threshold": 0.5, each of ``em.scores``: float, "best": {each of BEST: {"value",
        "threshold"}}, "per_section": {each of ``em.scores``: one float a section, in the set's order}}. A section
        without cells has NaN for Rand and information, and takes no part in their means.
    """
    read = functools.partial(_cell_probability, softened=len(views.looks) > 1)
    predict = evaluation.make_predict(apply, mean=mean, std=std, mesh=mesh, views=views, read=read)
    variables = evaluation.place_variables(variables, mesh)
    levels = sorted({ARG_MAX, *thresholds})
    rows = []
    for batch in batches:
        if resolution == "input":
            batch = evaluation.fit_labels(batch, ignore_label)
        arrays = evaluation.place_batch({key: batch[key] for key in _KEYS}, mesh)
        found = np.asarray(predict(variables, arrays, batch[LABEL].shape[1:]))
        for i in np.flatnonzero(batch[VALID]):
            height, width = batch[evaluation.NATIVE_SIZE][i]
            rows.append(_section(found[i, :height, :width], batch[LABEL][i, :height, :width], levels, ignore_label))
            if progress is not None:
                progress(len(rows))
    return _summary(rows, levels)


def _cell_probability(
    logits: Array, content_size: Array, native_size: Array, padded_size: tuple[int, int], *, softened: bool
) -> Array:
    """Of one image at its own size, f32[Hn, Wn]; softened: the logits are probabilities, as of several views."""
    resized = evaluation.resize_logits(logits, content_size, native_size, padded_size)
    return (resized if softened else jax.nn.softmax(resized.astype(jnp.float32)))[..., CELL]


def _section(
    probability: HostArray, label: HostArray, levels: Sequence[float], ignore_label: int
) -> list[dict[str, float]]:
    """The scores at each threshold."""
    counted = label != ignore_label
    truth = (label == CELL) & counted
    return [em.scores((probability > level) & counted, truth) for level in levels]


def _summary(rows: Sequence[Sequence[dict[str, float]]], levels: Sequence[float]) -> dict[str, Any]:
    names = list(em.scores(np.ones((1, 1)), np.ones((1, 1))))
    table = np.array([[[at[name] for name in names] for at in row] for row in rows])
    table = table.reshape(len(rows), len(levels), len(names))
    known = np.isfinite(table)
    means = np.where(known, table, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
    plain, best = levels.index(ARG_MAX), {}
    for name in BEST:
        column = means[:, names.index(name)]
        at = int(np.argmin(column) if name.endswith("error") else np.argmax(column))
        best[name] = {"value": float(column[at]), "threshold": float(levels[at])}
    return {
        "sections": len(rows),
        "rule": RULE,
        "threshold": ARG_MAX,
        **dict(zip(names, means[plain].tolist(), strict=True)),
        "best": best,
        "per_section": dict(zip(names, table[:, plain].T.tolist(), strict=True)),
    }
