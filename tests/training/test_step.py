"""The step's arithmetic: terms, accumulation, randomness, moving average, what a bad step leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_net

from segjax import losses
from segjax.training import state, step

LOSS = losses.build("cross_entropy", num_classes=small_net.CLASSES, ignore_label=255)
DATA = small_net.as_float(small_net.batch())


def start(net, tx, *, ema=False, seed=0):
    return state.create(net.init(), tx, key=jax.random.key(seed), ema=ema)


def one_step(net, *, tx=None, data=DATA, loss=LOSS, seed=0, jit=True, **options):
    tx = optax.sgd(0.1) if tx is None else tx
    first = start(net, tx, ema=bool(options.get("ema_decay")), seed=seed)
    run = step.make_train_step(net.apply, loss, tx, **options)
    return first, *(jax.jit(run) if jit else run)(first, data)


def test_sgd_step_is_the_gradient_of_the_mean_over_counted_pixels():
    net = small_net.make()
    variables = net.init()

    def mean(params):
        outputs, _ = net.apply({**variables, "params": params}, DATA["image"], train=True)
        log_q = jax.nn.log_softmax(outputs["logits"])
        counted = (DATA["label"] < small_net.CLASSES) & DATA["valid"][:, None, None]
        picked = jnp.take_along_axis(log_q, np.where(counted, DATA["label"], 0)[..., None], axis=-1)[..., 0]
        return -(picked * counted).sum() / counted.sum()

    value, gradient = jax.jit(jax.value_and_grad(mean))(variables["params"])
    first, second, metrics = one_step(net)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, first.params, gradient)
    assert small_net.distance(second.params, expected) < 1e-6
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    squares = [np.square(np.asarray(g, np.float64)).sum() for g in jax.tree.leaves(gradient)]
    np.testing.assert_allclose(metrics["grad_squares"], squares, rtol=1e-4)
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(np.sum(squares)), rtol=1e-5)
    assert int(second.step) == 1 and bool(metrics["finite"])


def test_each_term_is_divided_by_its_own_weight():
    def two(outputs, batch):
        total, weight = LOSS(outputs, batch)["cross_entropy"]
        return {"a": (total, weight), "b": (3.0 * total, 2.0 * weight), "none": (0.0 * total, 0.0 * weight)}

    _, _, metrics = one_step(small_net.make(), loss=two)
    _, _, alone = one_step(small_net.make())
    np.testing.assert_allclose(metrics["a"], alone["loss"], rtol=1e-6)
    np.testing.assert_allclose(metrics["b"], 1.5 * alone["loss"], rtol=1e-6)
    assert float(metrics["none"]) == 0.0
    np.testing.assert_allclose(metrics["loss"], 2.5 * alone["loss"], rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], 2.5 * alone["grad_norm"], rtol=1e-5)


@pytest.mark.parametrize("parts", [2, 4, 16])
def test_accumulation_is_exact_without_batch_statistics(parts):
    net = small_net.make(norm=False)
    _, whole, metrics = one_step(net)
    _, in_parts, parts_metrics = one_step(net, accumulate=parts)
    assert small_net.distance(in_parts, whole) < 1e-6
    np.testing.assert_allclose(parts_metrics["loss"], metrics["loss"], rtol=1e-6)


def test_microbatches_are_every_nth_row_with_their_own_noise():
    net, seen = small_net.make(), []

    def spy(variables, image, *, train, targets, key):
        jax.debug.callback(
            lambda x, k: seen.append((np.array(x[:, 0, 0, 0]), np.array(k))), image, jax.random.key_data(key)
        )
        return net.apply(variables, image, train=train, targets=targets, key=key)

    tx = optax.sgd(0.1)
    jax.jit(step.make_train_step(spy, LOSS, tx, accumulate=4))(start(net, tx), DATA)
    jax.effects_barrier()
    rows = {tuple(row) for row, _ in seen}
    assert rows == {tuple(DATA["image"][i::4, 0, 0, 0]) for i in range(4)}
    assert len({tuple(key) for _, key in seen}) == 4


def test_accumulation_runs_the_forward_pass_of_the_weights_nowhere():
    """The pass that only adds up the weights costs no convolution: XLA drops what nothing reads."""
    net, tx = small_net.make(), optax.sgd(0.1)
    count = []
    for parts in (1, 2):
        compiled = jax.jit(step.make_train_step(net.apply, LOSS, tx, accumulate=parts)).lower(start(net, tx), DATA)
        count.append(compiled.compile().as_text().count(" convolution("))
    assert 0 < count[1] <= count[0]


def test_accumulation_refuses_what_does_not_add_up():
    def ratio(outputs, batch):
        return LOSS(outputs, batch)

    ratio.additive = False
    net, tx = small_net.make(), optax.sgd(0.1)
    with pytest.raises(ValueError, match="do not add up"):
        step.make_train_step(net.apply, ratio, tx, accumulate=2)
    with pytest.raises(ValueError, match="16 examples .* accumulate=3"):
        step.make_train_step(net.apply, LOSS, tx, accumulate=3)(start(net, tx), DATA)
    with pytest.raises(ValueError, match="accumulate is 0"):
        step.make_train_step(net.apply, LOSS, tx, accumulate=0)


def test_draws_depend_on_the_key_and_the_step_and_on_nothing_else():
    net, tx = small_net.make(dropout=0.3), optax.sgd(0.0)
    run = jax.jit(step.make_train_step(net.apply, LOSS, tx))
    zero, one = start(net, tx), start(net, tx).replace(step=jnp.asarray(1, jnp.int32))
    loss = [float(run(now, DATA)[1]["loss"]) for now in (zero, zero, one, start(net, tx, seed=1))]
    assert loss[0] == loss[1] and len(set(loss)) == 3


def test_augment_gets_its_key_the_batch_and_the_rows_numbers():
    def augment(key, batch, index):
        shift = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (1, 1, 1)))(index)
        return {**batch, "image": batch["image"] + shift}

    net = small_net.make(norm=False)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0)  # the run's key, the step, for augmentation
    shift = np.array([jax.random.normal(jax.random.fold_in(key, i)) for i in range(16)])[:, None, None, None]
    _, mine, _ = one_step(net, augment=augment)
    _, expected, _ = one_step(net, data={**DATA, "image": DATA["image"] + shift})
    assert small_net.distance(mine.params, expected.params) < 1e-6


def test_ema_follows_the_parameters_faster_at_first():
    net, tx = small_net.make(), optax.sgd(0.5)
    run = jax.jit(step.make_train_step(net.apply, LOSS, tx, ema_decay=0.15))
    now = start(net, tx, ema=True)
    average = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves([now.params, now.batch_stats])]
    for decay in (1 / 10, 0.15, 0.15):  # min(0.15, (1 + t) / (10 + t))
        now, _ = run(now, DATA)
        latest = jax.tree.leaves([now.params, now.batch_stats])
        average = [decay * a + (1 - decay) * np.asarray(p) for a, p in zip(average, latest, strict=True)]
    mine = jax.tree.leaves([now.ema["params"], now.ema["batch_stats"]])
    assert small_net.distance(mine, average) < 1e-6
    with pytest.raises(ValueError, match="ema=False"):
        run(start(net, tx), DATA)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing(bad):
    image = DATA["image"].copy()
    image[3, 2, 1, 0] = bad
    first, second, metrics = one_step(
        small_net.make(), tx=optax.adam(0.1), data={**DATA, "image": image}, ema_decay=0.9
    )  # fmt: skip
    assert not metrics["finite"] and not np.isfinite(metrics["loss"])
    assert not np.isfinite(metrics["grad_squares"]).all()
    for old, new in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert np.asarray(old).tobytes() == np.asarray(new).tobytes()


def test_a_batch_in_which_nothing_counts_changes_only_the_steps_number():
    """Momentum and weight decay stand still too."""
    net = small_net.make()
    tx = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
    run = jax.jit(step.make_train_step(net.apply, LOSS, tx))
    warm, _ = run(start(net, tx), DATA)
    after, metrics = run(warm, {**DATA, "valid": np.zeros(16, bool)})
    assert float(metrics["loss"]) == float(metrics["grad_norm"]) == 0.0 and bool(metrics["finite"])
    assert int(after.step) == int(warm.step) + 1
    assert small_net.distance(after.replace(step=warm.step), warm) == 0.0


def test_the_loss_goes_down():
    net, tx = small_net.make(), optax.sgd(0.3, momentum=0.9)
    run, now, losses_seen = jax.jit(step.make_train_step(net.apply, LOSS, tx)), start(net, tx), []
    for _ in range(25):
        now, metrics = run(now, DATA)
        losses_seen.append(float(metrics["loss"]))
    assert losses_seen[-1] < 0.6 < 1.2 < losses_seen[0]  # log 4 = 1.39 is guessing


def test_frozen_leaves_stay_though_weights_decay():
    def apply(variables, image, **options):
        return {"logits": image * variables["params"]["free"] * variables["params"]["fixed"]}, {}

    def loss(outputs, batch):
        return {"sum": (outputs["logits"].sum(), jnp.float32(1.0))}

    tx = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1))
    params = {"fixed": jnp.full((1, 2), 3.0), "free": jnp.full((1, 2), 3.0)}
    run = step.make_train_step(apply, loss, tx, frozen=lambda params: {"fixed": True, "free": False})
    first = state.create({"params": params}, tx, key=jax.random.key(0))
    after, _ = run(first, {"image": jnp.ones((1, 2))})
    np.testing.assert_array_equal(after.params["fixed"], params["fixed"])
    np.testing.assert_allclose(after.params["free"], 3.0 - 0.1 * (3.0 + 0.5 * 3.0), rtol=1e-6)
