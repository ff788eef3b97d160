"""One compilation serves a training of an instance model, whatever is on its images."""

import jax
import numpy as np
import pytest

from segjax import config as configs
from segjax.training import setup

pytestmark = pytest.mark.slow

STEPS = 100
SMALL = {
    "data.verify": False,
    "data.size": (64, 64), "data.max_instances": 8, "data.mask_size": 14,
    "model.width": 0.125, "model.channels": 8, "model.box_channels": 8, "model.mask_channels": 8,
    "model.anchor_sizes": (4, 8, 16, 32, 64), "model.rpn_pre_nms": (50, 50), "model.rpn_post_nms": (20, 20),
    "model.box_samples": 16, "model.detections": 8, "train.steps": STEPS, "train.batch_size": 8, "eval.batch_size": 8,
}  # fmt: skip


def test_a_hundred_steps_of_varied_images_compile_nothing_after_the_first():
    config = configs.override(configs.load_experiment("experiments/mask_rcnn.py:shapes"), SMALL)
    train_set, _ = setup.open_sets(config)
    job = setup.build(config, train_set.classes)
    state, objects, compiled = job.initial, [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    try:
        with setup.train_batches(config, train_set, 0) as batches:
            for step in range(STEPS):
                batch = next(batches)
                objects.append(int(np.asarray(batch["boxes_valid"]).sum()))
                state, metrics = job.train_step(state, batch)
                assert np.isfinite(metrics["loss"])
                if step == 0:
                    assert compiled
                    compiled.clear()
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled == [] and int(state.step) == STEPS and len(set(objects)) > 3
