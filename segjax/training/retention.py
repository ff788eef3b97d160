"""Which checkpoints are kept: the newest few and the best few."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

BEST_METRIC = "miou"


@dataclasses.dataclass
class LatestAndBest:
    """orbax preservation policy: the ``latest`` newest steps and the ``best`` steps of highest mIoU.

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


def score(step: int, metrics: Mapping[str, float] | None) -> dict[int, float]:
    """{step: mIoU}, empty where the metrics have none or it is not finite."""
    value = float((metrics or {}).get(BEST_METRIC, math.nan))
    return {step: value} if math.isfinite(value) else {}
