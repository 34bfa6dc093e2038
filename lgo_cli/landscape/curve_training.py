"""Training a curve of low loss between two solutions (Garipov et al. 2018; theory.md, section 27).

Minimises E L(θ(t)), t uniform on [0, 1], over the bends; the ends stay where they are.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from lgo_cli.buffers import buffer_tables, modes_of, put_back, set_modes
from lgo_cli.gradients import gradients
from lgo_cli.landscape.curves import Bezier, PolyChain, straight
from lgo_cli.progress import SILENT, Progress
from lgo_cli.second_derivatives import once_differentiable
from lgo_cli.seeding import generator
from lgo_cli.training.loop import Descent, State
from lgo_cli.training.optimizers import make_optimizer
from lgo_cli.vectors import flatten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lgo_cli.config import CurveKind
    from lgo_cli.objective import Objective
    from lgo_cli.results import Recipe
    from lgo_cli.samples import Samples


@dataclass(frozen=True)
class CurveRow:
    """One epoch of a curve's training.

    Attributes:
        epoch: From 1.
        step: Optimiser steps done.
        learning_rate: Of the last of them.
        train_loss: Mean over the epoch's samples, each batch at its own t, in training mode and
            before its step; without weight decay.
    """

    epoch: int
    step: int
    learning_rate: float
    train_loss: float


@dataclass(frozen=True)
class TrainedCurve:
    """A curve and how it came about.

    Attributes:
        curve: Its point(0) and point(1) are the ends given, to the bit.
        history: A row an epoch; none if there was no epoch.
        num_steps: Optimiser steps.
        num_train_samples: That batches were drawn from.
        uses_batch_statistics: Whether the model has running statistics. Training normalised by
            each batch's own, and those stored are of no point of the curve: to measure one, they
            must be estimated there (policy `recompute`).
    """

    curve: Bezier | PolyChain
    history: tuple[CurveRow, ...]
    num_steps: int
    num_train_samples: int
    uses_batch_statistics: bool

    @property
    def train_loss(self) -> float:
        """Of the last epoch, NaN if there was none."""
        return self.history[-1].train_loss if self.history else math.nan


class CurveTraining(Descent):
    """The bends of a curve descend: batches, rates, checks and resumption are those of `lgo train`.

    Each step draws one t from the stream of (seed, step) and takes the model's gradient g at θ(t).
    Since θ(t) = Σ c_i(t) w_i, the gradient by bend i is c_i(t) g: one backward pass serves all.
    Weight decay acts on θ(t): coupled, g + ω θ(t) (as in Garipov et al.'s code); decoupled, with
    `adamw`, bend i moves by −η ω c_i(t) θ(t) beside its step.

    Args:
        objective: Entered. Its model is moved and put in training mode; see `train_curve`.
        train: Training samples on the objective's device and in its dtype, in stored order.
        curve: Where to begin; its bends are trained in place.
        recipe: Everything that was chosen.
        seed: The user's seed.

    Raises:
        InputError: if the model cannot take the samples.
        UsageError: if there is no bend, or the recipe augments samples that are no images.
    """

    stream = "curve"
    row_type = CurveRow
    rows: list[CurveRow]

    def __init__(
        self,
        objective: Objective,
        train: Samples,
        curve: Bezier | PolyChain,
        recipe: Recipe,
        *,
        seed: int = 0,
    ) -> None:
        self.objective = objective
        self.curve = curve
        optimizer = make_optimizer(curve.bends, recipe.model_copy(update={"weight_decay": 0.0}))
        super().__init__(
            objective.model,
            train,
            recipe,
            optimizer,
            seed=seed,
            loss_function=objective.loss_function,
        )
        self._epoch_loss = torch.zeros((), dtype=torch.float64, device=objective.device)
        self._epoch_samples = 0

    def _weights(self) -> dict[str, Tensor]:
        return {
            f"bend {number}": bend.to("cpu", copy=True)
            for number, bend in enumerate(self.curve.bends, start=1)
        }

    def _gradients(self, inputs: Tensor, labels: Tensor) -> Tensor:
        draw = generator(self.seed, "curve", "t", self.step)
        t = float(torch.rand((), dtype=torch.float64, generator=draw))
        theta = self.curve.point(t)
        self.objective.move(theta)
        loss = self._loss(inputs, labels)
        with once_differentiable():
            pieces = gradients(loss, self.objective.parameters)
        gradient = flatten(pieces)
        decay = self.recipe.weight_decay
        decoupled = self.recipe.optimizer == "adamw"
        if decay and not decoupled:
            gradient.add_(theta, alpha=decay)
        coefficients = self.curve.coefficients(np.array([t]))[0].tolist()
        for c, bend in zip(coefficients[1:-1], self.curve.bends, strict=True):
            bend.grad = torch.mul(gradient, c, out=bend.grad)
            if decay and decoupled:
                bend.add_(theta, alpha=-self._rate(self.step) * decay * c)
        self._epoch_loss += loss.detach().double() * len(labels)
        self._epoch_samples += len(labels)
        return loss.detach()

    def _log_epoch(self) -> dict[str, float]:
        if not self._epoch_samples:
            return {}
        row = CurveRow(
            epoch=self.epoch,
            step=self.step,
            learning_rate=self._rate(self.step - 1),
            train_loss=float(self._epoch_loss) / self._epoch_samples,
        )
        self.rows.append(row)
        self._epoch_loss.zero_()
        self._epoch_samples = 0
        return {"loss": row.train_loss}

    def _model_state(self) -> State:
        # A forward pass in training mode may go on from what the last left in a buffer.
        buffers = [buffer.to("cpu", copy=True) for buffer in self.model.buffers()]
        return {"bends": list(self._weights().values()), "buffers": buffers}

    def _load_model_state(self, state: State) -> None:
        for bend, saved in zip(self.curve.bends, state["bends"], strict=True):
            bend.copy_(saved)
        for buffer, saved in zip(self.model.buffers(), state["buffers"], strict=True):
            buffer.copy_(saved)


def train_curve(
    objective: Objective,
    start: Tensor,
    end: Tensor,
    recipe: Recipe,
    *,
    train: Samples,
    kind: CurveKind = "bezier",
    num_bends: int = 1,
    seed: int = 0,
    state: State | None = None,
    on_epoch: Callable[[CurveTraining], None] | None = None,
    progress: Progress = SILENT,
) -> TrainedCurve:
    """Find a path of low loss between two solutions.

    The loss is the objective's, in training mode: batch norm by each batch's statistics, dropout
    on, as the ends were trained. Afterwards the objective is at its centre, in eval mode, its
    buffers what they were.

    Args:
        objective: Entered; lends its model, loss, device and dtype. Its samples are not looked at.
        start: θ(0) [P].
        end: θ(1) [P].
        recipe: As `lgo train` resolves it.
        train: All that batches are drawn from.
        kind: `bezier` or `polychain`.
        num_bends: K.
        seed: The user's seed.
        state: Go on from what `CurveTraining.state` returned at the end of an epoch; the rest of
            the arguments must be those of then, and the result then has the bits of an undisturbed
            training.
        on_epoch: Called after each epoch, when `state` may be taken.
        progress: Told of samples seen, with the loss.

    Cost: a gradient over the training samples an epoch, and K + 2 fused passes over P a step.

    Raises:
        InputError: if `state` is of another training, or the model cannot take the samples.
        UsageError: if there is no bend, or the recipe augments samples that are no images.
        DivergenceError: if a loss or a bend is not finite; holds the last finite bends.
    """
    start = start.to(objective.theta).clone()
    curve = straight(kind, start, end.to(start).clone(), num_bends)
    with _borrowed(objective):
        training = CurveTraining(
            objective,
            train.to(objective.device, objective.dtype),
            curve,
            recipe,
            seed=seed,
        )
        if state is not None:
            training.load_state(state)
        training.run(progress=progress, on_epoch=on_epoch)
    return TrainedCurve(
        curve=curve,
        history=tuple(training.rows),
        num_steps=training.step,
        num_train_samples=len(train),
        uses_batch_statistics=any(
            isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
            for module in objective.model.modules()
        ),
    )


@contextmanager
def _borrowed(objective: Objective) -> Iterator[None]:
    """Put an objective back at its centre, its modes and buffers what they were."""
    modes = modes_of(objective.model)
    tables = buffer_tables(objective.model)
    buffers = [(buffer, buffer.clone()) for buffer in objective.model.buffers()]
    try:
        yield
    finally:
        objective.move(objective.theta)
        objective.model.eval()
        set_modes(modes)
        put_back(tables)
        with torch.no_grad():
            for buffer, saved in buffers:
                buffer.copy_(saved)
