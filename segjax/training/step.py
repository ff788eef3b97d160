"""One optimizer step: a pure function (state, batch) -> (state, metrics), the same on one device, under jit and pmap.

Rules that make the three agree:
- every loss term is a (sum, weight); sums and weights are added over devices and microbatches, one division after;
- every random draw depends on the run's key, the step and the global example index, never on a device;
- batch statistics are those of the global batch (under jit by themselves, under pmap by the model's axis_name).
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from segjax.training.state import TrainState
from segjax.types import IMAGE, Array, Batch, PyTree

Terms = Mapping[str, tuple[Array, Array]]
Metrics = dict[str, Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]

# Which number is folded into fold_in(state.key, state.step) for which draws.
_AUGMENT, _DROPOUT = 0, 1


def make_train_step(
    apply: Callable,
    loss: Callable[..., Terms],
    tx: optax.GradientTransformation,
    *,
    axis_name: str | None = None,
    augment: Callable[[Array, Batch, Array], Batch] | None = None,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    frozen: Callable[[PyTree], PyTree] | None = None,
) -> Step:
    """The pure training step.

    The objective is the sum over terms of (sum over all pixels) / (weight of all pixels). A step whose loss or
    gradient is not finite changes nothing, its number included; one in which nothing counts (every weight 0) has
    loss 0 and changes only its number. With ``accumulate`` = n, microbatch i holds the rows i, i + n, i + 2n ...;
    the gradient is exactly that of the whole batch for additive losses, while batch norm normalises each microbatch
    by its own statistics and updates its running ones n times.

    Args:
      apply: apply(variables, image, train=True, targets=batch, key=key) -> (outputs, new batch_stats).
      loss: loss(outputs, batch) -> {term: (sum, weight)}; attribute ``additive`` (default True).
      tx: optimizer.
      axis_name: name of the pmap axis, None elsewhere; the model must be built with the same.
      augment: augment(key, batch, global example index i32[B]) -> batch with a normalised f32 image; None: as it is.
      accumulate: microbatches per step, n >= 1.
      ema_decay: d in ema <- d' ema + (1 - d') (params, batch_stats) with d' = min(d, (1 + t) / (10 + t)), so that a
        short run forgets its random start; 0: no average.
      frozen: params -> {path: bool}, True for leaves that stay as they are, weight decay or not; None: no leaf.
    Returns:
      step(state, batch) -> (state, metrics): "loss", each term, "grad_norm" (before clipping), "finite" bool,
      "grad_squares" f32[leaves of params] (sum of squares per leaf, in the order of jax.tree.leaves).
    Raises:
      ValueError: options out of range, or accumulation of a loss that is not additive; at trace time a batch that n
        does not divide, or a state whose ``ema`` does not match ``ema_decay``.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate is {accumulate}, expected at least 1")
    if not 0.0 <= ema_decay < 1.0:
        raise ValueError(f"ema_decay is {ema_decay}, expected 0 (off) or a number below 1")
    if accumulate > 1 and not getattr(loss, "additive", True):
        raise ValueError(
            "this loss is a ratio or a ranking over the whole batch: its parts do not add up; accumulate=1"
        )
    gradients = _make_gradients(apply, loss, axis_name, accumulate)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One update by one batch."""
        if bool(ema_decay) != bool(jax.tree.leaves(state.ema)):
            raise ValueError(f"ema_decay is {ema_decay}, but the state was made with ema={bool(state.ema)}")
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        if augment is not None:
            batch = augment(jax.random.fold_in(key, _AUGMENT), batch, _example_index(batch, axis_name))
        grads, batch_stats, terms, weight = gradients(state, batch, jax.random.fold_in(key, _DROPOUT))
        squares = jnp.stack([jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads)])
        total, norm = sum(terms.values()), jnp.sqrt(squares.sum())
        finite = jnp.isfinite(total) & jnp.isfinite(norm)
        new = _updated(state, grads, batch_stats, tx, ema_decay, frozen)
        new = jax.tree.map(lambda n, o: jnp.where(finite & (_is_count(n) | (weight > 0)), n, o), new, state)
        new = new.replace(step=state.step + finite.astype(state.step.dtype))
        return new, {**terms, "loss": total, "grad_norm": norm, "finite": finite, "grad_squares": squares}

    return step


def _is_count(leaf: Array) -> bool:
    """Whether a leaf of the state counts steps (optax's schedules do): those go on though nothing is learnt."""
    return jnp.issubdtype(leaf.dtype, jnp.signedinteger)


def _updated(
    state: TrainState,
    grads: PyTree,
    batch_stats: PyTree,
    tx: optax.GradientTransformation,
    ema_decay: float,
    frozen: Callable[[PyTree], PyTree] | None,
) -> TrainState:
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    if frozen is not None:
        updates = jax.tree.map(lambda fixed, u: jnp.zeros_like(u) if fixed else u, frozen(state.params), updates)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema_decay:
        done = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1.0 + done) / (10.0 + done))
        # The statistics too: averaged weights give other activations than those the last batches were measured on.
        latest = {"params": params, "batch_stats": batch_stats}
        ema = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, ema, latest)
    return state.replace(params=params, batch_stats=batch_stats, opt_state=opt_state, ema=ema)


