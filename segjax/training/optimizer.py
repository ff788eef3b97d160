"""Optimizers and learning-rate schedules: optax parts in the order and with the meaning they have in PyTorch."""

import fnmatch
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from segjax.types import Array, InputError, PyTree

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("poly", "cosine", "constant", "steps")
Schedule = Callable[[Any], Array]


def make_optimizer(
    *,
    name: str,
    learning_rate: float,
    schedule: str = "poly",
    power: float = 0.9,
    milestones: tuple[float, ...] = (2 / 3, 8 / 9),
    total_steps: int,
    warmup_steps: int = 0,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decay_norm_and_bias: bool = False,
    clip_norm: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    rate_factors: Sequence[tuple[str, float]] = (),
) -> tuple[optax.GradientTransformation, Schedule]:
    """The optimizer of a run and its schedule.

    sgd:   g <- g + wd w; v <- momentum v + g; w <- w - lr (v, or g + momentum v with nesterov)      (coupled decay)
    adamw: w <- w - lr (m / (sqrt(v) + eps) + wd w), m and v bias-corrected                        (decoupled decay)

    Gradients are clipped to the global norm ``clip_norm`` before either.

    Args:
      name: one of OPTIMIZERS.
      learning_rate: the peak, reached at the end of the warm-up.
      schedule, power, milestones, total_steps, warmup_steps: see ``make_schedule``.
      momentum, nesterov: of sgd.
      weight_decay: wd, per step.
      decay_norm_and_bias: False leaves biases and normalisation scales (every leaf with fewer than two axes, or
        named "bias" or "scale") undecayed.
      clip_norm: 0: off.
      b1, b2, eps: of adamw.
      rate_factors: (pattern, factor) pairs: the rate of a leaf whose path, such as "aux_head/score/kernel", matches the
        pattern ("aux_head/*", "*/bias") is multiplied by the factor; by both where two match.
    Returns:
      (optax transformation, schedule: step -> learning rate).
    Raises:
      InputError: unknown name or schedule (the known ones are listed), a number out of range; from the transformation's
        ``init``: a pattern that no leaf matches.
    Source: torch.optim.SGD, torch.optim.AdamW; Loshchilov & Hutter 2019, algorithm 2.
    """
    if name not in OPTIMIZERS:
        raise InputError(f"optimizer {name!r} is unknown; known: {', '.join(OPTIMIZERS)}")
    for label, value in (("weight_decay", weight_decay), ("clip_norm", clip_norm), ("momentum", momentum)):
        if not 0 <= value < math.inf:
            raise InputError(f"{label} is {value}, expected 0 (off) or more")
    for label, value in (("b1", b1), ("b2", b2)):
        if not 0 <= value < 1:
            raise InputError(f"{label} is {value}, expected a number in [0, 1)")
    if not 0 < eps < math.inf:
        raise InputError(f"eps is {eps}, expected a small number above 0")
    for pair in rate_factors:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], str) and _factor(pair[1])):
            raise InputError(f'rate_factors has {pair!r}, expected pairs of a pattern and a factor, ("head/*", 10.0)')
    rate = make_schedule(
        schedule,
        learning_rate=learning_rate,
        power=power,
        milestones=milestones,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
    )
    mask = None if decay_norm_and_bias else decays
    decay = [optax.add_decayed_weights(weight_decay, mask)] if weight_decay else []
    if name == "sgd":
        rule = [*decay, optax.trace(momentum, nesterov)] if momentum else decay
    else:
        rule = [optax.scale_by_adam(b1, b2, eps), *decay]
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    factors = [_by_factors(tuple(map(tuple, rate_factors)))] if rate_factors else []
    return optax.chain(*clip, *rule, *factors, optax.scale_by_learning_rate(rate)), rate


