"""The rows of models.py: every model at a size, and how each side computes it."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Call = Callable[[], object]
PARTS = ("forward", "training step")


@dataclasses.dataclass(frozen=True)
class Case:
    """One network: segjax's name and options, the twin's constructor in models_torch.py and its arguments.

    `cpu` and `cuda` are batch and pixels of a side; `classes` None makes 21 of every network but the classifiers.
    """

    name: str
    model: str
    options: Mapping[str, Any]
    twin: str
    arguments: Mapping[str, Any]
    cpu: tuple[int, int]
    cuda: tuple[int, int]
    classes: int = 21

    def arrays(self, device: str, logits: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Image f32[B, H, W, 3] and label i32 for logits [B, ..., K], the same in every process."""
        batch, side = getattr(self, device)
        rng = np.random.default_rng(0)
        image = rng.standard_normal((batch, side, side, 3), np.float32)
        return image, rng.integers(0, self.classes, logits[:-1], np.int32)


def _fcn(stride: int, variant: str, side: int = 128) -> Case:
    return Case(
        f"FCN-{stride}s {variant}",
        "fcn",
        {"stride": stride, "variant": variant},
        "FCN",
        {"stride": stride, "authors": variant == "authors"},
        (1 if variant == "authors" else 2, side),
        (8, 500),
    )


def _plus(backbone: str, cpu: tuple[int, int]) -> Case:
    """smp's choices, where they differ from the paper's."""
    options = {"decoder_convs": 1, "aspp_rates": (12, 24, 36), "aspp_out_conv": True, "align_corners": True}
    return Case(
        f"DeepLabv3+ {backbone}",
        "deeplab",
        {**options, "dilate_first_block": True, "depthwise_norm": False, "backbone": backbone},
        "smp",
        {"name": "DeepLabV3Plus", "encoder": backbone},
        cpu,
        (16, 512),
    )


def _classifier(backbone: str) -> Case:
    twin = {"name": backbone}
    return Case(
        f"classifier {backbone}", "classifier", {"backbone": backbone}, "classifier", twin, (4, 224), (128, 224), 1000
    )


CASES = (
    *(_fcn(stride, variant) for variant in ("authors", "padded") for stride in (32, 16, 8)),
    dataclasses.replace(_fcn(8, "authors", 500), name="FCN-8s authors 500x500"),
    Case(
        "FCN-32s alexnet",
        "fcn",
        {"stride": 32, "variant": "authors", "backbone": "alexnet"},
        "FCN",
        {"stride": 32, "authors": True, "backbone": "alexnet"},
        (2, 256),
        (16, 500),
    ),
    Case(
        "FCN dilated resnet50",
        "fcn",
        {"variant": "dilated", "backbone": "resnet50"},
        "Output",
        {"name": "fcn_resnet50"},
        (2, 160),
        (16, 512),
    ),
    Case("SegNet", "segnet", {"variant": "segnet"}, "SegNet", {"variant": "segnet"}, (2, 160), (16, 512)),
    Case("SegNet-Basic", "segnet", {"variant": "basic"}, "SegNet", {"variant": "basic"}, (2, 160), (16, 512)),
    Case(
        "DeconvNet, bottleneck 1024",
        "segnet",
        {"variant": "deconvnet", "bottleneck": 1024},
        "SegNet",
        {"variant": "deconvnet", "bottleneck": 1024},
        (2, 224),
        (32, 224),
    ),
    Case("U-Net valid", "unet", {"variant": "paper", "output": "native"}, "UNet", {"valid": True}, (1, 236), (8, 572)),
    Case("U-Net padded", "unet", {"variant": "padded"}, "UNet", {"valid": False}, (2, 128), (8, 512)),
    Case(
        "U-Net resnet34",
        "unet",
        {"variant": "backbone", "backbone": "resnet34"},
        "smp",
        {"name": "Unet", "encoder": "resnet34"},
        (4, 160),
        (32, 512),
    ),
    Case(
        "DeepLab v1 vgg16",
        "deeplab",
        {"variant": "v1", "backbone": "vgg16"},
        "DeepLab",
        {"rates": (12,), "smooth": True},
        (2, 160),
        (16, 512),
    ),
    Case(
        "DeepLab v2 vgg16",
        "deeplab",
        {"variant": "v2", "backbone": "vgg16"},
        "DeepLab",
        {"rates": (6, 12, 18, 24)},
        (2, 160),
        (16, 512),
    ),
    Case(
        "DeepLab v2 resnet101",
        "deeplab",
        {"variant": "v2", "backbone": "resnet101"},
        "DeepLab",
        {"rates": (6, 12, 18, 24), "backbone": "resnet101"},
        (2, 128),
        (16, 512),
    ),
    Case(
        "DeepLabv3 resnet50",
        "deeplab",
        {"variant": "v3", "backbone": "resnet50", "output_stride": 8, "aspp_out_conv": True},
        "Output",
        {"name": "deeplabv3_resnet50"},
        (2, 160),
        (16, 512),
    ),
    _plus("resnet50", (2, 224)),
    _plus("mobilenet_v2", (4, 224)),
    Case("patch dense", "patch", {"form": "dense"}, "Patch", {"dense": True}, (1, 128), (8, 512)),
    Case("patch full", "patch", {"form": "full_resolution"}, "Patch", {"dense": False}, (2, 160), (16, 512)),
    *map(_classifier, ("alexnet", "vgg16", "resnet18", "resnet50", "mobilenet_v2")),
)