def _make_gradients(apply: Callable, loss: Callable[..., Terms], axis_name: str | None, accumulate: int) -> Callable:
    """gradients(state, batch, key) -> (grads, batch_stats, {term: value}, total weight), all of the global batch."""

    def add(tree: PyTree) -> PyTree:
        return tree if axis_name is None else jax.lax.psum(tree, axis_name)

    def terms_of(params: PyTree, batch_stats: PyTree, batch: Batch, key: Array) -> tuple[Terms, PyTree]:
        variables = {"params": params, "batch_stats": batch_stats}
        outputs, batch_stats = apply(variables, batch[IMAGE], train=True, targets=batch, key=key)
        return loss(outputs, batch), batch_stats

    def objective(params: PyTree, batch_stats: PyTree, batch: Batch, key: Array, weights: PyTree) -> tuple:
        """This device's share of the loss; weights of the global batch, or None to add up this batch's."""
        terms, batch_stats = terms_of(params, batch_stats, batch, key)
        if weights is None:
            weights = add(jax.lax.stop_gradient({name: weight for name, (_, weight) in terms.items()}))
        # This device's share: the shares of all devices add up to the loss, and so do their gradients.
        shares = {name: total / jnp.where(weights[name] > 0, weights[name], 1.0) for name, (total, _) in terms.items()}
        return sum(shares.values()), (shares, batch_stats, weights)

    differentiate = jax.grad(objective, has_aux=True)

    def whole(state: TrainState, batch: Batch, key: Array) -> tuple:
        grads, (shares, batch_stats, weights) = differentiate(state.params, state.batch_stats, batch, key, None)
        return add(grads), batch_stats, add(shares), sum(weights.values())

    def in_parts(state: TrainState, batch: Batch, key: Array) -> tuple:
        """First all weights, so that every microbatch is divided by the same sums; then the gradients, added."""
        parts = _microbatches(batch, accumulate)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(accumulate))

        def weights_of(part: tuple) -> PyTree:
            # Only weights leave this function: where they do not depend on the outputs, XLA drops the forward pass.
            terms, _ = terms_of(state.params, state.batch_stats, *part)
            return {name: weight for name, (_, weight) in terms.items()}

        weights = add(jax.tree.map(lambda w: w.sum(), jax.lax.map(weights_of, (parts, keys))))

        def body(carry: tuple, part: tuple) -> tuple:
            grads, shares, batch_stats = carry
            new_grads, (new_shares, batch_stats, _) = differentiate(state.params, batch_stats, *part, weights)
            return (_plus(grads, new_grads), _plus(shares, new_shares), batch_stats), None

        start = (jax.tree.map(jnp.zeros_like, state.params), jax.tree.map(jnp.zeros_like, weights), state.batch_stats)
        (grads, shares, batch_stats), _ = jax.lax.scan(body, start, (parts, keys))
        return add(grads), batch_stats, add(shares), sum(weights.values())

    return whole if accumulate == 1 else in_parts


def _plus(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)


def _microbatches(batch: Batch, parts: int) -> dict[str, Array]:
    """[B, ...] -> [parts, B / parts, ...], part i holding rows i::parts (which keeps rows on their devices)."""

    def split(x: Array) -> Array:
        if x.shape[0] % parts:
            raise ValueError(f"a batch of {x.shape[0]} examples (per device) cannot be cut into accumulate={parts}")
        return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)

    return {name: split(value) for name, value in batch.items()}


def _example_index(batch: Batch, axis_name: str | None) -> Array:
    """Rows' positions in the global batch, i32[B]."""
    rows = batch[IMAGE].shape[0]
    start = 0 if axis_name is None else jax.lax.axis_index(axis_name) * rows
    return start + jnp.arange(rows, dtype=jnp.int32)
