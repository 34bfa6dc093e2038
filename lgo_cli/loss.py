"""Loss of a sample, from a network's outputs and its labels (theory.md, section 1).

Shapes: n samples, C classes; "..." are the axes along which a sample has several labels, such as
the tokens of a text, usually none. A real-valued target has the shape of the outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lgo_cli.errors import InputError, UsageError, a_kind, dtype_name
from lgo_cli.factories import parse_factory, recorded_name, user_function
from lgo_cli.gradients import gradients
from lgo_cli.labels import (
    IGNORED,
    are_distributions,
    refuse_beyond_one,
    refuse_misfit,
    refuse_real_targets,
    shares,
    target_norm,
)
from lgo_cli.loss_names import LOSSES, resolve_loss
from lgo_cli.outputs import model_failures

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import JsonValue

LEAST_ROW = 16
"""Classes from which on PyTorch's softmax over rows is the faster one on a CPU, where a vector has
room for 16: with 10 it takes 6 times as long as over columns."""

UNDERFLOW = 745.2
"""e to the power of less than minus this is zero in float64."""


@dataclass(frozen=True)
class RoundingScale:
    """a + b·L + c·√L: what rounding of the outputs moves a mean loss L by, in units of its eps."""

    constant: float = 1.0
    linear: float = 1.0
    root: float = 0.0

    def of(self, loss: float) -> float:
        """Of a mean loss, or of its size where one's own is negative."""
        return self.constant + self.linear * abs(loss) + self.root * math.sqrt(abs(loss))


