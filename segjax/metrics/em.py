"""The scores of the ISBI 2012 EM segmentation challenge: pixel, Rand, information and warping of membrane maps.

A map is nonzero in cells and 0 on the membranes that part them; a cell is a component of its pixels by edges. Scores
are of one section, on the host; the challenge's are means over sections. Its tables show for every score the best over
thresholds of the membrane's probability: ``best_scores``.

Sources: Arganda-Carreras et al. 2015, Crowdsourcing the creation of image segmentation algorithms for connectomics,
https://doi.org/10.3389/fnana.2015.00142; Jain et al. 2010, Boundary learning by optimization with topological
constraints, https://doi.org/10.1109/CVPR.2010.5539950.
"""

import collections
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from segjax.types import HostArray

THRESHOLDS = tuple(n / 10 for n in range(1, 10))
_RING = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]  # the neighbours, edges at odd places


def pixel_error(prediction: HostArray, label: HostArray) -> float:
    """The share of pixels that are cell in one map and membrane in the other.

    Args:
        prediction: [H, W], nonzero in cells.
        label: [H, W], nonzero in cells.
    Returns:
        a number in [0, 1].
    Raises:
        ValueError: unlike shapes, or no pixels.
    """
    prediction, label = _maps(prediction, label)
    return float(np.mean(prediction != label))


def rand_scores(prediction: HostArray, label: HostArray) -> dict[str, float]:
    """How far two pixels that are in one cell of the label are in one cell of the prediction, and the other way round.

    With p_ij the share of the label's cell pixels (its membranes do not count) that are in cell i of the prediction
    and cell j of the label, s_i and t_j the sums of rows and columns:

        merge = sum p_ij^2 / sum s_i^2
        split = sum p_ij^2 / sum t_j^2
        score = 2 sum p_ij^2 / (sum s_i^2 + sum t_j^2)

    A predicted membrane inside a cell is no cell: each of its pixels is one of its own.

    Args:
        prediction: as ``pixel_error``.
        label: as ``pixel_error``.
    Returns:
        {"rand_score", "rand_error" = 1 - score, "rand_merge", "rand_split"}; NaN for a label without cells.
    Raises:
        ValueError: as ``pixel_error``.
    Source: Arganda-Carreras et al. 2015, section 2.5 (foreground-restricted Rand scoring).
    """
    both, first, second = (float(np.sum(shares**2)) for shares in _shares(prediction, label))
    merge, split, score = (both / x if x else np.nan for x in (first, second, (first + second) / 2))
    return {"rand_score": score, "rand_error": 1 - score, "rand_merge": merge, "rand_split": split}


def information_scores(prediction: HostArray, label: HostArray) -> dict[str, float]:
    """How much the cells of one map tell about those of the other.

    With H(S) and H(T) the entropies of s_i and t_j of ``rand_scores``, and I(S; T) = H(S) + H(T) - H(p_ij):

        merge = I / H(T)     split = I / H(S)     score = 2 I / (H(S) + H(T))

    A quotient 0 / 0 is 1: nothing was to be told.

    Args:
        prediction: as ``pixel_error``.
        label: as ``pixel_error``.
    Returns:
        {"information_score", "information_merge", "information_split"}; NaN for a label without cells.
    Raises:
        ValueError: as ``pixel_error``.
    Source: Arganda-Carreras et al. 2015, section 2.5 (foreground-restricted information theoretic scoring).
    """
    shares = _shares(prediction, label)
    both, first, second = (float(-np.sum(x * np.log(x))) for x in shares)
    common = max(first + second - both, 0.0)  # rounding may leave less than nothing
    empty = not shares[0].size
    merge, split, score = (np.nan if empty else common / x if x else 1.0 for x in (second, first, (first + second) / 2))
    return {"information_score": score, "information_merge": merge, "information_split": split}


def warping_error(prediction: HostArray, label: HostArray) -> float:
    """The share of pixels that still differ when the label has been warped onto the prediction.

    The label's cells and membranes may grow and shrink as long as none is split, merged, made or lost (``warped``), so
    what counts are mistakes of topology, not of place.

    Args:
        prediction: as ``pixel_error``.
        label: as ``pixel_error``.
    Returns:
        a number in [0, 1]. The warping is greedy: the least error of all warpings may be lower. Pixels that agree never
        turn, so a membrane that lies beside the label's, with cell in between in both maps, is a mistake.
    Raises:
        ValueError: as ``pixel_error``.
    Source: Jain et al. 2010, section 2, algorithm 1.
    """
    prediction, label = _maps(prediction, label)
    return float(np.mean(warped(label, prediction) != prediction))


def warped(start: HostArray, target: HostArray) -> HostArray:
    """Turns pixels of one map into those of another wherever that keeps the topology.

    A pixel may turn if it is simple: among its 8 neighbours there is one component, by edges, of cell pixels that
    touches it by an edge, and one, by edges or corners, of membrane. Beyond the map is membrane. Pixels that differ are
    taken row by row, and again when a neighbour has turned, until none is simple.

    Args:
        start: [H, W], nonzero in cells.
        target: [H, W], nonzero in cells.
    Returns:
        bool[H, W], True in cells, as many of them as in ``start``.
    Raises:
        ValueError: as ``pixel_error``.
    """
    start, target = _maps(start, target)
    return _turned(start, target, np.argwhere(start != target))


