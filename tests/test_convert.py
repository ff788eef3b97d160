"""The command line of convert: there, the report, and back; its mistakes; a run that starts from what it wrote."""

import functools
import re

import jax
import jax.numpy as jnp
import made_pth
import numpy as np
import pytest
import trained_run
from drawn import draw
from PIL import Image

from segjax import convert, models, train
from segjax.interop import converted, files, torch
from segjax.training import checkpoint

RESNET = {"source": "torchvision", "model": "resnet18"}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A .pth file of a classifier, its module and variables."""
    module = models.build("classifier", num_classes=4, backbone="resnet18")
    variables = draw(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    made_pth.write(path, torch.to_torch(module, variables, **RESNET))
    return path, module, variables


def said(capsys, *arguments):
    status = convert.main([str(argument) for argument in arguments])
    out = capsys.readouterr()
    assert status == 0, out.err
    return out.out


def test_there_and_back(published, tmp_path, capsys):
    path, module, variables = published
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    text = said(
        capsys, "--source=torchvision", "--model", "resnet18", f"--weights={path}", f"--output={ours}", "--report"
    )
    assert "layer1.0.conv1.weight" in text and "[out, in] to [1, 1, in, out]" in text and "102 tensors" in text
    assert "minus (0.485, 0.456, 0.406)" in text and "epsilon 1e-05" in text and f"pretrained={ours}" in text
    found = converted.read(str(ours))
    assert found.module == module
    jax.tree.map(np.testing.assert_array_equal, found.variables, variables)
    assert "122 tensors of torchvision resnet18" in said(
        capsys, "--to-torch", f"--weights={ours}", f"--output={theirs}"
    )
    state_dict, expected = files.read(theirs).arrays, files.read(path).arrays
    assert set(state_dict) == set(expected)
    assert all(np.array_equal(state_dict[name], value) for name, value in expected.items())


def test_options_are_the_source_s(tmp_path, capsys):
    module = models.build("unet", num_classes=2, variant="backbone", decoder_channels=(32, 16, 16, 8, 8))
    variables = draw(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    unet = {"source": "smp", "model": "Unet", "encoder_name": "resnet34", "decoder_channels": (32, 16, 16, 8, 8)}
    made_pth.write(tmp_path / "unet.pth", torch.to_torch(module, variables, **unet))
    ours = tmp_path / "ours.safetensors"
    arguments = ["--source=smp", "--model=Unet", f"--weights={tmp_path / 'unet.pth'}", f"--output={ours}"]
    said(capsys, *arguments, "--option.encoder_name=resnet34", "--option.decoder_channels=32,16,16,8,8")
    assert converted.read(str(ours)).module == module
    assert converted.read(str(ours)).options["encoder_name"] == "resnet34"
    assert convert.main([*arguments, "--option.encoder=resnet34"]) == 2
    assert "no option 'encoder' (did you mean 'encoder_name'?)" in capsys.readouterr().err
    said(capsys, "--to-torch", f"--weights={ours}", f"--output={tmp_path / 'back.safetensors'}")
    assert "segmentation_head.0.weight" in files.read(tmp_path / "back.safetensors").arrays


def test_help(capsys):
    assert convert.main(["--help"]) == 0
    assert "--to-torch" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--source is missing, one of torchvision, "),
        (["--source=torchvision"], "--model is missing"),
        (["--source=torchvision", "--model=resnet18"], "--weights is missing"),
        (["--source=torchvision", "--model=resnet18", "--weights=FILE"], "give --output=FILE.safetensors or --report"),
        (["--source=torchvison", "--model=resnet18", "--weights=FILE", "--report"], "did you mean 'torchvision'"),
        (["--source=torchvision", "--model=resnet50", "--weights=FILE", "--report"], "is missing"),
        (["--source=torchvision", "--model=resnet18", "--weights=x.pth", "--report"], "there is no file x.pth"),
        (["--source=torchvision", "--model=resnet18", "--weights=FILE", "--output=a.npz"], "ends in .safetensors"),
        (["--sorce=torchvision"], "did you mean --source"),
        (["--config.model.name=x"], "--option.model.name=VALUE"),
        (["--option.encoder_name"], "expected NAME=VALUE"),
        (["--to-torch", "--output=a.safetensors"], "either --weights=FILE, a converted file, or --workdir=DIR"),
        (["--to-torch", "--output=a.safetensors", "--weights=FILE"], "is not a converted file"),
        (["--to-torch", "--output=a.safetensors", "--workdir=nowhere"], "--source is missing"),
    ],
)
def test_mistakes_are_told_in_one_line(published, arguments, message, capsys):
    assert convert.main([argument.replace("FILE", str(published[0])) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and re.search(message, error), error


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 16 images of 32x32 with 3 classes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / split).mkdir()
        (root / f"{split}annot").mkdir()
        for number in range(8):
            label = np.kron(rng.integers(0, 3, (4, 4)), np.ones((8, 8))).astype(np.uint8)
            Image.fromarray(np.repeat(label[..., None] * 60, 3, axis=-1)).save(root / split / f"{number}.png")
            Image.fromarray(label).save(root / f"{split}annot" / f"{number}.png")
    trained_run.CLASSES.write(root / "classes.json")
    return root


@pytest.mark.slow
def test_a_run_starts_from_published_weights(published, images, tmp_path, capsys, monkeypatch):
    """A step of almost no length leaves the weights as they were; the run that goes on needs the file no more."""
    path, _, variables = published
    weights = tmp_path / "resnet18.pth"
    weights.write_bytes(path.read_bytes())
    monkeypatch.setattr("segjax.training.devices.keep_compiled_programs", lambda folder: None)
    arguments = ["--config=experiments/deeplab.py:folder", f"--workdir={tmp_path / 'run'}"] + [
        f"--config.{key}={value}"
        for key, value in {
            "data.root": images,
            "data.size": "32,32",
            "data.workers": 0,
            "model.pretrained": f"torchvision:resnet18:{weights}",
            "model.backbone": "resnet18",
            "model.aspp_channels": 8,
            "model.decoder_channels": 8,
            "model.decoder_convs": 1,
            "model.aspp_rates": "12,24,36",
            "model.aspp_out_conv": True,
            "model.depthwise_norm": False,
            "model.dilate_first_block": True,
            "model.align_corners": True,
            "optimizer.learning_rate": 1e-12,
            "optimizer.warmup_steps": 0,
            "train.steps": 1,
            "train.batch_size": 8,
            "eval.batch_size": 8,
            "eval.pictures": 0,
        }.items()
    ]
    assert train.main(arguments) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "starting from" in line)
    assert "starting from torchvision resnet18" in line and "drawn anew for 3 classes in place of 4: " in line
    found, step = checkpoint.restore_variables(tmp_path / "run" / "checkpoints")
    assert step == 1
    same = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
    jax.tree.map(same, found["params"]["backbone"], variables["params"]["backbone"])
    back = tmp_path / "back.safetensors"
    smp = ["--source=smp", "--model=DeepLabV3Plus", "--option.encoder_name=resnet18", "--option.decoder_channels=8"]
    said(capsys, "--to-torch", f"--workdir={tmp_path / 'run'}", *smp, f"--output={back}")
    same(files.read(back).arrays["encoder.conv1.weight"], files.read(path).arrays["conv1.weight"])
    weights.unlink()
    (tmp_path / "run" / "summary.json").unlink()
    assert train.main(arguments) == 0
    out = capsys.readouterr().out
    assert "continuing from the checkpoint of step 1" in out and "starting from" not in out
    assert train.main([*arguments, f"--workdir={tmp_path / 'other'}"]) == 2
    assert "model.pretrained='torchvision:resnet18:" in (error := capsys.readouterr().err) and "no file" in error
