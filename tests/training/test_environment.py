"""What is recorded of a run's surroundings."""

import json
import platform

import jax

from segjax.training import environment


def test_it_is_json_and_says_what_matters():
    found = json.loads(json.dumps(environment.collect(["python", "-m", "segjax.train", "--config=x.py"])))
    assert found["command"] == "python -m segjax.train --config=x.py"
    assert found["python"] == platform.python_version() and found["packages"]["jax"] == jax.__version__
    assert found["backend"] == jax.default_backend() and found["devices"].startswith(f"{jax.device_count()} x ")


def test_a_folder_that_is_no_checkout_has_no_commit(tmp_path):
    assert environment._git_state(tmp_path) is None
