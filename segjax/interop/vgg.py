"""Names of VGG's and AlexNet's tensors: places in a row of convolutions, norms, ReLUs and pools."""

from segjax import backbones
from segjax.interop.source import Body
from segjax.interop.tensors import Rules

_TORCHVISION_HEAD = (
    (r"fc6", "classifier.0", "linear"),
    (r"fc7", "classifier.3", "linear"),
    (r"head", "classifier.6", "linear"),
)
_TIMM_HEAD = ((r"fc6", "pre_logits.fc1"), (r"fc7", "pre_logits.fc2"), (r"head", "head.fc", "linear"))

ALEXNET = Body(
    tuple((f"conv{number}", f"features.{place}") for number, place in enumerate((0, 3, 6, 8, 10), start=1)),
    head=(
        (r"fc6", "classifier.1", "linear"),
        (r"fc7", "classifier.4", "linear"),
        (r"head", "classifier.6", "linear"),
    ),
    first="features.0",
)


def body(backbone: str, *, timm: bool = False) -> Body:
    """Returns the names of a VGG's tensors, "vgg11" to "vgg19_bn"; timm's classifier is made of convolutions."""
    return Body(_rules(backbone), head=_TIMM_HEAD if timm else _TORCHVISION_HEAD, first="features.0")


def features(backbone: str) -> Body:
    """Returns the names in timm's feature extractor, which takes the row apart: features_0."""
    return Body(_rules(backbone, "features_"), head=(), first="features_0")


def _rules(backbone: str, row: str = "features.") -> Rules:
    _, options = backbones.find(backbone)
    rules, place = [], 0
    for stage, convs in enumerate(options["convs"], start=1):
        for index in range(1, convs + 1):
            path = f"conv{stage}_{index}"
            if options["norm"]:
                rules += [(f"{path}/conv", f"{row}{place}"), (f"{path}/norm", f"{row}{place + 1}")]
            else:
                rules.append((path, f"{row}{place}"))
            place += 3 if options["norm"] else 2  # the ReLU has a place of its own
        place += 1  # and the pool
    return tuple(rules)
