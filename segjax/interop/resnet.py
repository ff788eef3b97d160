"""Names of ResNet's tensors, the same in torchvision, smp and timm."""

from segjax.interop.source import Body

_RULES = (
    (r"stem/conv", "conv1"),
    (r"stem/norm", "bn1"),
    (r"layer(\d)_(\d+)/conv(\d)/conv", r"layer\1.\2.conv\3"),
    (r"layer(\d)_(\d+)/conv(\d)/norm", r"layer\1.\2.bn\3"),
    (r"layer(\d)_(\d+)/shortcut/conv", r"layer\1.\2.downsample.0"),
    (r"layer(\d)_(\d+)/shortcut/norm", r"layer\1.\2.downsample.1"),
)
BODY = Body(_RULES, head=((r"head", "fc", "linear"),), first="conv1")