@dataclass(frozen=True)
class LossFunction:
    """Loss of each sample; its mean over samples is the objective.

    That of a sample with several labels is the mean over them, less those that are ignored (-100).

    Attributes:
        name: `cross_entropy` (natural logarithm, on logits); or `binary_cross_entropy`, the sum
            over outputs of −t log σ(z) − (1 − t) log(1 − σ(z)); or `squared_error`, which is
            ½‖f(x) − t‖². Their target t is the one-hot one, or real-valued. Any other of a
            function of one's own.
        label_smoothing: s in [0, 1): the target is (1 − s)·onehot(y) + s/C, in these losses.
        function: One's own, from outputs [n, ..., C] and the data's labels [n, ...] to losses [n].

    Raises:
        UsageError: if it is another name, or s is outside.
    """

    name: str = "cross_entropy"
    label_smoothing: float = 0.0
    function: Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.function is None:
            resolve_loss(self.name, {})
            if self.name not in LOSSES:
                raise UsageError(
                    f"{self.name} is a name without its function",
                    hint="LossFunction.named, or LossFunction(NAME, function=FUNCTION)",
                )
        elif self.label_smoothing:
            raise UsageError(
                f"a label smoothing of {self.label_smoothing:g} is of lgo's own losses, not of "
                f"{self.called}",
                hint="--label-smoothing 0; what your own takes is a --loss-arg",
            )
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"a label smoothing of {self.label_smoothing} is outside [0, 1)")

    @classmethod
    def named(
        cls, loss: str, loss_arg: Mapping[str, JsonValue], label_smoothing: float
    ) -> LossFunction:
        """One of lgo's own, or the function that a reference names, which permits it to run.

        Raises:
            UsageError, InputError: as `LossFunction` and `factories.user_function`.
        """
        factory = parse_factory(loss)
        if factory is None:
            return cls(loss, label_smoothing)
        function = user_function(loss, factory, loss_arg, ("outputs", "labels"))
        return cls(recorded_name(loss, "loss.py"), label_smoothing, function)

    @property
    def called(self) -> str:
        """Its name in a sentence."""
        return self.name.rpartition(":")[2]

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Losses [n] from outputs [n, ..., C] and labels [n, ...], or targets like the outputs.

        Raises:
            InputError: if they do not fit together, or one's own function fails.
        """
        if self.function is not None:
            return self._own(outputs, labels)
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
        if self.name == "binary_cross_entropy":
            each = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
            return each.flatten(1).sum(dim=1)
        return 0.5 * (outputs - targets).square().flatten(1).sum(dim=1)

    def _own(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The same of one's own function, whose losses are looked at."""
        assert self.function is not None
        needs_gradient = torch.is_grad_enabled() and outputs.requires_grad
        with model_failures(f"the loss {self.called} fails"):
            # Copies: it may write into them, and they are read again, the labels as the data's.
            losses = self.function(outputs.clone(), labels.clone())
        must = f"{self.called} must return the loss of each sample, a tensor [{len(outputs)}] here"
        if not isinstance(losses, Tensor):
            raise InputError(f"{must}, it returned {a_kind(losses)}")
        if losses.shape != outputs.shape[:1] or not losses.is_floating_point():
            hint = "reduction='none' leaves out the mean over samples"
            if losses.ndim > 1:
                hint = "losses.flatten(1).mean(dim=1), or their sum, is one for each sample"
            raise InputError(
                f"{must}, it returned {dtype_name(losses.dtype)} of shape {tuple(losses.shape)}",
                hint=hint,
            )
        if needs_gradient and not losses.requires_grad:
            raise InputError(
                f"{self.called} has no gradient: autograd sees no outputs behind it",
                hint="leave out detach(), torch.no_grad(), argmax, NumPy and the like",
            )
        return losses.to(outputs.dtype)

    def check(self, labels: Tensor, where: str = "the data set") -> None:
        """See that it is a loss of such labels; what one's own takes it says itself.

        Raises:
            InputError: if they are real-valued targets, and the loss, or its smoothing, is of class
                labels; or they are no probabilities.
        """
        if self.function is not None or not labels.is_floating_point():
            return
        if self.name == "cross_entropy" or self.label_smoothing:
            refuse_real_targets(labels, where)
        elif self.name == "binary_cross_entropy":
            refuse_beyond_one(labels, where)

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Share of each sample's labels that have the largest output [n], float64.

        Of `binary_cross_entropy` and real-valued targets it is that of the outputs which are on
        the right side of zero. NaN where nothing is right or wrong: of other real-valued targets,
        and where the outputs of one's own loss are no classes.
        """
        are_classes = not labels.is_floating_point()
        if self.name == "binary_cross_entropy" and not are_classes:
            return ((outputs > 0) == (labels > 0.5)).double().flatten(1).mean(dim=1)
        num_classes = outputs.shape[-1]
        fits = labels.shape == (outputs.shape[:-1] if are_classes else outputs.shape)
        if self.function is not None and not (fits and num_classes > 1):
            return outputs.new_full(outputs.shape[:1], math.nan, dtype=torch.float64)
        classes = labels if are_classes else labels.argmax(dim=-1)
        # Twice as fast as argmax, and the first of equal ones likewise.
        correct = (outputs.max(dim=-1).indices == classes).double()
        if not are_classes:
            first = correct.view(len(labels), -1)[:, 0]
            return torch.where(are_distributions(labels), first, math.nan)
        if self.function is not None:
            correct = torch.where(classes < num_classes, correct, math.nan)
        return correct if labels.ndim == 1 else (shares(labels) * correct).flatten(1).sum(dim=1)

    def curving(self, outputs: Tensor) -> Tensor:
        """Outputs [n, ..., C], zero where they have no part in ∂²ℓ/∂z².

        Of cross entropy, binary or not, those whose probability is zero in float64, as of masked
        classes; of squared error all: it is the identity. Those of ignored labels count: none are
        given.
        """
        if self.name == "squared_error":
            return torch.zeros_like(outputs)
        if self.name == "cross_entropy":
            least = outputs.amax(dim=-1, keepdim=True) - UNDERFLOW
            return torch.where(outputs < least, 0.0, outputs)
        if self.name == "binary_cross_entropy":
            return torch.where(outputs.abs() > UNDERFLOW, 0.0, outputs)
        return outputs

    def curve(
        self, outputs: Tensor, labels: Tensor, tangent: Tensor, *, own_labels: bool = False
    ) -> Tensor:
        """(∂²ℓ/∂z²)·u [n, ..., C]: in closed form, of one's own loss by double backward.

        Args:
            outputs: z [n, ..., C].
            labels: The data's [n, ...].
            tangent: u [n, ..., C].
            own_labels: Whether the model's own stand in their place, as in the Fisher matrix.

        Raises:
            UsageError: if they are asked for of one's own loss.
        """
        if self.function is not None:
            if own_labels:
                raise UsageError(
                    f"{self.called} says of no distribution which labels the model would draw",
                    hint="--operator ggn, or empirical-fisher",
                )
            with torch.enable_grad():
                z = outputs.detach().requires_grad_()
                (slope,) = gradients(self(z, labels).sum(), [z], create_graph=True)
                if not slope.requires_grad:  # linear
                    return torch.zeros_like(tangent)
                return gradients((slope * tangent).sum(), [z])[0]
        mass = self._mass(labels, own_labels=own_labels)
        if self.name == "squared_error":
            return mass * tangent
        outputs = outputs.detach()
        if self.name == "binary_cross_entropy":
            return mass * torch.sigmoid(outputs) * torch.sigmoid(-outputs) * tangent
        p = torch.softmax(outputs, dim=-1)
        # The same for all tangents that differ by a constant. Less that of the likeliest class,
        # nothing large cancels where a sample is fitted and its p is all but one.
        tangent = tangent - tangent.gather(-1, outputs.argmax(dim=-1, keepdim=True))
        scaled = mass * p * tangent
        return scaled - p * scaled.sum(dim=-1, keepdim=True)

    def curvature_factor(
        self, outputs: Tensor, labels: Tensor, *, own_labels: bool = False
    ) -> tuple[list[Tensor], Tensor]:
        """Columns and signs with Σ_c ± s_c s_cᵀ = ∂²ℓ/∂z² of each sample.

        √(p_c m) (e_c − p) for cross entropy, √(σ(z_c) σ(−z_c) m) e_c for the binary one and √m e_c
        for squared error, at one label after the other, with Σ t of its target, times its share in
        the sample's mean, for m; these are convex in the outputs, and all signs positive. Of one's
        own, √|λ_c| q_c by eigenvectors, with the sign of λ_c.

        Args:
            outputs: z [n, ..., C].
            labels: The data's [n, ...].
            own_labels: As for `curve`.

        Returns:
            s_c, each like the outputs, and signs [columns, n], or [columns, 1] where all samples'
            are the same.
        """
        z = outputs.detach()
        if self.function is not None:
            return self._eigenvectors(z, labels)
        mass = z.new_ones(*z.shape[:-1], 1) * self._mass(labels, own_labels=own_labels)
        # [n, labels, C] and [n, labels, 1].
        z, mass = (each.view(len(z), -1, each.shape[-1]) for each in (z, mass))
        p = torch.softmax(z, dim=-1)
        columns = []
        for place in range(z.shape[1]):
            for c in range(z.shape[2]):
                column = torch.zeros_like(z)
                if self.name == "squared_error":
                    column[:, place, c] = mass[:, place, 0].sqrt()
                elif self.name == "binary_cross_entropy":
                    of_c = z[:, place, c]
                    variance = torch.sigmoid(of_c) * torch.sigmoid(-of_c) * mass[:, place, 0]
                    column[:, place, c] = variance.sqrt()
                else:
                    column[:, place] = -p[:, place]
                    column[:, place, c] += 1
                    column[:, place] *= (p[:, place, c : c + 1] * mass[:, place]).sqrt()
                columns.append(column.view_as(outputs))
        return columns, z.new_ones(len(columns), 1)

    def _eigenvectors(self, outputs: Tensor, labels: Tensor) -> tuple[list[Tensor], Tensor]:
        rows = []
        for index in range(outputs[0].numel()):
            unit = torch.zeros_like(outputs).flatten(1)
            unit[:, index] = 1
            rows.append(self.curve(outputs, labels, unit.view_as(outputs)).flatten(1))
        values, vectors = torch.linalg.eigh(torch.stack(rows, dim=2))
        scaled = vectors * values.abs().sqrt()[:, None]
        return [column.view_as(outputs) for column in scaled.unbind(dim=2)], values.sign().T

    def rounding_scale(self, labels: Tensor, sensitivity: float) -> RoundingScale:
        """By how much rounding of the outputs moves a mean loss.

        Args:
            labels: The data's [n, ...].
            sensitivity: `Objective.sensitivity`, for one's own loss.
        """
        if self.function is not None:
            return RoundingScale(0.0, max(1.0, sensitivity))
        norm = target_norm(labels) if self.name == "squared_error" else None
        return RoundingScale() if norm is None else RoundingScale(0.0, 2.0, norm * math.sqrt(2))

    @staticmethod
    def advice(outputs: Tensor) -> str | None:
        """What to say of a loss that is not finite, if some outputs [n, ..., C] tell."""
        if not bool(outputs.isneginf().any()):
            return None
        return (
            "classes that are masked by outputs of -inf have a finite loss in cross entropy alone, "
            "without --label-smoothing or soft labels, and where no sample is of such a class"
        )

    def _mass(self, labels: Tensor, *, own_labels: bool) -> Tensor | float:
        """Σ t of each target [n, ..., 1] times its share in the sample's mean: a factor of ∂²ℓ/∂z².

        Soft labels sum to one but for rounding, the model's own exactly.
        """
        if not labels.is_floating_point():
            return shares(labels)[..., None] if labels.ndim > 1 else 1.0
        if own_labels or self.name != "cross_entropy":
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

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Share of each sample's labels that are right [n]."""
        return self.function.correct(outputs, labels)

    @property
    def losses(self) -> Tensor:
        """Of all samples so far [N], float64, on the device."""
        return torch.cat(self.kept)
