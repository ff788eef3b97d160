"""Compressed counts: from the fourth on the difference from the count two before, in characters of 5 bits."""

from collections.abc import Callable, Sequence

import numpy as np

from segjax.rle.runs import sums
from segjax.types import HostArray, InputError

_LONGEST = 7  # characters of a count: 35 bits


def counts_to_string(counts: HostArray | Sequence[int]) -> str:
    """Compresses the counts of one mask, integers [m]."""
    counts = np.asarray(counts, np.int64)
    return write(counts, np.array([0, len(counts)]))[0]


def string_to_counts(text: str | bytes) -> HostArray:
    """Reads the compressed counts of one mask, i64[m]; InputError where the string is damaged."""
    return read([text], "the string {}".format)[0]


def read(texts: Sequence[str | bytes], name: Callable[[int], str]) -> tuple[HostArray, HostArray]:
    """Reads the counts of many strings.

    Args:
      texts: N strings.
      name: what to call string i in messages.
    Returns:
      (counts i64[R], where those of each begin, i64[N + 1]).
    Raises:
      InputError: a character that is none of the 64, a string that ends inside a count, a count beyond 35 bits.
    """
    parts = [text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass") for text in texts]
    code = np.frombuffer(b"".join(parts), np.uint8) - np.uint8(48)
    bounds = sums([len(part) for part in parts])
    last = np.flatnonzero(code & 32 == 0)
    begin = np.concatenate([[0], last + 1])[:-1]
    length, first = last - begin + 1, np.searchsorted(last, bounds)
    may_end = np.zeros(len(code) + 1, bool)
    may_end[0], may_end[last + 1] = True, True
    foreign, open_ended, long = code > 63, ~may_end[bounds[1:]], length > _LONGEST
    if foreign.any() or open_ended.any() or long.any():
        where = [np.searchsorted(bounds, np.flatnonzero(foreign), "right") - 1, np.flatnonzero(open_ended)]
        i = np.concatenate([*where, np.searchsorted(first, np.flatnonzero(long), "right") - 1])[0]
        raise InputError(f"{name(i)} has damaged compressed counts: {str(texts[i])[:60]!r}")
    value = (code[begin] & 31).astype(np.int64)
    for k in range(1, length.max(initial=0)):
        longer = np.flatnonzero(length > k)
        value[longer] |= (code[begin[longer] + k] & 31).astype(np.int64) << 5 * k
    negative = code[last] & 16 > 0
    value[negative] -= np.int64(1) << 5 * length[negative]
    return _chained(value, first), first


def write(counts: HostArray, first: HostArray) -> tuple[str, list[int]]:
    """Compresses the counts of many masks.

    Args:
      counts: i64[R].
      first: i64[N + 1], where those of each mask begin.
    Returns:
      (the characters of all, where those of each mask begin, N + 1 integers).
    """
    place = np.arange(len(counts)) - np.repeat(first[:-1], np.diff(first))
    value = counts.copy()
    value[place > 2] -= counts[np.flatnonzero(place > 2) - 2]
    codes, used = np.zeros((len(counts), _LONGEST), np.uint8), np.zeros((len(counts), _LONGEST), bool)
    more = np.ones(len(counts), bool)
    for k in range(_LONGEST):
        used[:, k] = more
        bits = value & 31
        value >>= 5
        more = more & np.where(bits & 16, value != -1, value != 0)
        codes[:, k] = bits + 32 * more + 48
    ends = sums(used.sum(axis=1))
    return codes[used].tobytes().decode("ascii"), ends[first].tolist()


def _chained(value: HostArray, first: HostArray) -> HostArray:
    """Counts from their differences: the odd places of a mask add up, and the even ones from the third on."""
    place = np.arange(len(value)) - np.repeat(first[:-1], np.diff(first))
    out = value.copy()
    for chain in (place % 2 == 1, (place % 2 == 0) & (place > 0)):
        total = np.concatenate([[0], np.cumsum(np.where(chain, value, 0))])
        out[chain] = (total[1:] - np.repeat(total[first[:-1]], np.diff(first)))[chain]
    return out
