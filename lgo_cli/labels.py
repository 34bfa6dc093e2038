"""What samples are labelled with, and how it shows.

Integers [N, ...] are class labels, one or several a sample, of which some may be ignored. Rows
[N, C] in floating point that are distributions over classes are soft ones; all else in floating
point are real-valued targets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lgo_cli.errors import InputError

IGNORED = -100
"""The label that has no part in a sample's loss, where that has several: PyTorch's."""

SUM_TOLERANCE = 1e-4
"""By which the sum of a soft label may differ from one; rounding of float32 is far below."""

AS_FLOAT = 'y.astype("float32") makes soft labels of rows that are one-hot, real targets of others'
"""What to do about integers that are no class indices."""

IGNORING = f"{IGNORED} is the label that is left out of the loss, as of padding"
"""What to do about labels of several that are no class indices."""


def are_distributions(labels: Tensor) -> Tensor:
    """Which rows [N], bool, of floating-point labels [N, ...] are distributions over classes.

    Those that are not are real-valued targets, and so are all that are no rows of two or more.
    """
    if labels.ndim != 2 or labels.shape[1] == 1:
        return torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    return (labels >= 0).all(dim=1) & ((labels.sum(dim=1) - 1).abs() <= SUM_TOLERANCE)


def num_labels(labels: Tensor) -> int:
    """How many class labels each sample has; a soft one, or a real-valued target, counts as one."""
    return 1 if labels.is_floating_point() else labels[0].numel()


def have_places(labels: Tensor) -> bool:
    """Whether a sample has several labels, or a target of several axes, as an image has."""
    return labels.ndim > (2 if labels.is_floating_point() else 1)


def num_ignored(labels: Tensor) -> int:
    """How many class labels of all samples are ignored; a real-valued target of -100 is none."""
    return 0 if labels.is_floating_point() else int((labels == IGNORED).sum())


def shares(labels: Tensor) -> Tensor:
    """What each of a sample's labels [n, ...] counts in their mean [n, ...], float64.

    All of them the same, but for those that are ignored, which count nothing.
    """
    counts = (labels != IGNORED).double()
    return counts / counts.flatten(1).sum(dim=1).view(-1, *[1] * (labels.ndim - 1))


def refuse_unlabelled(labels: Tensor, where: str) -> None:
    """Check that each sample has a label that is not ignored, of several [N, ...].

    Raises:
        InputError: naming the first that has none.
    """
    empty = (labels == IGNORED).flatten(1).all(dim=1)
    if bool(empty.any()):
        row = int(empty.nonzero()[0])
        raise InputError(f"{where} has no label in row {row}: all are ignored")


def target_norm(labels: Tensor) -> float | None:
    """Root mean square over samples of the norms of real-valued targets; `None` of class labels."""
    if not labels.is_floating_point() or bool(are_distributions(labels).all()):
        return None
    return float(labels.double().flatten(1).square().sum(dim=1).mean().sqrt())


def refuse_real_targets(labels: Tensor, where: str) -> None:
    """Check that each row of floating-point labels is a distribution over classes.

    Raises:
        InputError: naming the first that is not.
    """
    fine = are_distributions(labels)
    if bool(fine.all()):
        return
    row = int((~fine).nonzero()[0])
    values = labels[row].double()
    what = (
        f"no distribution over classes in row {row}: the least entry is "
        f"{float(values.min()):.6g}, the sum {float(values.sum()):.6g}"
    )
    if labels.ndim != 2 or labels.shape[1] == 1:
        what = f"targets of shape {list(labels.shape[1:])}, not one distribution over classes a row"
    raise InputError(
        f"{where} has {what}",
        hint="class indices are integers: y.astype('int64'); real-valued targets, in both splits, "
        "are fitted by --loss squared_error, those in [0, 1] by binary_cross_entropy too",
    )


def refuse_beyond_one(labels: Tensor, where: str) -> None:
    """Check that real-valued targets are probabilities, each by itself.

    Raises:
        InputError: naming the first that is none.
    """
    outside = (labels < 0) | (labels > 1)
    if bool(outside.any()):
        row = int(outside.nonzero()[0, 0])
        raise InputError(
            f"{where} has the target {float(labels[outside][0]):.6g} in row {row}, outside [0, 1]",
            hint="binary_cross_entropy takes probabilities; --loss squared_error any numbers",
        )


def refuse_misfit(outputs: Tensor, labels: Tensor, *, training: bool = False) -> None:
    """Check the shape of outputs [n, ..., C] against labels [n, ...], or targets like the outputs.

    Args:
        outputs: What the model returned.
        labels: Of the same samples.
        training: Whether it was in training mode, where it may return others than in eval mode.

    Raises:
        InputError: if they do not fit together.
    """
    are_targets = labels.is_floating_point()
    if labels.shape == (outputs.shape if are_targets else outputs.shape[:-1]):
        return
    shape = list(labels.shape[1:])
    hint = None
    if are_targets:
        what = f"a target of shape {shape}"
        hint = None if shape else "a single target has an axis, as a single output: y[:, None]"
    elif not shape:
        what = "one label"
        hint = "with labels [samples, ...], such as one for each token, each has its own outputs"
    else:
        what = f"labels of shape {shape}"
        hint = "classes are the last axis: movedim(1, -1) at the model's end puts them there"
        if outputs.ndim <= labels.ndim:
            hint = AS_FLOAT
    wanted = ", ".join(map(str, ["samples", *shape, *([] if are_targets else ["classes"])]))
    raise InputError(
        f"each sample has {what}: {'in training mode ' if training else ''}the model must return "
        f"outputs of shape [{wanted}], it returned {tuple(outputs.shape)}",
        hint=hint,
    )
