"""What every command reports, and how a run was trained."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lgo_cli.config import Augmentation, OptimizerName, Schedule, Strict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Real = Annotated[float, Field(strict=False)]
"""A float that may be non-finite, written as the string "NaN" or "Infinity"."""


def absent_if_nan(value: float | None) -> float | None:
    """A number that was measured, or `None`."""
    return None if value is None or math.isnan(value) else value


Accuracy = Annotated[float | None, BeforeValidator(absent_if_nan)]
"""A fraction of labels; `None`, measured as NaN, where targets are real-valued."""


class Results(Strict):
    """What every command reports."""

    model: str
    dataset: str
    num_parameters: int
    warnings: list[str]


class Recipe(Strict):
    """How a run was trained, every automatic value resolved.

    Schedule `step` takes the rate times `gamma` at each of the `milestones`, fractions of the
    training. A manifest from before they were recorded is of the values that every model had then.
    """

    epochs: int
    batch_size: int
    optimizer: OptimizerName
    lr: float
    momentum: float
    nesterov: bool
    weight_decay: float
    schedule: Schedule
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    warmup_epochs: int
    augment: Augmentation
    loss: str
    label_smoothing: float

    @property
    def is_adaptive(self) -> bool:
        """Whether its steps are preconditioned by second moments, as Adam's are."""
        return self.optimizer != "sgd"


class TrainResults(Results):
    """`lgo train`: the final model on the whole of both splits, in eval mode."""

    train_loss: Real
    test_loss: Real
    train_accuracy: Accuracy
    test_accuracy: Accuracy
    epochs: int
    num_steps: int
    num_train_samples: int
    num_test_samples: int
    final_lr: float | None
    recipe: Recipe
    normalization: dict[str, list[float]] | None
    checkpoints: list[str]


class Measured(Strict):
    """What the objective was."""

    loss: str
    label_smoothing: float
    reduction: Literal["mean"] = "mean"
    includes_weight_decay: Literal[False] = False
    mode: Literal["eval"] = "eval"
    batchnorm: Literal["frozen", "recompute", "interpolate", "batch", "none"]
    batchnorm_samples: int | None = None
    dtype: str
    split: Literal["train"] = "train"
    num_samples: int
    num_available: int
    num_test_samples: int | None = None
    micro_batch_size: int
    labels_per_sample: int = 1
    num_ignored_labels: int = 0


class AnalysisResults(Results):
    """What every analysis reports."""

    measured: Measured


def batchnorm_statistics(measured: Mapping[str, Any], *, pairs: bool = False) -> str:
    """Which batch norm's statistics are.

    Args:
        measured: The fields of `Measured`.
        pairs: Whether there are many paths, each from the first of two checkpoints to the second.
    """
    num_samples = measured.get("batchnorm_samples") or measured["num_samples"]
    micro_batch = counted(measured["micro_batch_size"], "sample")
    return {
        "frozen": f"frozen: those of {'the first of each two' if pairs else 'the run'}",
        "recompute": f"recomputed at every point over {counted(num_samples, 'sample')}",
        "interpolate": "interpolated between those of the checkpoints",
        "batch": f"each micro-batch's own, of {micro_batch}",
    }[measured["batchnorm"]]


STAND_INS = {
    "model.py": "a user's model",
    "loss.py": "a user's loss",
    "data.py": "a user's data",
    "data.npz": "a user's data",
}
"""What requests and results call a file of one's own, so that their bytes do not depend on its
name, and what that is."""


def spelled_out(name: str) -> str:
    """The model or data set of results in words that call no file by a name that it has not."""
    role, _, factory = name.partition(":")
    if role not in STAND_INS:
        return name
    return f"{factory} ({STAND_INS[role]})" if factory else STAND_INS[role]


def counted(number: int, noun: str) -> str:
    """A number of things in words: `1 parameter`, `39,562 parameters`, `2 passes`."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def with_accuracy(accuracy: float | None) -> str:
    """What follows a loss in figures' captions and tables: nothing where there is no accuracy."""
    return "" if accuracy is None else f", accuracy {accuracy:.4f}"


def in_thousands(value: float) -> str:
    """A number of four digits, or its whole part if that has more: `38.52`, `38,000`."""
    # 999.96 has four digits that say 1,000.
    return f"{value:,.0f}" if 999.95 <= abs(value) < 1e9 else f"{value:.4g}"


def percent(share: float, decimals: int = 1) -> str:
    """A share as figures, tables and warnings write it: `18.8 %`."""
    return f"{100 * share:.{decimals}f} %"


def alike(values: Sequence[float], digits: int = 4) -> list[str]:
    """Numbers that stand together, with equally many decimals: so that the largest has its digits.

    What is exactly zero is `0`. Where one is not finite, or the largest takes a power of ten, each
    has its own digits.
    """
    largest = max(map(abs, values))
    if not all(map(math.isfinite, values)) or largest == 0 or "e" in f"{largest:.{digits}g}":
        return [f"{value:.{digits}g}" for value in values]
    decimals = max(0, digits - 1 - math.floor(math.log10(largest)))
    rounded = [round(value, decimals) for value in values]
    fewest = next(n for n in range(decimals + 1) if [round(each, n) for each in rounded] == rounded)
    return ["0" if value == 0 else f"{round(value, fewest) + 0.0:.{fewest}f}" for value in values]


def some(names: Iterable[str]) -> str:
    """The first of some names, as many as have room on a line: `a, b, ...`."""
    names = [*names]
    number = 1
    while number < min(3, len(names)) and len(", ".join(names[: number + 1])) <= 60:
        number += 1
    return ", ".join(names[:number] + ["..."] * (number < len(names)))
