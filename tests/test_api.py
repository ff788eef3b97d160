"""The habits of the public functions, as a test: documented, annotated, options keyword-only."""

import importlib
import inspect
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODULES = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for file in sorted((ROOT / "segjax").rglob("*.py"))
]


def _public(module: str) -> Iterator[tuple[str, object]]:
    loaded = importlib.import_module(module)
    for name, value in vars(loaded).items():
        if inspect.isfunction(value) and not name.startswith("_") and value.__module__ == module:
            yield f"{module}.{name}", value


@pytest.mark.parametrize("module", MODULES)
def test_public_functions_are_documented_and_annotated(module: str):
    assert importlib.import_module(module).__doc__, f"{module} has no docstring"
    for name, function in _public(module):
        signature = inspect.signature(function)
        assert function.__doc__, f"{name} has no docstring"
        assert signature.return_annotation is not signature.empty, f"{name} has no return annotation"
        for parameter in signature.parameters.values():
            assert parameter.annotation is not parameter.empty, f"{name}: {parameter.name} is not annotated"


@pytest.mark.parametrize(
    "module",
    ["segjax.ops", "segjax.losses.cross_entropy", "segjax.metrics.confusion", "segjax.metrics.average_precision"],
)
def test_options_are_keyword_only(module: str):
    loaded = importlib.import_module(module)
    functions = [
        value
        for name, value in vars(loaded).items()
        if inspect.isfunction(value) and not name.startswith("_") and value.__module__.startswith("segjax")
    ]
    assert functions
    for function in functions:
        for parameter in inspect.signature(function).parameters.values():
            if parameter.default is not parameter.empty:
                assert parameter.kind is parameter.KEYWORD_ONLY, f"{function.__name__}: {parameter.name}"


@pytest.mark.parametrize(
    "path, arguments",
    [
        ("segjax.ops.conv", "x kernel stride padding dilation groups"),
        ("segjax.ops.resize", "x size method align_corners antialias scale a"),
        ("segjax.ops.max_pool", "x window stride padding dilation ceil_mode return_indices"),
        ("segjax.ops.adaptive_avg_pool", "x size"),
        ("segjax.metrics.confusion.empty", "num_classes"),
        ("segjax.metrics.confusion.update", "counts prediction label ignore_label valid"),
        ("segjax.metrics.confusion.merge", "a b"),
        ("segjax.metrics.confusion.compute", "counts absent"),
        (
            "segjax.ops.roi_align",
            "features boxes batch_index output_size spatial_scale sampling_ratio aligned max_sampling",
        ),
        ("segjax.ops.roi_pool", "features boxes batch_index output_size spatial_scale"),
        ("segjax.ops.nms", "boxes scores iou_threshold max_outputs"),
        ("segjax.ops.batched_nms", "boxes scores classes iou_threshold max_outputs"),
        ("segjax.ops.box_iou", "a b"),
        ("segjax.metrics.average_precision.evaluate", "ground_truth detections iou_type"),
        ("segjax.losses.cross_entropy.loss", "outputs batch num_classes ignore_label"),
        ("segjax.models.build", "name num_classes axis_name"),
        ("segjax.training.step.make_train_step", "apply loss tx axis_name"),
        ("segjax.training.parallel.jit_step", "step mesh"),
        ("segjax.training.parallel.pmap_step", "step devices"),
    ],
)
def test_promised_signatures(path: str, arguments: str):
    module, _, name = path.rpartition(".")
    parameters = list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    promised = arguments.split()
    assert parameters[: len(promised)] == promised
