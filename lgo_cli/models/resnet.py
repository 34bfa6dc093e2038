"""Residual networks for small images, as He et al. 2016 built them for CIFAR."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lgo_cli.errors import UsageError

STAGES = (16, 32, 64)
MIN_IMAGE_SIZE = 4


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm, and a shortcut around both.

    The shortcut has no parameters (option A): where the block halves the image, it takes every
    second pixel and adds channels of zeros.

    Args:
        num_in: Channels that come in.
        num_out: Channels that go out, no fewer.
        stride: 1, or 2 to halve the image.
        shortcut: Whether there is one; without it the block is a plain pair of layers.
    """

    def __init__(self, num_in: int, num_out: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_out)
        self.stride = stride
        self.num_new = num_out - num_in
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map images [n, num_in, H, W] to [n, num_out, ⌈H / stride⌉, ⌈W / stride⌉]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.shortcut:
            skipped = x[:, :, :: self.stride, :: self.stride] if self.stride > 1 else x
            if self.num_new:
                skipped = F.pad(skipped, (0, 0, 0, 0, 0, self.num_new))
            out = out + skipped
        return F.relu(out)


class ResNet(nn.Module):
    """Residual network of 6n + 2 layers (He et al. 2016, section 4.2).

    One convolution, three stages of n blocks with 16, 32 and 64 channels at full, half and quarter
    size, global average pooling and a linear layer. Without shortcuts it is the plain network of
    the same depth, the contrast of Li et al. 2018.

    Weights are drawn from N(0, 2 / fan_in) (He et al. 2015, eq. 10), biases are zero, batch norm
    begins as the identity.

    Args:
        num_channels: Channels of the images.
        num_classes: Number of outputs.
        depth: 6n + 2.
        shortcuts: Whether the blocks have shortcuts.
        width: Factor on the number of channels, rounded, at least one.
    """

    def __init__(
        self,
        num_channels: int,
        num_classes: int,
        depth: int = 20,
        shortcuts: bool = True,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise UsageError(f"a residual network has 6n + 2 layers, not {depth}")
        sizes = [max(1, round(size * width)) for size in STAGES]
        self.conv1 = nn.Conv2d(num_channels, sizes[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(sizes[0])
        num_blocks = (depth - 2) // 6
        self.layer1 = _stage(sizes[0], sizes[0], num_blocks, 1, shortcuts)
        self.layer2 = _stage(sizes[0], sizes[1], num_blocks, 2, shortcuts)
        self.layer3 = _stage(sizes[1], sizes[2], num_blocks, 2, shortcuts)
        self.fc = nn.Linear(sizes[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [n, C, H, W] to logits [n, num_classes]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.fc(out.mean(dim=(2, 3)))
        return logits


def _stage(
    num_in: int, num_out: int, num_blocks: int, stride: int, shortcuts: bool
) -> nn.Sequential:
    rest = [BasicBlock(num_out, num_out, 1, shortcuts) for _ in range(num_blocks - 1)]
    return nn.Sequential(BasicBlock(num_in, num_out, stride, shortcuts), *rest)


def resnet(
    input_shape: tuple[int, ...],
    num_classes: int,
    depth: int = 20,
    shortcuts: bool = True,
    width: float = 1.0,
) -> ResNet:
    """Build a `ResNet` for images of a shape.

    Args:
        input_shape: Shape of one sample, [C, H, W] with H, W >= 4.
        num_classes: Number of outputs.
        depth: 6n + 2.
        shortcuts: Whether the blocks have shortcuts.
        width: Factor on the number of channels.

    Raises:
        UsageError: if the samples are no such images.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < MIN_IMAGE_SIZE:
        raise UsageError(
            f"resnet{depth} takes images [channels, height, width] of 4x4 pixels or more, but the "
            f"samples of this data set have shape {list(input_shape)}",
            hint="--dataset digits, fashion-mnist, mnist, cifar10 or cifar100; or --model mlp",
        )
    return ResNet(input_shape[0], num_classes, depth, shortcuts, width)
