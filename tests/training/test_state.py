"""The state holds arrays only, and shares none with what it was made from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_net

from segjax.training import state


@pytest.mark.parametrize("key", [jax.random.key(7), jax.random.key_data(jax.random.key(7))])
def test_leaves_are_arrays_with_their_types(key):
    made = state.create(small_net.make().init(), optax.sgd(0.1, momentum=0.9), key=key)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(made))
    assert made.step.dtype == jnp.int32 and made.step.shape == () and int(made.step) == 0
    assert made.key.dtype == jnp.uint32
    np.testing.assert_array_equal(made.key, jax.random.key_data(jax.random.key(7)))
    assert made.ema == {}


def test_no_buffer_is_shared():
    variables = small_net.make().init()
    made = state.create(variables, optax.sgd(0.1, momentum=0.9), key=jax.random.key(0), ema=True)
    for leaf in jax.tree.leaves(made):  # a shared buffer would be deleted twice, or under the variables
        assert not leaf.is_deleted()
        leaf.delete()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(variables))
    again = state.create({"params": variables["params"]}, optax.sgd(0.1), key=jax.random.key(0), ema=True)
    assert again.batch_stats == {} and small_net.distance(again.ema["params"], variables["params"]) == 0.0


def test_only_one_threefry_key():
    for key in (jax.random.split(jax.random.key(0)), jnp.zeros(2), jax.random.key(0, impl="rbg")):
        with pytest.raises(ValueError, match="expected one threefry key"):
            state.create(small_net.make().init(), optax.sgd(0.1), key=key)
