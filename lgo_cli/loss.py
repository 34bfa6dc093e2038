"""Loss of a sample, from a network's outputs and its labels (theory.md, section 1).

Shapes: n samples, C classes; "..." are the axes along which a sample has several labels, such as
the tokens of a text, usually none. A real-valued target has the shape of the outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lgo_cli.config import LossName
from lgo_cli.errors import UsageError
from lgo_cli.labels import IGNORED, refuse_misfit, refuse_real_targets, shares

LEAST_ROW = 16
"""Classes from which on PyTorch's softmax over rows is the faster one on a CPU, where a vector has
room for 16: with 10 it takes 6 times as long as over columns."""

UNDERFLOW = 745.2
"""e to the power of less than minus this is zero in float64."""


@dataclass(frozen=True)
class LossFunction:
    """Loss of each sample; its mean over samples is the objective.

    That of a sample with several labels is the mean over them, less those that are ignored (-100).

    Attributes:
        name: `cross_entropy` (natural logarithm, on logits), or `squared_error`, which is
            ½‖f(x) − t‖² with the one-hot target t, summed over classes, or with a real-valued one.
        label_smoothing: s in [0, 1): the target is (1 − s)·onehot(y) + s/C, in both losses.

    Raises:
        UsageError: if it is another name, or s is outside.
    """

    name: LossName = "cross_entropy"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in get_args(LossName):
            raise UsageError(
                f"unknown loss {self.name!r}", hint=" or ".join(map(repr, get_args(LossName)))
            )
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"a label smoothing of {self.label_smoothing} is outside [0, 1)")

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Losses [n] from outputs [n, ..., C] and labels [n, ...], or targets like the outputs.

        Raises:
            InputError: if they do not fit together.
        """
        refuse_misfit(outputs, labels)
        if labels.is_floating_point():
            labels = labels.to(outputs.dtype)
        elif labels.ndim > 1:
            ignored = labels == IGNORED
            classes = labels.masked_fill(ignored, 0)
            each = self(outputs.flatten(0, -2), classes.flatten()).view_as(labels)
            shared = shares(labels).to(each.dtype) * each.masked_fill(ignored, 0.0)
            return shared.flatten(1).sum(dim=1)
        if self.name == "cross_entropy":
            smoothing = self.label_smoothing
            if outputs.shape[1] < LEAST_ROW and outputs.device.type == "cpu" and labels.ndim == 1:
                # One row of all samples for each class, as one image with a pixel for each sample.
                image = outputs.t().contiguous()[None]
                return F.cross_entropy(
                    image, labels.long()[None], reduction="none", label_smoothing=smoothing
                )[0]
            return F.cross_entropy(outputs, labels, reduction="none", label_smoothing=smoothing)
        num_classes = outputs.shape[1]
        targets = labels if labels.is_floating_point() else F.one_hot(labels, num_classes)
        targets = targets.to(outputs.dtype)
        targets = targets * (1 - self.label_smoothing) + self.label_smoothing / num_classes
        return 0.5 * (outputs - targets).square().flatten(1).sum(dim=1)

    def check(self, labels: Tensor, where: str = "the data set") -> None:
        """See that it is a loss of such labels.

        Raises:
            InputError: if they are real-valued targets, and the loss, or its smoothing, is of class
                labels.
        """
        if labels.is_floating_point() and (self.name == "cross_entropy" or self.label_smoothing):
            refuse_real_targets(labels, where)

    def curving(self, outputs: Tensor) -> Tensor:
        """Outputs [n, ..., C], zero where they have no part in ∂²ℓ/∂z².

        Of cross entropy those whose probability is zero in float64, as of masked classes; of
        squared error all: it is the identity. Those of ignored labels count: none are given.
        """
        if self.name != "cross_entropy":
            return torch.zeros_like(outputs)
        return torch.where(outputs < outputs.amax(dim=-1, keepdim=True) - UNDERFLOW, 0.0, outputs)

    @staticmethod
    def advice(outputs: Tensor) -> str | None:
        """What to say of a loss that is not finite, if some outputs [n, ..., C] tell."""
        if not bool(outputs.isneginf().any()):
            return None
        return (
            "classes that are masked by outputs of -inf have a finite loss in cross entropy alone, "
            "without --label-smoothing or soft labels, and where no sample is of such a class"
        )

    def mass(self, labels: Tensor, *, own: bool = False) -> Tensor | float:
        """Σ t of each target [n, ..., 1] times its share in the sample's mean: a factor of ∂²ℓ/∂z².

        Args:
            labels: The data's.
            own: Whether the model's own labels stand in their place, as in the Fisher matrix: those
                of the data sum to one but for rounding.
        """
        if not labels.is_floating_point():
            return shares(labels)[..., None] if labels.ndim > 1 else 1.0
        if own or self.name != "cross_entropy":
            return 1.0
        total = labels.double().sum(dim=1, keepdim=True)
        return total * (1 - self.label_smoothing) + self.label_smoothing


@dataclass(frozen=True)
class Recording:
    """A loss function that keeps what it puts out."""

    function: LossFunction
    kept: list[Tensor] = field(default_factory=list)

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of each sample [n]."""
        losses = self.function(outputs, labels)
        self.kept.append(losses.double())
        return losses

    @property
    def losses(self) -> Tensor:
        """Of all samples so far [N], float64, on the device."""
        return torch.cat(self.kept)
