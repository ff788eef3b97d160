"""Many masks as one array of run lengths, and what is done to all of them at once."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from segjax.types import HostArray


@dataclasses.dataclass(frozen=True, eq=False)
class Masks:
    """N masks: the counts of all, one after the other.

    Attributes:
      counts: i64[R], lengths of runs, each mask's own beginning with zeros.
      first: i64[N + 1]; the counts of mask i are first[i] .. first[i + 1] - 1.
      size: i64[N, 2], (H, W) of each.
    """

    counts: HostArray
    first: HostArray
    size: HostArray

    def __len__(self) -> int:
        return len(self.size)

    @property
    def runs(self) -> HostArray:
        """i64[N]: the number of counts of each mask."""
        return np.diff(self.first)


def take(masks: Masks, index: HostArray) -> Masks:
    """The masks at integers [n], in that order, as Masks."""
    length = masks.runs[index]
    return Masks(masks.counts[ranges(masks.first[:-1][index], length)], sums(length), masks.size[index])


def concatenate(groups: list[Masks]) -> Masks:
    """The masks of all groups, as Masks."""
    length = np.concatenate([group.runs for group in groups])
    return Masks(np.concatenate([g.counts for g in groups]), sums(length), np.concatenate([g.size for g in groups]))


def toggled(edge: HostArray, owner: HostArray, size: HostArray) -> Masks:
    """Masks that change from zeros to ones and back at given places; two changes at one place are none.

    Args:
      edge: integers [n] in any order, places in the order of the mask's pixels.
      owner: integers [n], the mask of each.
      size: i64[N, 2], (H, W) of each mask.
    Returns:
      Masks, no count but a first one 0.
    """
    line = size.prod(axis=1) + 1
    offset = sums(line)[:-1]
    place, times = np.unique(edge + offset[owner], return_counts=True)
    place = place[times % 2 == 1]
    owner = np.searchsorted(offset, place, side="right") - 1
    inside = place - offset[owner] < line[owner] - 1
    place, owner = (place - offset[owner])[inside], owner[inside]
    first = sums(np.bincount(owner, minlength=len(size)) + 1)
    bounds = np.empty(first[-1], np.int64)
    bounds[first[1:] - 1] = line - 1
    bounds[np.arange(len(place)) + owner] = place
    counts = np.diff(bounds, prepend=0)
    counts[first[:-1]] = bounds[first[:-1]]
    return Masks(counts, first, size)


def overlaid(masks: Masks, owner: HostArray, size: HostArray, need: int) -> Masks:
    """The pixels that at least `need` of an owner's masks have, for every owner.

    Args:
      masks: N masks.
      owner: integers [N], from 0; masks of an owner have its size.
      size: i64[M, 2], (H, W) of each owner.
      need: at least 1.
    Returns:
      M Masks.
    """
    offset = sums(size.prod(axis=1) + 1)[:-1]
    ones, whose = of_ones(masks), np.repeat(owner, masks.runs)
    last = (ends(masks) + offset[whose])[ones]
    place, index = np.unique(np.concatenate([last - masks.counts[ones], last]), return_inverse=True)
    change = np.bincount(index, np.repeat([1.0, -1.0], len(last)), len(place))
    inside = np.cumsum(change) >= need
    place = place[np.diff(inside, prepend=False)]
    owner = np.searchsorted(offset, place, side="right") - 1
    return toggled(place - offset[owner], owner, size)


def of_ones(masks: Masks) -> HostArray:
    """bool[R]: the runs of ones."""
    return (np.arange(len(masks.counts)) - np.repeat(masks.first[:-1], masks.runs)) % 2 == 1


def ends(masks: Masks) -> HostArray:
    """i64[R]: where each run ends, from the beginning of its mask."""
    total = np.concatenate([[0], np.cumsum(masks.counts)])
    return total[1:] - np.repeat(total[masks.first[:-1]], masks.runs)


def sums(length: HostArray | Sequence[int]) -> HostArray:
    """i64[N + 1]: where each of N pieces begins, and the last ends."""
    return np.concatenate([[0], np.cumsum(np.asarray(length, np.int64))]).astype(np.int64)


def ranges(start: HostArray, length: HostArray) -> HostArray:
    """start[0], start[0] + 1, ... length[0] of them, then those of start[1]: i64[sum of lengths]."""
    return np.arange(int(np.sum(length))) + np.repeat(start - sums(length)[:-1], length)
