"""A data set: two splits as fixed tensors, checked once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lgo_cli.errors import InputError, dtype_name
from lgo_cli.labels import (
    AS_FLOAT,
    IGNORED,
    IGNORING,
    are_distributions,
    num_labels,
    refuse_real_targets,
    refuse_unlabelled,
)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Inputs with their labels or real-valued targets, in stored order, on the CPU.

    Attributes:
        x_train: Training inputs [N, *input_shape], float32; or int64, indices such as tokens.
        y_train: Training labels [N], int64, in [0, num_classes), or [N, ...], several for each
            sample, such as one for each token, -100 where one is ignored; or soft ones
            [N, num_classes], float32, each row a distribution over classes; or real-valued targets
            [N, ...], float32.
        x_test: Test inputs [M, *input_shape], likewise.
        y_test: Test labels, likewise.
        num_classes: Number of classes, at least 2; or of the real values of a target.
        normalization: `mean` and `std` per channel that raw values, scaled to [0, 1], were
            normalised with; `None` if the data are as they came.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    num_classes: int
    normalization: dict[str, list[float]] | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.x_train.shape[1:])

    @property
    def has_real_targets(self) -> bool:
        """Whether the training samples have real-valued targets in the place of labels."""
        y = self.y_train
        return y.is_floating_point() and not bool(are_distributions(y).all())

    def head(self, num_train: int | None) -> Dataset:
        """Keep the first `num_train` training samples in stored order; `None` keeps all."""
        return replace(self, x_train=self.x_train[:num_train], y_train=self.y_train[:num_train])

    def validate(self, source: str) -> Dataset:
        """Check that shapes agree, labels are classes and inputs are finite.

        Args:
            source: What the data came from, for the message.

        Returns:
            The data set itself.

        Raises:
            InputError: naming the split, and the row and its label where there is one.
        """
        for split, x, y in (
            ("train", self.x_train, self.y_train),
            ("test", self.x_test, self.y_test),
        ):
            where = f"{source}: x_{split}"
            if x.ndim < 2:
                raise InputError(
                    f"{where} has shape {list(x.shape)}, but must be [N, ...]",
                    hint="x[:, None]" if x.ndim else None,
                )
            if 0 in x.shape:
                raise InputError(f"{where} is empty: its shape is {list(x.shape)}")
            self._check_labels(f"{source}: y_{split}", split, y, len(x))
            if x.shape[1:] != self.x_train.shape[1:]:
                raise InputError(
                    f"{where} has samples of shape {list(x.shape[1:])}, "
                    f"x_train of {list(self.input_shape)}"
                )
            if x.is_floating_point() != self.x_train.is_floating_point():
                raise InputError(
                    f"{where} has inputs of {dtype_name(x.dtype)}, "
                    f"x_train of {dtype_name(self.x_train.dtype)}",
                    hint="store both as float32; or both as int64 if they are indices",
                )
            # One non-finite value makes the sum so; the search for its row is slow.
            if not bool(x.sum().isfinite()):
                finite = torch.isfinite(x).flatten(1).all(dim=1)
                if not bool(finite.all()):
                    raise InputError(f"{where} is not finite in row {int((~finite).nonzero()[0])}")
        return self

    def _check_labels(self, where: str, split: str, y: Tensor, n: int) -> None:
        shapes = f"{where} has shape {list(y.shape)}, but"
        if len(y) != n:
            raise InputError(f"{shapes} x_{split} has {n} rows")
        if y.is_floating_point():
            self._check_targets(where, y)
            return
        if y.ndim > 1 and num_labels(y) == 1:
            raise InputError(
                f"{shapes} there is one label a row",
                hint='y.squeeze(1); or y.astype("float32") if it is a real-valued target',
            )
        like_train = not self.y_train.is_floating_point()
        if like_train and y.shape[1:] != self.y_train.shape[1:]:
            raise InputError(
                f"{shapes} y_train has shape {list(self.y_train.shape)}",
                hint=AS_FLOAT if 1 in (y.ndim, self.y_train.ndim) else None,
            )
        outside = (y < 0) | (y >= self.num_classes)
        if y.ndim > 1:
            refuse_unlabelled(y, where)
            outside &= y != IGNORED
        if bool(outside.any()):
            row = int(outside.nonzero()[0, 0])
            raise InputError(
                f"{where} has label {int(y[outside][0])} in row {row}, outside "
                f"[0, {self.num_classes})",
                hint=IGNORING if y.ndim > 1 else AS_FLOAT,
            )

    def _check_targets(self, where: str, y: Tensor) -> None:
        """Soft labels, unless both splits have real-valued targets."""
        both = self.y_train.is_floating_point() and self.y_test.is_floating_point()
        are_real = both and self.has_real_targets
        shape = list(self.y_train.shape[1:]) if are_real else [self.num_classes]
        if list(y.shape[1:]) != shape:
            what = "a target" if are_real else "a distribution over classes"
            ravel = ".ravel()" if list(y.shape[1:]) == [1] else ""
            hint = f'class indices are integers: y{ravel}.astype("int64")'
            if not both:
                hint += "; real-valued targets are floating-point in both splits"
            raise InputError(
                f"{where} has shape {list(y.shape)}, but must be "
                f"[{', '.join(map(str, [len(y), *shape]))}], {what} a row",
                hint=None if are_real else hint,
            )
        if not are_real:
            refuse_real_targets(y, where)
        elif not bool(y.isfinite().all()):
            row = int((~y.isfinite()).nonzero()[0, 0])
            raise InputError(f"{where} is not finite in row {row}")


def from_pixels(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    num_classes: int,
    *,
    max_value: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Dataset:
    """Turn raw images into a data set: (pixel / max_value - mean) / std for each channel.

    Args:
        train: Images [N, C, H, W], uint8, and labels [N].
        test: Images [M, C, H, W], uint8, and labels [M].
        num_classes: Number of classes.
        max_value: The brightest value a pixel can have.
        mean: Mean of each channel [C] of the training images, after scaling to [0, 1].
        std: Standard deviation of each channel [C], likewise.
    """

    def normalize(images: Tensor) -> Tensor:
        offset, scale = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
        return images.float().div_(max_value).sub_(offset).div_(scale)

    (x_train, y_train), (x_test, y_test) = train, test
    return Dataset(
        normalize(x_train),
        y_train.long(),
        normalize(x_test),
        y_test.long(),
        num_classes,
        {"mean": list(mean), "std": list(std)},
    )
