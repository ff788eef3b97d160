"""What the user is told about devices: a GPU that jax cannot see, a batch that does not fit."""

import jax
import pytest

from segjax import config as configs
from segjax.training import devices
from segjax.types import InputError


@pytest.fixture
def config():
    return configs.load_experiment("experiments/deeplab.py:camvid")


def test_a_gpu_that_jax_cannot_see_is_an_error_with_the_pip_line():
    with pytest.raises(InputError, match=r"/dev/nvidia0.*\n.*pip install -U 'jax\[cuda\]'"):
        devices.check_gpu_is_used("cpu", ["/dev/nvidia0"], "")


@pytest.mark.parametrize(
    "platform, gpus, chosen", [("gpu", ["/dev/nvidia0"], ""), ("cpu", [], ""), ("cpu", ["x"], "cpu")]
)
def test_a_chosen_or_only_device_is_fine(platform, gpus, chosen):
    assert devices.check_gpu_is_used(platform, gpus, chosen) is None


def test_out_of_memory_names_the_batch_size_to_try(config, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    with (
        pytest.raises(InputError, match=r"train.batch_size=8.*\n.*\n.*batch_size=4\n.*accumulate=2") as caught,
        devices.explained(config),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")
    assert "Out of memory allocating 123 bytes" in str(caught.value)


@pytest.mark.parametrize(
    "options, said, advised",
    [
        ({"key": "eval.batch_size"}, "with eval.batch_size=8,", "--config.eval.batch_size=4 "),
        ({"key": "eval.batch_size", "flag": "--batch", "batch": 6}, "with --batch=6,", "--batch=3 "),
    ],
)
def test_out_of_memory_without_training_names_the_batch_that_was_at_work(config, options, said, advised):
    with pytest.raises(InputError, match="RESOURCE_EXHAUSTED") as caught, devices.explained(config, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory\nmore lines")
    assert said in str(caught.value) and advised in str(caught.value).split("Try")[1]
    assert "train." not in str(caught.value) and "--workdir" not in str(caught.value)


def test_a_batch_of_one_that_does_not_fit_leaves_the_canvas(config):
    said = devices.out_of_memory_in_inference(config, "--batch", 1, "")
    assert "no memory left" in said and "--batch=0" not in said and "--config.data.size" in said


def test_a_platform_that_jax_cannot_start_is_told_with_its_pip_line(monkeypatch):
    def broken():
        raise RuntimeError("Unknown backend cuda")

    monkeypatch.setattr(devices.host_memory, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(jax, "default_backend", broken)
    with pytest.raises(InputError, match=r"Unknown backend cuda\n.*pip install -U 'jax\[cuda\]'  or  'jax\[tpu\]'"):
        devices.start()


def test_other_errors_of_the_device_pass_through(config):
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), devices.explained(config):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")


def test_the_batch_to_try_still_divides_among_the_devices(config):
    assert "batch_size" not in devices.out_of_memory(config, 8, "no memory").split("Try")[1]
    assert "batch_size=4" in devices.out_of_memory(config, 4, "no memory")


def test_compiled_programs_go_where_they_are_told(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    before = jax.config.jax_compilation_cache_dir
    try:
        devices.keep_compiled_programs("")
        assert jax.config.jax_compilation_cache_dir == before
        devices.keep_compiled_programs(tmp_path / "programs")
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "programs")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
