"""Starting from weights: what is kept, what is drawn anew, what is refused, what is said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw

from segjax import config as configs
from segjax import models
from segjax.data.metadata import Classes
from segjax.interop import converted, files, preprocessing, safetensors, torch
from segjax.training import pretrained, setup
from segjax.training.checkpoint import Checkpoints
from segjax.types import InputError

MODEL = {"backbone": "resnet18", "width": 0.125, "aspp_channels": 8, "decoder_channels": 8, "low_level_channels": 8}


def config_of(**values):
    config = configs.override(configs.load_experiment("experiments/deeplab.py:folder"), {"train.ema_decay": 0.9})
    with config.unlocked():
        config.model.update({**MODEL, "pretrained": "x", **values})
    return config


def weights_of(name, classes, prepared=preprocessing.SMP, **options):
    """Drawn weights of a model of ours, as if they had been converted."""
    module = models.build(name, num_classes=classes, **options)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return converted.Converted(module, draw(shapes, seed=3), prepared, "smp", "DeepLabV3Plus", {})


def start(config, weights, classes=3):
    said = []
    shapes = jax.eval_shape(lambda: setup.first_state(config, classes))
    initial = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    initial = initial.replace(params=draw(shapes.params, seed=9), batch_stats=draw(shapes.batch_stats, seed=9))
    return initial, pretrained.start(config, initial, classes, weights, said.append), said


def flat(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def kept(state, weights):
    """Names of the leaves of params that are the weights'."""
    ours, theirs = flat(state.params), flat(weights.variables["params"])
    return {name for name in ours if name in theirs and np.array_equal(ours[name], theirs[name])}


def test_every_leaf_of_the_same_model():
    config, weights = config_of(), weights_of("deeplab", 3, **MODEL)
    initial, state, said = start(config, weights)
    for tree in (state.params, state.ema["params"]):
        jax.tree.map(np.testing.assert_array_equal, tree, weights.variables["params"])
    for tree in (state.batch_stats, state.ema["batch_stats"]):
        jax.tree.map(np.testing.assert_array_equal, tree, weights.variables["batch_stats"])
    assert jax.tree.structure(state) == jax.tree.structure(initial)
    assert np.array_equal(state.key, initial.key) and state.step == 0
    count = len(jax.tree.leaves(weights.variables))
    assert said == [f"starting from smp DeepLabV3Plus: {count} of {count} leaves"]


def test_another_number_of_classes_draws_the_head_anew():
    weights = weights_of("deeplab", 7, auxiliary=True, **MODEL)
    initial, state, said = start(config_of(auxiliary=True), weights)
    fresh = {
        "['head']['kernel']",
        "['head']['bias']",
        "['aux_head']['score']['kernel']",
        "['aux_head']['score']['bias']",
    }
    assert set(flat(state.params)) - kept(state, weights) == fresh
    for name in fresh:
        np.testing.assert_array_equal(flat(state.params)[name], flat(initial.params)[name])
    assert len(said) == 1 and said[0].endswith("drawn anew for 3 classes in place of 7: aux_head, head")


def test_objects_of_other_classes_draw_what_has_classes_anew():
    small = {"backbone": "resnet18", "width": 0.125, "channels": 8, "box_channels": 16, "mask_channels": 8}
    config = configs.load_experiment("experiments/mask_rcnn.py:nuclei")
    with config.unlocked():
        config.model = {"name": "mask_rcnn", "pretrained": "x", "preset": "torchvision", **small}
        config.data.size = (64, 64)
    weights = weights_of("mask_rcnn", 80, preset="torchvision", **small)
    _, state, said = start(config, weights, classes=1)
    anew = set(flat(state.params)) - kept(state, weights)
    assert {name.rpartition("[")[0] for name in anew} == {
        "['box_predictor']['classes']",
        "['box_predictor']['boxes']",
        "['mask_head']['masks']",
    }
    assert said[0].endswith("drawn anew for 1 classes in place of 80: box_predictor, mask_head")


