"""Names of MobileNetV2's tensors in torchvision (and smp) and in timm, which number the blocks differently."""

from segjax.backbones.mobilenet import STAGES
from segjax.interop.source import Body
from segjax.interop.tensors import Rules

_TORCHVISION = (
    (r"stem/conv", "features.0.0"),
    (r"stem/norm", "features.0.1"),
    (r"block1/depthwise/conv", "features.1.conv.0.0"),  # the first block does not expand
    (r"block1/depthwise/norm", "features.1.conv.0.1"),
    (r"block1/project/conv", "features.1.conv.1"),
    (r"block1/project/norm", "features.1.conv.2"),
    (r"block(\d+)/expand/conv", r"features.\1.conv.0.0"),
    (r"block(\d+)/expand/norm", r"features.\1.conv.0.1"),
    (r"block(\d+)/depthwise/conv", r"features.\1.conv.1.0"),
    (r"block(\d+)/depthwise/norm", r"features.\1.conv.1.1"),
    (r"block(\d+)/project/conv", r"features.\1.conv.2"),
    (r"block(\d+)/project/norm", r"features.\1.conv.3"),
    (r"head/conv", "features.18.0"),
    (r"head/norm", "features.18.1"),
)


def _timm() -> Rules:
    first = {"depthwise/conv": "conv_dw", "depthwise/norm": "bn1", "project/conv": "conv_pw", "project/norm": "bn2"}
    other = {
        "expand/conv": "conv_pw",
        "expand/norm": "bn1",
        "depthwise/conv": "conv_dw",
        "depthwise/norm": "bn2",
        "project/conv": "conv_pwl",
        "project/norm": "bn3",
    }
    places = [(stage, block) for stage, (_, _, blocks, _) in enumerate(STAGES) for block in range(blocks)]
    blocks = [
        (f"block{number}/{ours}", f"blocks.{stage}.{block}.{theirs}")
        for number, (stage, block) in enumerate(places, start=1)
        for ours, theirs in (first if number == 1 else other).items()
    ]
    ends = (("stem/conv", "conv_stem"), ("stem/norm", "bn1"), ("head/conv", "conv_head"), ("head/norm", "bn2"))
    return (*ends, *blocks)


TORCHVISION = Body(_TORCHVISION, head=((r"head", "classifier.1", "linear"),), first="features.0.0")
TIMM = Body(_timm(), head=((r"head", "classifier", "linear"),), first="conv_stem")
