"""Which checkpoints are kept: the newest few and the best few."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

# What judges a checkpoint, and what a person calls it: of a semantic model, of an instance model.
HEADLINES = {"miou": "mIoU", "mask_ap": "mask AP"}


@dataclasses.dataclass
class LatestAndBest:
    """orbax preservation policy: the ``latest`` newest steps and the ``best`` steps of the highest score.

    orbax's own BestN reads metrics that orbax wrote; ours are in the checkpoint's JSON and may come later.
    A step without a score counts among the newest only.
    """

    latest: int
    best: int
    scores: dict[int, float] = dataclasses.field(default_factory=dict)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Says for each checkpoint (anything with ``step``) whether it stays; of equal scores the newer is better."""
        del context
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        judged = sorted((self.scores[step], step) for step in steps if step in self.scores)
        keep = set(steps[-self.latest :]) | {step for _, step in judged[max(len(judged) - self.best, 0) :]}
        return [checkpoint.step in keep for checkpoint in checkpoints]


def headline(metrics: Mapping[str, Any]) -> tuple[str, float]:
    """(its name for a person, its value) of the number that judges a checkpoint; ("", NaN) where there is none."""
    for key, name in HEADLINES.items():
        if metrics.get(key) is not None:
            return name, float(metrics[key])
    return "", math.nan


def score(step: int, metrics: Mapping[str, float] | None) -> dict[int, float]:
    """{step: the number that judges it}, empty where the metrics have none or it is not finite."""
    _, value = headline(metrics or {})
    return {step: value} if math.isfinite(value) else {}