def test_a_classifier_gives_its_backbone():
    weights = weights_of("classifier", 3, backbone="resnet18", width=0.125)
    initial, state, said = start(config_of(), weights)
    backbone = {name for name in flat(state.params) if name.startswith("['backbone']")}
    assert kept(state, weights) == backbone  # not the head, though it has as many classes
    assert "drawn anew: " in said[0] and "backbone" not in said[0].partition("anew")[2] and "head" in said[0]
    jax.tree.map(
        np.testing.assert_array_equal, state.batch_stats["backbone"], weights.variables["batch_stats"]["backbone"]
    )


def test_a_classifier_gives_c4_its_last_stage_as_the_head_of_regions():
    def leaves(*names):
        return {f"params/{name}/conv/kernel": np.full(2, i) for i, name in enumerate(names)}

    fresh = leaves("backbone/stem", "backbone/layer3_0", "res5/layer4_0", "rpn")
    theirs = leaves("backbone/stem", "backbone/layer3_0", "backbone/layer4_0", "head")
    placed = pretrained._placed(fresh, theirs)
    assert pretrained._backbone(fresh, placed, True, "x") == {name for name in fresh if "rpn" not in name}
    assert placed["params/res5/layer4_0/conv/kernel"] is theirs["params/backbone/layer4_0/conv/kernel"]
    plain = leaves("backbone/stem", "backbone/layer3_0", "backbone/layer4_0")
    assert pretrained._placed(plain, theirs) is theirs and pretrained._placed(fresh, fresh) is fresh


def test_a_classifier_gives_fcn_its_connected_layers_where_they_fit():
    config = config_of()
    with config.unlocked():
        config.model = {"name": "fcn", "backbone": "vgg11", "width": 0.0625, "pretrained": "x", "variant": "authors"}
    weights = weights_of("classifier", 10, backbone="vgg11", width=0.0625)
    _, state, said = start(config, weights)
    assert {name.split("'")[1] for name in kept(state, weights)} == {"backbone", "fc6", "fc7"}
    config.model.variant = "padded"  # whose fc6 is 1x1
    _, state, said = start(config, weights)
    assert {name.split("'")[1] for name in kept(state, weights) if "kernel" in name} == {"backbone", "fc7"}
    assert "fc6" in said[0]


def test_other_options_are_refused_by_the_first_leaf():
    for options, message in (
        ({"aspp_channels": 16}, r"params/aspp/.* is \[.*16\] there, but \[.*8\] in this model"),
        ({"decoder_convs": 1}, "params/decoder2/.* is missing there"),
        ({"auxiliary": True}, "params/aux_head/.* has no place in this model"),
    ):
        with pytest.raises(InputError, match=message):
            start(config_of(), weights_of("deeplab", 3, **{**MODEL, **options}))
    with pytest.raises(InputError, match="params/backbone/.* is .* there, but"):
        start(config_of(), weights_of("classifier", 3, backbone="resnet18", width=0.25))
    with pytest.raises(InputError, match="no backbone there to take from another model"):
        start(config_of(), weights_of("unet", 3, variant="padded", depth=1, base_width=8))


def test_other_colours_are_told():
    weights = weights_of("deeplab", 3, preprocessing.XCEPTION, **MODEL)
    _, _, said = start(config_of(), weights)
    assert len(said) == 3 and said[1].startswith("warning: augment.mean is (0.485") and "(0.5, 0.5, 0.5)" in said[1]
    assert said[2].startswith("warning: augment.std is ")