def _factor(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < math.inf


def _by_factors(pairs: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
    """Multiplies the updates of leaves by the factors of the patterns that their paths match."""

    def name(path: tuple) -> str:
        return "/".join(str(getattr(entry, "key", entry)) for entry in path)

    def init(params: PyTree) -> optax.EmptyState:
        names = [name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for pattern, _ in pairs:
            if not fnmatch.filter(names, pattern):
                raise InputError(f"optimizer.rate_factors: no parameter matches {pattern!r}, such as {names[-1]!r}")
        return optax.EmptyState()

    def update(updates: PyTree, state: optax.EmptyState, params: PyTree | None = None) -> tuple[PyTree, Any]:
        del params
        factor = lambda path: math.prod(f for pattern, f in pairs if fnmatch.fnmatchcase(name(path), pattern))
        return jax.tree_util.tree_map_with_path(lambda path, u: u * factor(path), updates), state

    return optax.GradientTransformation(init, update)


def make_schedule(
    name: str,
    *,
    learning_rate: float,
    power: float = 0.9,
    milestones: tuple[float, ...] = (2 / 3, 8 / 9),
    total_steps: int,
    warmup_steps: int = 0,
) -> Schedule:
    """Learning rate of step t = 0, 1, ... total_steps - 1, t counting the updates done before it (torch's LambdaLR).

    t < warmup_steps:  learning_rate (t + 1) / warmup_steps
    after, "poly":     learning_rate (1 - t / total_steps) ** power
           "cosine":   learning_rate (1 + cos(pi t / total_steps)) / 2
           "constant": learning_rate
           "steps":    learning_rate 0.1^n, n the milestones m with t >= round(m total_steps)

    t runs over the whole run, so the decay goes on where it would be without a warm-up; from total_steps on it is 0
    (but for "constant" and "steps").

    Args:
      name: one of SCHEDULES.
      learning_rate: peak, above 0.
      power: exponent of poly.
      milestones: of steps, shares of the whole run; by default those of detectron2's 1x: 60,000 and 80,000 of 90,000.
      total_steps: T, at least 1.
      warmup_steps: 0: none.
    Returns:
      schedule(step: int or i32 array) -> f32 learning rate; may be traced.
    Raises:
      InputError: unknown name, or a number out of range.
    Source: poly: Liu, Rabinovich & Berg 2015 (ParseNet); Chen et al. 2017 (DeepLab v2), section 4.1.
      steps: He et al. 2017 (Mask R-CNN), section 3.1.
    """
    if name not in SCHEDULES:
        raise InputError(f"schedule {name!r} is unknown; known: {', '.join(SCHEDULES)}")
    if not 0 < learning_rate < math.inf:
        raise InputError(f"learning_rate is {learning_rate}, expected a number above 0")
    if not 0 <= power < math.inf:
        raise InputError(f"power is {power}, expected 0 or more")
    if total_steps < 1 or warmup_steps < 0:
        raise InputError(f"total_steps is {total_steps} and warmup_steps {warmup_steps}, expected >= 1 and >= 0")

    if not all(0 < share < 1 for share in milestones):
        raise InputError(f"milestones are {milestones}, expected shares of the run between 0 and 1")
    ends = [round(share * total_steps) for share in milestones]

    def schedule(step: int | Array) -> Array:
        """Learning rate f32[] after ``step`` updates."""
        done = jnp.asarray(step, jnp.float32)
        left = jnp.clip(total_steps - done, 0.0, total_steps) / total_steps  # 1 - t / T without its cancellation
        decayed = {
            "poly": lambda: left**power,
            "cosine": lambda: jnp.square(jnp.sin(0.5 * jnp.pi * left)),  # (1 + cos(pi t / T)) / 2
            "constant": lambda: jnp.ones_like(left),
            "steps": lambda: 0.1 ** sum((done >= end).astype(jnp.float32) for end in ends) * jnp.ones_like(left),
        }[name]()
        warm = (done + 1.0) / max(warmup_steps, 1)
        return learning_rate * jnp.where(done < warmup_steps, warm, decayed)

    return schedule


def decays(params: PyTree) -> PyTree:
    """True for the leaves that weight decay applies to: two axes or more, and not named "bias" or "scale"."""

    def applies(path: tuple, leaf: Array) -> bool:
        return leaf.ndim >= 2 and str(getattr(path[-1], "key", path[-1])) not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(applies, params)
