"""The PyTorch twins of models.py: networks that no library has are written out here, in plain modules."""

import torch
import torchvision
from torch import nn
from torch.nn import functional


def classifier(name: str, classes: int) -> nn.Module:
    """torchvision's."""
    return torchvision.models.get_model(name, weights=None, num_classes=classes)


class Output(nn.Module):
    """torchvision's segmentation models without their dict."""

    def __init__(self, name: str, classes: int) -> None:
        super().__init__()
        self.model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of every pixel."""
        return self.model(x)["out"]


class FCN(nn.Module):
    """FCN-32s, 16s, 8s on VGG-16, and 32s on AlexNet: the authors' net.py, or the padded variant."""

    SKIPS = ((512, 5), (256, 9))  # channels of pool4 and pool3, and where their crops start

    def __init__(self, classes: int, stride: int, authors: bool, backbone: str = "vgg16") -> None:
        super().__init__()
        features = list(classifier(backbone, 1000).features)
        ceil = lambda pool: nn.MaxPool2d(pool.kernel_size, pool.stride, ceil_mode=True)
        features = [ceil(layer) if isinstance(layer, nn.MaxPool2d) else layer for layer in features]
        if authors:
            features[0].padding = (100, 100)
        cuts = [0, 17, 24, 31] if backbone == "vgg16" else [0, 6, 12, 13]
        self.parts = nn.ModuleList(nn.Sequential(*features[a:b]) for a, b in zip(cuts[:-1], cuts[1:], strict=True))
        channels, window = (512, 7) if backbone == "vgg16" else (256, 6)
        hidden = []
        for inputs, size in ((channels, window if authors else 1), (4096, 1)):
            hidden += [nn.Conv2d(inputs, 4096, size), nn.ReLU(inplace=True), nn.Dropout(0.5)]
        self.hidden, self.score = nn.Sequential(*hidden), nn.Conv2d(4096, classes, 1)
        self.skips = self.SKIPS[: {32: 0, 16: 1, 8: 2}[stride]]
        self.scores = nn.ModuleList(nn.Conv2d(channels, classes, 1) for channels, _ in self.skips)
        up = lambda window, stride: nn.ConvTranspose2d(
            classes, classes, window, stride, padding=0 if authors else (window - stride) // 2, bias=False
        )
        self.ups = nn.ModuleList(up(4, 2) for _ in self.skips)
        self.last = up(2 * stride if backbone == "vgg16" else 63, stride)
        self.crop = {32: 19 if backbone == "vgg16" else 18, 16: 27, 8: 31}[stride] if authors else 0
        self.authors = authors

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of every pixel."""
        maps = [image]
        for part in self.parts:
            maps.append(part(maps[-1]))
        x = self.score(self.hidden(maps[-1]))
        for up, score, skip, (_, offset) in zip(self.ups, self.scores, maps[-2::-1], self.skips, strict=False):
            x, skip = up(x), score(skip)
            if self.authors:
                skip = skip[:, :, offset : offset + x.shape[2], offset : offset + x.shape[3]]
            x = x[:, :, : skip.shape[2], : skip.shape[3]] + skip
        height, width = image.shape[2:]
        return self.last(x)[:, :, self.crop : self.crop + height, self.crop : self.crop + width].contiguous()


VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
DECODERS = {
    "segnet": ((64,), (128, 64), (256, 256, 128), (512, 512, 256), (512, 512, 512)),
    "basic": ((64,),) * 4,
    "deconvnet": ((64, 64), (128, 64), (256, 256, 128), (512, 512, 256), (512, 512, 512)),
}


class SegNet(nn.Module):
    """SegNet, SegNet-Basic and DeconvNet."""

    def __init__(self, classes: int, variant: str, bottleneck: int = 0) -> None:
        super().__init__()
        basic, deconv = variant == "basic", variant == "deconvnet"
        self.first = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75) if basic else nn.Identity()
        window, channels = 7 if basic else 3, 3

        def stage(counts: tuple[int, ...], kind: type, activation: bool) -> nn.Module:
            nonlocal channels
            layers = []
            for count in counts:
                layers += [kind(channels, count, window, padding=window // 2), nn.BatchNorm2d(count)]
                layers += [nn.ReLU(inplace=True)] * activation
                channels = count
            return nn.Sequential(*layers)

        encoders = ((64,),) * 4 if basic else VGG16
        self.encoders = nn.ModuleList(stage(counts, nn.Conv2d, True) for counts in encoders)
        self.middle = nn.Identity()
        if deconv:
            hidden = nn.Conv2d(512, bottleneck, 7), nn.Conv2d(bottleneck, bottleneck, 1)
            layers = (*hidden, nn.ConvTranspose2d(bottleneck, 512, 7))
            widths = (bottleneck, bottleneck, 512)
            parts = ((layer, nn.BatchNorm2d(n), nn.ReLU(True)) for layer, n in zip(layers, widths, strict=True))
            self.middle = nn.Sequential(*(layer for part in parts for layer in part))
        kind = nn.ConvTranspose2d if deconv else nn.Conv2d
        self.decoders = nn.ModuleList(stage(counts, kind, not basic) for counts in reversed(DECODERS[variant]))
        self.pool, self.unpool = nn.MaxPool2d(2, 2, return_indices=True, ceil_mode=True), nn.MaxUnpool2d(2, 2)
        self.head = (
            nn.Conv2d(channels, classes, 3, padding=1) if variant == "segnet" else nn.Conv2d(channels, classes, 1)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of every pixel."""
        x, switches = self.first(image), []
        for encoder in self.encoders:
            x = encoder(x)
            size = x.shape[2:]
            x, indices = self.pool(x)
            switches.append((indices, size))
        x = self.middle(x)
        for decoder in self.decoders:
            indices, size = switches.pop()
            x = decoder(self.unpool(x, indices, output_size=size))
        return self.head(x)