def segjax_calls(case: Case, arguments: argparse.Namespace) -> tuple[int, tuple[int, ...], dict[str, Call]]:
    """Number of parameters, shape of the logits, and what to time: as segjax's entry points do it."""
    import jax

    from segjax import losses, models
    from segjax.training import optimizer, parallel, state
    from segjax.training.step import make_train_step

    dtype = "float32" if arguments.device == "cpu" else "bfloat16"
    model = models.build(case.model, num_classes=case.classes, dtype=dtype, **case.options)
    shape = (*2 * (getattr(case, arguments.device)[1],), 3)
    variables = model.init(jax.random.key(0), np.zeros((1, *shape), np.float32))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    forward = jax.jit(lambda variables, image: model.apply(variables, image)["logits"])
    logits = jax.eval_shape(
        forward, variables, np.zeros((getattr(case, arguments.device)[0], *shape), np.float32)
    ).shape
    image, label = case.arrays(arguments.device, logits)
    spread = lambda array: array.reshape(array.shape[0], *(1,) * (4 - len(logits)), *array.shape[1:])  # a 1x1 image

    def apply(*args: Any, **options: Any) -> tuple:
        outputs, batch_stats = model.apply(*args, **options)
        return {"logits": spread(outputs["logits"])}, batch_stats

    tx, _ = optimizer.make_optimizer(
        name="sgd", learning_rate=1e-3, schedule="constant", total_steps=1000, momentum=0.9
    )
    loss = losses.build("cross_entropy", num_classes=case.classes, ignore_label=255 if case.classes < 255 else -1)
    mesh = parallel.make_mesh(jax.devices()[:1])
    step = parallel.jit_step(make_train_step(apply, loss, tx), mesh)
    batch = parallel.shard_batch({"image": image, "label": spread(label), "valid": np.ones(len(image), bool)}, mesh)
    kept = [parallel.replicate(state.create(variables, tx, key=jax.random.key(1)), mesh)]
    del variables  # the largest network has 136 million parameters: one copy of them is enough

    def infer() -> None:
        variables = {"params": kept[0].params, "batch_stats": kept[0].batch_stats}
        jax.block_until_ready(forward(variables, batch["image"]))

    def train() -> float:
        kept[0], metrics = step(kept[0], batch)
        return float(metrics["loss"])

    return parameters, logits, dict(zip(PARTS, (infer, train), strict=True))


def torch_calls(case: Case, arguments: argparse.Namespace, layout: str) -> tuple[int, tuple[int, ...], dict[str, Call]]:
    """The same for PyTorch; cuda: autocast to bfloat16 and torch.compile."""
    import models_torch
    import torch

    cuda = arguments.device == "cuda"
    memory_format = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}[layout]
    model = getattr(models_torch, case.twin)(classes=case.classes, **case.arguments)
    parameters = sum(p.numel() for p in model.parameters())
    model = model.to(arguments.device, memory_format=memory_format)
    precision = lambda: torch.autocast("cuda", torch.bfloat16, enabled=cuda)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).permute(0, 3, 1, 2).to(arguments.device, memory_format=memory_format)

    image = tensor(case.arrays(arguments.device, (1, 1))[0])
    with torch.inference_mode(), precision():
        logits = model.eval()(image).shape
    logits = (logits[0], *logits[2:], logits[1])
    label = torch.from_numpy(case.arrays(arguments.device, logits)[1]).long().to(arguments.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    run = torch.compile(model) if cuda else model

    def infer() -> None:
        model.eval()
        with torch.inference_mode(), precision():
            run(image)
        if cuda:
            torch.cuda.synchronize()

    def train() -> float:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with precision():
            loss = torch.nn.functional.cross_entropy(run(image), label)
        loss.backward()
        optimizer.step()
        return loss.item()

    return parameters, logits, dict(zip(PARTS, (infer, train), strict=True))
