"""Checkpoints: bit for bit, asynchronous, the right ones kept, nothing else taken for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_checkpoints import abstract, assert_same_bits, fill, make_state

from segjax.training.checkpoint import Checkpoints, restore_variables
from segjax.training.retention import LatestAndBest
from segjax.types import InputError


def test_restored_state_is_bit_for_bit_the_saved_one(tmp_path):
    state = make_state(3, ema=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(3, state, metrics={"miou": np.float32(0.5)})
        restored, step, info = checkpoints.restore(abstract(state))
    assert step == 3 and info["data_position"] == 3 and info["metrics"] == {"miou": 0.5}
    assert_same_bits(restored, state)


def test_a_donated_state_is_saved_as_it_was_when_save_was_called(tmp_path):
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)
    state = {"params": {"kernel": jnp.arange(2_000_000, dtype=jnp.float32)}}
    expected = np.array(state["params"]["kernel"])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        for _ in range(5):
            state = overwrite(state)
        restored, _, _ = checkpoints.restore(state)
    np.testing.assert_array_equal(restored["params"]["kernel"], expected)


def test_a_state_replicated_over_eight_devices(tmp_path):
    mesh = jax.make_mesh((8,), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = make_state(2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, jax.device_put(jax.device_get(state), everywhere))
        restored, _, _ = checkpoints.restore(abstract(state))
    assert_same_bits(restored, state)


@pytest.mark.parametrize(
    ("scores", "kept", "best"),
    [
        ({1: None, 2: None, 3: None}, [2, 3], None),
        ({1: 0.3, 2: 0.9, 3: 0.5, 4: 0.4}, [2, 3, 4], 2),
        ({1: 0.3, 2: 0.9, 3: 0.5, 4: 0.4, 5: None, 6: None}, [2, 5, 6], 2),
        ({1: 0.9, 2: float("nan"), 3: 0.0, 4: 0.1}, [1, 3, 4], 1),
        ({1: 0.5, 2: 0.5, 3: None, 4: None}, [2, 3, 4], 2),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, scores, kept, best):
    fill(tmp_path, scores, keep_last=2, keep_best=1)
    for read_only in (True, False):
        checkpoints = Checkpoints(tmp_path, read_only=read_only)
        assert checkpoints.steps() == kept
        assert checkpoints.best_step() == best
        _, step, _ = checkpoints.restore(abstract(make_state()), which="best")
        assert step == (best or kept[-1])


def test_the_policy_by_its_definition():
    class At:
        def __init__(self, step: int) -> None:
            self.step = step

    policy = LatestAndBest(2, 2, {1: 0.9, 2: 0.1, 3: 0.8, 4: 0.95})
    assert policy.should_preserve([At(step) for step in (1, 2, 3, 4, 5, 6)], context=None) == [
        True,
        False,
        False,
        True,
        True,
        True,
    ]
    assert LatestAndBest(1, 0, {1: 0.9}).should_preserve([At(1), At(2)], context=None) == [False, True]


def test_the_best_is_remembered_when_the_folder_is_opened_again(tmp_path):
    fill(tmp_path, {1: 0.9, 2: 0.1})
    fill(tmp_path, {3: 0.2, 4: 0.3, 5: None})
    assert Checkpoints(tmp_path).steps() == [1, 4, 5]


def test_saving_a_step_again_changes_nothing_but_adds_metrics(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1))
        assert not checkpoints.save(1, make_state(9), metrics={"miou": 0.75})
        assert not checkpoints.save(1, make_state(9), metrics={"miou": 0.1})
        checkpoints.save(2, make_state(2), metrics={"miou": 0.5})
        checkpoints.save(3, make_state(3))
        checkpoints.save(4, make_state(4))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step() == 1 and checkpoints.steps() == [1, 3, 4]
        restored, _, info = checkpoints.restore(abstract(make_state()), which=1)
        assert info["metrics"] == {"miou": 0.75}
        assert_same_bits(restored, make_state(1))
        with pytest.raises(ValueError, match="older than the newest"):
            checkpoints.save(2, make_state(2))


@pytest.mark.parametrize(
    ("which", "message"), [(7, r"no checkpoint 7 .* \[1, 2\]"), ("newest", "'newest'"), (-1, "-1")]
)
def test_an_unknown_step_names_those_that_exist(tmp_path, which, message):
    fill(tmp_path, {1: None, 2: None})
    with pytest.raises(InputError, match=message):
        Checkpoints(tmp_path, read_only=True).restore(abstract(make_state()), which=which)


def test_another_number_of_classes_names_the_leaf_and_both_shapes(tmp_path):
    fill(tmp_path, {1: None})
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(
            InputError, match=r"opt_state/0/head/bias.*float32\[5\].*expected float32\[9\]|params/head/bias"
        ):
            checkpoints.restore(abstract(make_state(classes=9)))
        assert checkpoints.skipped == [] and checkpoints.steps() == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.replace(key=jax.ShapeDtypeStruct((2,), jnp.int32)), r"key is uint32\[2\], expected int32\[2\]"),
        (lambda s: s.replace(params=s.params | {"new": s.key}), "no leaf params/new"),
        (lambda s: s.replace(batch_stats={}), "1 leaves that this model has not.*batch_stats/norm/mean"),
    ],
)
def test_another_structure_or_dtype_is_refused(tmp_path, change, message):
    fill(tmp_path, {1: None})
    with pytest.raises(InputError, match=message):
        Checkpoints(tmp_path, read_only=True).restore(change(abstract(make_state())))


def test_variables_alone_with_or_without_moving_average(tmp_path):
    state = make_state(4, ema=True)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, state, metrics={"miou": 0.1})
    variables, step = restore_variables(tmp_path, "best")
    assert step == 4
    assert_same_bits(variables, {"params": state.params, "batch_stats": state.batch_stats})
    variables, _ = restore_variables(
        tmp_path, "latest", ema=True, expected={"params": state.params, "batch_stats": state.batch_stats}
    )
    assert_same_bits(variables, state.ema)
    other = make_state(classes=3)
    with pytest.raises(InputError, match=r"params/head/bias is float32\[5\], expected float32\[3\]"):
        restore_variables(tmp_path, expected={"params": other.params, "batch_stats": other.batch_stats})
    fill(tmp_path / "plain", {1: None})
    with pytest.raises(InputError, match="no moving average"):
        restore_variables(tmp_path / "plain", ema=True)


def test_wrong_options_and_a_read_only_save(tmp_path):
    with pytest.raises(ValueError, match="keep_last=0"):
        Checkpoints(tmp_path, keep_last=0)
    with pytest.raises(ValueError, match="read-only"):
        Checkpoints(tmp_path, read_only=True).save(1, {})