def thinned(prediction: HostArray) -> HostArray:
    """Thins membranes to curves one pixel wide: simple pixels turn into cell, those nearest to cells first.

    The challenge thins before it takes the Rand score, so that the width of membranes does not count.

    Args:
        prediction: [H, W], nonzero in cells.
    Returns:
        bool[H, W], True in cells, as many of them as before; membranes that part no cells are gone, or a point.
    Raises:
        ValueError: as ``pixel_error``.
    """
    prediction, _ = _maps(prediction, prediction)
    places = np.argwhere(~prediction)
    distance = ndimage.distance_transform_edt(~prediction) if prediction.any() else np.ones(prediction.shape)
    order = np.argsort(distance[~prediction], kind="stable")
    return _turned(prediction, np.ones_like(prediction), places[order])


def scores(prediction: HostArray, label: HostArray) -> dict[str, float]:
    """All scores of one section.

    Args:
        prediction: as ``pixel_error``.
        label: as ``pixel_error``.
    Returns:
        ``pixel_error``, ``rand_scores``, ``information_scores`` and ``warping_error`` by these names, and the first two
        scores after ``thinned``, "rand_score_thin" and "information_score_thin".
    Raises:
        ValueError: as ``pixel_error``.
    """
    thin = thinned(prediction)
    return {
        "pixel_error": pixel_error(prediction, label),
        **rand_scores(prediction, label),
        "rand_score_thin": rand_scores(thin, label)["rand_score"],
        **information_scores(prediction, label),
        "information_score_thin": information_scores(thin, label)["information_score"],
        "warping_error": warping_error(prediction, label),
    }


def best_scores(
    cell_probability: HostArray, label: HostArray, *, thresholds: Sequence[float] = THRESHOLDS
) -> dict[str, float]:
    """Each score at the threshold that is best for it, as the challenge's tables show it.

    Args:
        cell_probability: f[H, W].
        label: as ``pixel_error``.
        thresholds: a pixel is cell where its probability is above.
    Returns:
        {"pixel_error", "rand_score", "rand_error", "warping_error"}, and "rand_score_thin", the maximal foreground-
        restricted Rand score after thinning.
    Raises:
        ValueError: as ``pixel_error``, or no thresholds.
    """
    if not len(thresholds):
        raise ValueError(f"thresholds={thresholds}: expected one or more")
    maps = [np.asarray(cell_probability) > threshold for threshold in thresholds]

    def best(of: Callable, score: Callable[[HostArray], float]) -> float:
        return float(of([score(cells) for cells in maps]))

    rand = best(max, lambda cells: rand_scores(cells, label)["rand_score"])
    return {
        "pixel_error": best(min, lambda cells: pixel_error(cells, label)),
        "rand_score": rand,
        "rand_error": 1 - rand,
        "rand_score_thin": best(max, lambda cells: rand_scores(thinned(cells), label)["rand_score"]),
        "warping_error": best(min, lambda cells: warping_error(cells, label)),
    }


def _maps(prediction: HostArray, label: HostArray) -> tuple[HostArray, HostArray]:
    prediction, label = np.asarray(prediction), np.asarray(label)
    if prediction.shape != label.shape or label.ndim != 2 or not label.size:
        raise ValueError(
            f"maps of shapes {prediction.shape} and {label.shape}: expected the same [H, W], of one section"
        )
    return prediction != 0, label != 0


def _shares(prediction: HostArray, label: HostArray) -> tuple[HostArray, HostArray, HostArray]:
    """Shares of the label's cell pixels: of each pair of cells that meet, of each predicted cell, of each true one."""
    prediction, label = _maps(prediction, label)
    found, true = (ndimage.label(cells)[0][label] for cells in (prediction, label))
    alone = found == 0
    found[alone] = found.max(initial=0) + 1 + np.arange(alone.sum())
    pairs = found.astype(np.int64) * (true.max(initial=0) + 1) + true
    return tuple(np.unique(x, return_counts=True)[1] / max(x.size, 1) for x in (pairs, found, true))


def _simple_table() -> list[bool]:
    """Whether a pixel may turn, for each of the 256 sets of cells around it (bit k: neighbour k of the ring)."""
    table = []
    for code in range(256):
        ring = [code >> k & 1 for k in range(8)]
        table.append(_components(ring, 1) == 1 and _components(ring, 0) == 1)
    return table


def _components(ring: list[int], kind: int) -> int:
    """Components of one kind among the neighbours of a pixel that touch it: cells by edges, membrane by corners too."""
    patch = np.zeros((3, 3), bool)
    for (y, x), value in zip(_RING, ring, strict=True):
        patch[1 + y, 1 + x] = value == kind
    parts, _ = ndimage.label(patch, np.ones((3, 3)) if kind == 0 else None)
    touching = [parts[1 + y, 1 + x] for k, (y, x) in enumerate(_RING) if kind == 0 or k % 2]
    return len(set(touching) - {0})


_SIMPLE = _simple_table()


def _turned(start: HostArray, target: HostArray, places: HostArray) -> HostArray:
    """``warped``, beginning with the places given, which are all that differ."""
    width = start.shape[1] + 2
    ring = [y * width + x for y, x in _RING]
    cells, wanted = (bytearray(np.pad(x, 1).astype(np.uint8).tobytes()) for x in (start, target))
    queue = collections.deque(((places[:, 0] + 1) * width + places[:, 1] + 1).tolist())
    waiting = bytearray(len(cells))
    for at in queue:
        waiting[at] = 1
    while queue:
        at = queue.popleft()
        waiting[at] = 0
        code = 0
        for k, step in enumerate(ring):
            code |= cells[at + step] << k
        if _SIMPLE[code]:
            cells[at] = wanted[at]
            for near in (at + step for step in ring):
                if cells[near] != wanted[near] and not waiting[near]:
                    waiting[near] = 1
                    queue.append(near)
    found = np.frombuffer(bytes(cells), np.uint8).reshape(-1, width)
    return found[1:-1, 1:-1] != 0