class UNet(nn.Module):
    """The paper's U-Net, valid (logits without a margin) or padded."""

    def __init__(self, classes: int, valid: bool, depth: int = 4, base: int = 64, dropout: float = 0.5) -> None:
        super().__init__()
        widths = [base * 2**level for level in range(depth + 1)]

        def convs(inputs: int, outputs: int) -> nn.Sequential:
            conv = lambda n: nn.Conv2d(n, outputs, 3, padding=0 if valid else 1)
            return nn.Sequential(conv(inputs), nn.ReLU(inplace=True), conv(outputs), nn.ReLU(inplace=True))

        self.downs = nn.ModuleList(convs(a, b) for a, b in zip([3, *widths[:-1]], widths, strict=True))
        for level in (depth - 1, depth):
            self.downs[level].append(nn.Dropout(dropout))
        levels = list(reversed(widths[:-1]))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(2 * n, n, 2, 2) for n in levels)
        self.merges = nn.ModuleList(convs(2 * n, n) for n in levels)
        self.pool, self.head = nn.MaxPool2d(2, ceil_mode=not valid), nn.Conv2d(base, classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of the image, or of its middle."""
        x, skips = image, []
        for level, down in enumerate(self.downs):
            x = down(self.pool(x) if level else x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.ups, self.merges, strict=True):
            x, skip = up(x), skips.pop()
            top, left = (max(a - b, 0) // 2 for a, b in zip(skip.shape[2:], x.shape[2:], strict=True))
            skip = skip[:, :, top : top + x.shape[2], left : left + x.shape[3]]
            x = merge(torch.cat([x[:, :, : skip.shape[2], : skip.shape[3]], skip], dim=1))
        return self.head(x)


class DeepLab(nn.Module):
    """DeepLab v1 and v2 at stride 8, on VGG-16 or a ResNet."""

    def __init__(self, classes: int, rates: tuple[int, ...], backbone: str = "vgg16", smooth: bool = False) -> None:
        super().__init__()
        if backbone == "vgg16":
            self.features, channels, hidden = nn.Sequential(*_dilated_vgg()), 512, 1024
        else:
            model = torchvision.models.get_model(
                backbone, weights=None, replace_stride_with_dilation=[False, True, True]
            )
            self.features, channels, hidden = nn.Sequential(*list(model.children())[:-2]), 2048, 0
        if smooth:
            self.features.append(nn.AvgPool2d(3, 1, 1))
        self.branches = nn.ModuleList(_branch(channels, hidden, classes, rate) for rate in rates)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of every pixel."""
        x = self.features(image)
        scores = sum(branch(x) for branch in self.branches)
        return functional.interpolate(scores, image.shape[2:], mode="bilinear", align_corners=False)


def _dilated_vgg() -> list[nn.Module]:
    layers, pools = [], 0
    for layer in classifier("vgg16", 1000).features:
        if isinstance(layer, nn.MaxPool2d):
            pools += 1
            layer = nn.MaxPool2d(3, 2 if pools <= 3 else 1, 1)
        elif isinstance(layer, nn.Conv2d) and pools == 4:
            layer.dilation = layer.padding = (2, 2)
        layers.append(layer)
    return layers


def _branch(channels: int, hidden: int, classes: int, rate: int) -> nn.Module:
    if not hidden:
        return nn.Conv2d(channels, classes, 3, padding=rate, dilation=rate)
    fc6 = nn.Conv2d(channels, hidden, 3, padding=rate, dilation=rate)
    end = lambda: (nn.ReLU(inplace=True), nn.Dropout(0.5))
    return nn.Sequential(fc6, *end(), nn.Conv2d(hidden, hidden, 1), *end(), nn.Conv2d(hidden, classes, 1))


class Patch(nn.Module):
    """The window classifier in its dense form (pools that do not stride, then dilation) or at full resolution."""

    def __init__(self, classes: int, dense: bool) -> None:
        super().__init__()
        layers, channels, dilation = [], 3, 1
        for outputs, size in ((48, 4), (48, 5), (48, 4), (48, 4), (200, 3)):
            padding = 0 if dense else "same"
            conv = nn.Conv2d(channels, outputs, size, dilation=dilation, padding=padding, bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            if dense and outputs == 48:
                layers.append(nn.MaxPool2d(2, 1, dilation=dilation))
                dilation *= 2
            channels = outputs
        self.layers = nn.Sequential(*layers, nn.Dropout(0.5), nn.Conv2d(channels, classes, 1))
        self.dense = dense

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of every pixel."""
        return self.layers(functional.pad(x, (47, 47, 47, 47), mode="reflect") if self.dense else x)


def smp(name: str, encoder: str, classes: int) -> nn.Module:
    """A model of segmentation_models_pytorch."""
    import segmentation_models_pytorch

    return getattr(segmentation_models_pytorch, name)(encoder, encoder_weights=None, classes=classes)
