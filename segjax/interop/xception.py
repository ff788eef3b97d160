"""Names of aligned Xception's tensors in timm; torchvision has none, and smp's "xception" is another network."""

from segjax.interop.source import Body

_RULES = (
    (r"stem1/conv", "stem.0.conv"),
    (r"stem1/norm", "stem.0.bn"),
    (r"stem2/conv", "stem.1.conv"),
    (r"stem2/norm", "stem.1.bn"),
    (r"block(\d+)/shortcut/conv", r"blocks.\1.shortcut.conv"),
    (r"block(\d+)/shortcut/norm", r"blocks.\1.shortcut.bn"),
    (r"block(\d+)/conv(\d)/depthwise/conv", r"blocks.\1.stack.conv\2.conv_dw"),
    (r"block(\d+)/conv(\d)/depthwise/norm", r"blocks.\1.stack.conv\2.bn_dw"),
    (r"block(\d+)/conv(\d)/pointwise/conv", r"blocks.\1.stack.conv\2.conv_pw"),
    (r"block(\d+)/conv(\d)/pointwise/norm", r"blocks.\1.stack.conv\2.bn_pw"),
)
# As a feature extractor timm takes the two rows apart: stem_0, blocks_0.
_FLAT = tuple((ours, theirs.replace("stem.", "stem_").replace("blocks.", "blocks_")) for ours, theirs in _RULES)
BODY = Body(_RULES, head=((r"head", "head.fc", "linear"),), first="stem.0.conv")
FEATURES = Body(_FLAT, head=(), first="stem_0.conv")