def test_files_are_read_by_what_the_config_says(tmp_path):
    module = models.build("classifier", num_classes=3, backbone="resnet18")
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    variables = draw(shapes)
    published = tmp_path / "resnet18.safetensors"
    safetensors.write(published, torch.to_torch(module, variables, source="torchvision", model="resnet18"))
    found = pretrained.read(config_of(pretrained=f"torchvision:resnet18:{published}"))
    assert found.module == module and found.preprocessing == preprocessing.CLASSIFICATION
    jax.tree.map(np.testing.assert_array_equal, found.variables, variables)
    ours = tmp_path / "ours.safetensors"
    converted.write(ours, found)
    again = pretrained.read(config_of(pretrained=str(ours)))
    assert again.module == module and (again.source, again.name) == ("torchvision", "resnet18")
    assert again.preprocessing == found.preprocessing
    jax.tree.map(np.testing.assert_array_equal, again.variables, variables)
    assert pretrained.read(config_of(pretrained="")) is None
    assert files.read(ours).metadata["model"] == "classifier"
    for where, message in (
        (str(published), "is not a converted file.*torchvision:resnet50:FILE"),
        (str(tmp_path / "our.safetensors"), "no file .*did you mean 'ours.safetensors'"),
        (f"torchvision:resnet19:{published}", "no model 'resnet19' of torchvision.*'resnet18'"),
        (f"smp:Unet,encoder:{published}", "option 'encoder': expected NAME=VALUE"),
        (f"torchvision:resnet18:{ours}", "is converted already"),
    ):
        with pytest.raises(InputError, match=f"model.pretrained='.*{message}"):
            pretrained.read(config_of(pretrained=where))
    with pytest.raises(InputError, match="has the backbone 'resnet18', but model.backbone is 'resnet50'"):
        pretrained.read(config_of(pretrained=str(ours), backbone="resnet50"))


def test_fcn_16s_starts_from_the_best_checkpoint_of_a_run_of_32s(tmp_path):
    small = {"model.width": 1 / 32, "data.size": (64, 64), "model.upsampling": "learned"}
    first, second = (configs.override(configs.load_experiment(f"experiments/fcn.py:{mode}"), small)
                     for mode in ("voc_32s", "voc_16s"))  # fmt: skip
    shapes = jax.eval_shape(lambda: setup.first_state(first, 2))
    with Checkpoints(tmp_path / "checkpoints", keep_last=2) as checkpoints:
        for step, miou in ((1, 0.5), (2, 0.4)):
            trained = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            trained = trained.replace(params=draw(shapes.params, seed=step), step=jnp.int32(step))
            checkpoints.save(step, trained, metrics={"miou": miou}, wait=True)
    configs.save_json(tmp_path / "config.json", first)
    with pytest.raises(InputError, match=r"model.pretrained='.*/checkpoints': a folder, but not of a run"):
        pretrained.read(configs.override(second, {"model.pretrained": str(tmp_path / "checkpoints")}))
    Classes(("thing", "other")).write(tmp_path / "classes.json")
    config = configs.override(second, {"model.pretrained": str(tmp_path)})
    weights = pretrained.read(config)
    initial, state, (said, warned) = start(config, weights, classes=2)
    assert warned == "warning: the weights are of a model with other options: stride 32, here 16"
    best, names = flat(draw(shapes.params, seed=1)), flat(state.params)
    drawn = [name for name in names if name not in best]
    assert {name.split("'")[1] for name in drawn} == {"decoder", "score_pool4"} and len(drawn) == 4
    for name, leaf in names.items():
        np.testing.assert_array_equal(leaf, (flat(initial.params) if name in drawn else best)[name])
    assert f"starting from run {tmp_path}, checkpoint 1: " in said and said.endswith("drawn anew: decoder, score_pool4")
    with pytest.raises(InputError, match=r"params/backbone/conv1_1/bias is \[2\] there, but \[4\] in"):
        start(configs.override(config, {"model.width": 1 / 16}), weights, classes=2)


def test_the_key_is_no_option_of_the_model():
    config = config_of(pretrained="")
    setup.check(config, devices=1)
    assert setup.build_model(config, 2).backbone == "resnet18"
    with config.unlocked():
        del config.model["pretrained"]
    setup.check(config, devices=1)
    assert pretrained.read(config) is None
