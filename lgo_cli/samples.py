"""A fixed set of samples, and what one pass of a model over them measures.

Shapes: N samples, C classes, n samples of a batch; "..." the axes along which a sample has several
labels, usually none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lgo_cli.errors import InputError, a_kind
from lgo_cli.labels import (
    IGNORED,
    IGNORING,
    num_labels,
    refuse_misfit,
    refuse_unlabelled,
)
from lgo_cli.outputs import call, first_outputs
from lgo_cli.results import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lgo_cli.loss import LossFunction, Recording


MOST_OUTPUTS = 2**24
"""Numbers that a micro-batch puts out, as far as labels tell: an evaluation takes about 24 bytes
for each, a Hessian's graph and its product 60."""


@dataclass(frozen=True)
class Samples:
    """A fixed set of samples, in a fixed order, on the device.

    Attributes:
        inputs: [N, *input_shape]; of the floating dtype of the arithmetic, or int64 indices.
        labels: [N, ...], int64; or soft labels [N, C], each row a distribution over classes; or
            real-valued targets, of the shape of the model's outputs.

    Raises:
        TypeError: if they are no tensors.
        ValueError: if there are none, or a sample has no label.
    """

    inputs: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        for values in (self.inputs, self.labels):
            if not isinstance(values, Tensor):
                raise TypeError(f"samples are tensors, not {a_kind(values)}: torch.as_tensor")
        if not len(self.inputs) == len(self.labels) > 0:
            raise ValueError(f"{len(self.inputs)} inputs and {len(self.labels)} labels")
        if not self.labels.numel():
            raise ValueError(f"labels of shape {list(self.labels.shape)}: samples have none")

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device, dtype: torch.dtype) -> Samples:
        """The same samples on a device, inputs in a dtype unless they are integers."""
        dtype = dtype if self.inputs.is_floating_point() else self.inputs.dtype
        return Samples(self.inputs.to(device, dtype), self.labels.to(device))

    def head(self, num_samples: int) -> Samples:
        """The first rows, in stored order."""
        return Samples(self.inputs[:num_samples], self.labels[:num_samples])

    def batches(self, size: int) -> Iterator[Samples]:
        """Consecutive batches; the last may be short."""
        pairs = zip(torch.split(self.inputs, size), torch.split(self.labels, size), strict=True)
        return (Samples(inputs, labels) for inputs, labels in pairs)


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a set of samples measures.

    Attributes:
        loss: Mean loss over the samples; may be non-finite.
        standard_error: Of that mean, the samples taken as independent draws.
        accuracy: Mean of `LossFunction.correct`; NaN where that has none.
        num_samples: N.
    """

    loss: float
    standard_error: float
    accuracy: float
    num_samples: int


def default_micro_batch_size(model: nn.Module, labels: Tensor) -> int:
    """Samples per pass, from shapes and never from a timing, so that bytes repeat.

    Activations of convolutions are large and want to stay in cache; those of dense layers are small
    and want wide products. A parameter of more than two dimensions tells: a convolution's, of a
    module or of a user's own, or an embedding of positions, whose activations are as large. Where
    a sample has several labels [N, ...], each has activations and outputs of its own: those of a
    large vocabulary, or of large targets, are `MOST_OUTPUTS` at most.
    """
    has_positions = any(parameter.ndim > 2 for parameter in model.parameters())
    size = min(128 if has_positions else 4096, 4096 // num_labels(labels))
    num_classes = 1 if labels.is_floating_point() else max(1, int(labels.max()) + 1)
    return max(1, min(size, MOST_OUTPUTS // (labels[0].numel() * num_classes)))


def check_outputs(model: nn.Module, samples: Samples, loss_function: LossFunction) -> Tensor:
    """Run a model on two samples and refuse what a loss does not take beside their labels.

    Returns:
        The outputs [2, ..., C].

    Raises:
        InputError: if the model cannot take the inputs, returns anything but real numbers
            [n, ..., C], or has other outputs than the labels need; or one's own loss fails.
    """
    first = samples.head(2)
    outputs = first_outputs(model, first.inputs)
    if loss_function.function is not None:
        loss_function(outputs.double(), first.labels)
        return outputs
    refuse_misfit(outputs, first.labels)
    if first.labels.ndim > 1 and not first.labels.is_floating_point():
        refuse_unlabelled(samples.labels, "the data")
    refuse_unknown(samples.labels, outputs.shape[-1])
    return outputs


def refuse_unknown(labels: Tensor, num_outputs: int) -> None:
    """Check that a model has an output for each label, but for those of several that are ignored.

    Raises:
        InputError: naming a label for which it has none.
    """
    if labels.is_floating_point():
        return
    known = labels if labels.ndim == 1 else labels[labels != IGNORED]
    least, largest = int(known.min()), int(known.max())
    if least >= 0 and largest < num_outputs:
        return
    hint = IGNORING if labels.ndim > 1 else None
    if num_outputs == 1:
        hint = (
            'one output has targets: y.astype("float32")[:, None], for --loss '
            "binary_cross_entropy; two classes have two outputs"
        )
    raise InputError(
        f"the data have label {least if least < 0 else largest}, "
        f"but the model puts out {counted(num_outputs, 'class')}",
        hint=hint,
    )


@torch.no_grad()
def evaluate_model(
    model: nn.Module, samples: Samples, loss_function: LossFunction | Recording, batch_size: int
) -> Evaluation:
    """Mean loss, its standard error and accuracy of a model as it stands.

    Every sample weighs the same, also in a short last batch.
    """
    batches = samples.batches(batch_size)
    calls = ((call(model, batch.inputs), batch.labels) for batch in batches)
    return evaluate_outputs(calls, loss_function, samples)


def evaluate_outputs(
    calls: Iterable[tuple[Tensor, Tensor]],
    loss_function: LossFunction | Recording,
    samples: Samples,
) -> Evaluation:
    """The same of outputs and labels, batch by batch, of all samples; one synchronisation."""
    totals = torch.zeros(3, dtype=torch.float64, device=samples.labels.device)
    for outputs, labels in calls:
        totals += _loss_totals(outputs, labels, loss_function)
    total, squares, correct = totals.tolist()
    n = len(samples)
    mean = total / n
    variance = max(squares / n - mean * mean, 0.0) if math.isfinite(squares) else math.nan
    standard_error = math.sqrt(variance / (n - 1)) if n > 1 else math.nan
    return Evaluation(mean, standard_error, correct / n, n)


def _loss_totals(
    outputs: Tensor, labels: Tensor, loss_function: LossFunction | Recording
) -> Tensor:
    """Sums over samples of loss, squared loss and share of correct answers [3], float64.

    On the device.

    Losses are taken of the outputs in float64: in float32 the cross entropy of a sample that is
    fitted moves in steps of 6e-8, of which a mean loss of 1e-7 has but few.
    """
    losses = loss_function(outputs.double(), labels)
    correct = loss_function.correct(outputs, labels)
    return torch.stack([losses.sum(), losses.square().sum(), correct.sum()])
