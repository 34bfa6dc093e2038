"""The training loop: deterministic from its seed, resumable to the same bytes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgo_cli.checkpoint import snapshot
from lgo_cli.errors import InputError, NumericsError, UsageError
from lgo_cli.labels import have_places, refuse_misfit
from lgo_cli.loss import LossFunction
from lgo_cli.models.building import refuse_sparse_gradients
from lgo_cli.outputs import call, first_outputs
from lgo_cli.progress import SILENT, Progress, Task
from lgo_cli.samples import (
    Evaluation,
    Samples,
    check_outputs,
    default_micro_batch_size,
    evaluate_model,
)
from lgo_cli.second_derivatives import once_differentiable
from lgo_cli.seeding import derive_seed, generator, seed_default
from lgo_cli.training.optimizers import make_optimizer
from lgo_cli.training.recipe import learning_rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from lgo_cli.results import Recipe

State = dict[str, Any]

CHECK_INTERVAL = 32
"""Steps between looks at the loss: each look waits for the device, so not every step has one."""

CROP_PADDING = 4


@dataclass(frozen=True)
class EpochRow:
    """One line of `train.csv`; epoch 0 is the untrained model. Losses in eval mode, all samples."""

    epoch: int
    step: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float


COLUMNS = tuple(field.name for field in fields(EpochRow))


class DivergenceError(NumericsError):
    """The loss left the finite numbers.

    Attributes:
        state: The last weights known to be finite: a state_dict, or the bends of a curve.
    """

    def __init__(self, message: str, state: dict[str, Tensor], hint: str) -> None:
        super().__init__(message, hint=hint)
        self.state = state


class Descent(ABC):
    """Epochs of mini-batch steps on weights that a subclass names, advanced epoch by epoch.

    Batches of an epoch follow a permutation drawn from (seed, epoch) alone, and what the model
    draws itself (dropout) restarts from (seed, epoch), so that a descent resumed at an epoch's end
    goes on with the very bits of an undisturbed one. A last batch is short, not dropped; one of a
    single sample, which batch norm cannot normalise, is left out of that epoch, unless all are.

    Args:
        model: Sits on the device to use.
        train: Training samples, in stored order.
        recipe: Everything that was chosen.
        optimizer: Over the weights that descend.
        seed: The user's seed.

    Raises:
        InputError: if the model cannot take the samples.
        UsageError: if the recipe augments samples that are no images, or whose labels would have to
            move with them.
    """

    stream: ClassVar[str]
    """What descends: names the random streams, and the task to whoever listens."""

    row_type: ClassVar[type]
    """Of the rows of the log, a dataclass of numbers."""

    rows: list[Any]

    def __init__(
        self,
        model: nn.Module,
        train: Samples,
        recipe: Recipe,
        optimizer: torch.optim.Optimizer,
        *,
        seed: int = 0,
        loss_function: LossFunction | None = None,
    ) -> None:
        if recipe.augment == "crop-flip" and train.inputs.ndim != 4:
            raise UsageError(
                "--augment crop-flip is for images [C, H, W], which these inputs are not",
                hint="--augment none",
            )
        if recipe.augment == "crop-flip" and have_places(train.labels):
            raise UsageError(
                "--augment crop-flip moves images, and not the labels of their places",
                hint="--augment none",
            )
        self.model = model
        self.train = train
        self.recipe = recipe
        self.seed = seed
        self.loss_function = loss_function or LossFunction(recipe.loss, recipe.label_smoothing)
        self.optimizer = optimizer
        self._devices = [train.inputs.device] if train.inputs.is_cuda else []
        with torch.random.fork_rng(devices=self._devices):
            model.eval()  # whose result may be anything, where a model has its own
            refuse_sparse_gradients(model)
            self.loss_function.check(train.labels)
            check_outputs(model, train, self.loss_function)
        self.steps_per_epoch = num_batches(len(train), recipe.batch_size)
        self.epoch = 0
        self.step = 0
        self.rows = []
        self._pending: list[Tensor] = []

    @abstractmethod
    def _weights(self) -> dict[str, Tensor]:
        """Copy on the CPU of what descends: looked at for what is not finite, kept if all is."""

    @abstractmethod
    def _gradients(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Give the optimiser its gradients of a mini-batch's loss; returns the loss, detached."""

    def _loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of a mini-batch, of the model in training mode."""
        outputs = call(self.model, inputs, training=True)
        if self.loss_function.function is None:
            refuse_misfit(outputs, labels, training=True)
        return self.loss_function(outputs, labels).mean()

    @abstractmethod
    def _log_epoch(self) -> dict[str, float]:
        """Log the epoch that ended, or the start; returns figures to show beside the bar."""

    @abstractmethod
    def _model_state(self) -> State:
        """What a continuation needs beside optimiser, position and log."""

    @abstractmethod
    def _load_model_state(self, state: State) -> None:
        """Put back what `_model_state` returned."""

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.recipe.epochs * self.steps_per_epoch

    @property
    def final_lr(self) -> float | None:
        """Rate of the last optimiser step, `None` before the first."""
        return self._rate(self.step - 1) if self.step else None

    def _rate(self, step: int) -> float:
        return learning_rate(self.recipe, step, self.steps_per_epoch)

    def state(self) -> State:
        """All that a continuation needs: weights, optimiser, position and the log so far."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "rows": [list(astuple(row)) for row in self.rows],
            **self._model_state(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: State) -> None:
        """Continue from what `state` returned.

        Raises:
            InputError: if it is of another training.
        """
        try:
            self._load_model_state(state)
            self.optimizer.load_state_dict(state["optimizer"])
            self.epoch, self.step = state["epoch"], state["step"]
            self.rows = [self.row_type(*row) for row in state["rows"]]
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise InputError(f"the saved training state does not fit: {error}") from error

    def run(
        self,
        *,
        progress: Progress = SILENT,
        save_every: int | None = None,
        on_checkpoint: Callable[[int, dict[str, Tensor]], None] | None = None,
        on_epoch: Callable[[Self], None] | None = None,
    ) -> None:
        """Go down to the end of the recipe.

        Args:
            progress: Told of samples seen, with the loss.
            save_every: Optimiser steps between checkpoints.
            on_checkpoint: Called with the step's number and the weights.
            on_epoch: Called after each epoch, when `state` may be taken.

        Raises:
            DivergenceError: if a loss or a weight is not finite.
            InputError: if the model fails or returns other outputs in training mode.
            UsageError: if batch norm is to normalise a single sample.
        """
        with torch.random.fork_rng(devices=self._devices):
            self._last_finite = self._weights()
            if not self.rows:
                self._log_epoch()
            total = self.recipe.epochs * len(self.train)
            with progress.task(self.stream, total, "samples") as task:
                task.advance(self.epoch * len(self.train))
                while self.epoch < self.recipe.epochs:
                    self._train_epoch(task, save_every, on_checkpoint)
                    self.epoch += 1
                    task.advance(0, **self._log_epoch())
                    if on_epoch:
                        on_epoch(self)

    def _train_epoch(
        self,
        task: Task,
        save_every: int | None,
        on_checkpoint: Callable[[int, dict[str, Tensor]], None] | None,
    ) -> None:
        seed_default(derive_seed(self.seed, self.stream, "noise", self.epoch), self._devices)
        draw = generator(self.seed, self.stream, "order", self.epoch)
        augment = generator(self.seed, self.stream, "augment", self.epoch)
        order = torch.randperm(len(self.train), generator=draw).to(self.train.labels.device)
        self.model.train()
        seen = 0
        for indices in torch.split(order, self.recipe.batch_size):
            seen += len(indices)
            if len(indices) < min(2, len(order), self.recipe.batch_size):
                continue
            inputs = self.train.inputs[indices]
            if self.recipe.augment == "crop-flip":
                inputs = crop_and_flip(inputs, augment)
            self._pending.append(self._step(inputs, self.train.labels[indices]))
            saves = bool(save_every) and self.step % (save_every or 1) == 0
            if saves or len(self._pending) == CHECK_INTERVAL:
                task.advance(seen, loss=self._look())
                seen = 0
            if saves and on_checkpoint:
                on_checkpoint(self.step, self._last_finite)
        task.advance(seen)
        self._look()

    def _step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(self.step)
        loss = self._gradients(inputs, labels)
        self.optimizer.step()
        self.step += 1
        return loss

    def _look(self) -> float:
        """Read the losses of the steps since the last look, and keep the weights if all is finite.

        Returns:
            The latest loss, NaN if there was no step.
        """
        losses = torch.stack(self._pending).tolist() if self._pending else []
        first_step = self.step - len(losses) + 1
        self._pending.clear()
        for offset, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise self._diverged("training loss", loss, first_step + offset)
        state = self._weights()
        for name, tensor in state.items():
            if not bool(torch.isfinite(tensor).all()):
                raise self._diverged(name, float("nan"), self.step)
        self._last_finite = state
        return losses[-1] if losses else math.nan

    def _diverged(self, what: str, value: float, step: int) -> DivergenceError:
        if step:
            text = f"became {value} at step {step} of {self.total_steps}, "
            text += f"with learning rate {self._rate(step - 1):g}"
            hint = "lower the learning rate: --lr, or warm it up first"
        else:
            text = f"is {value} before the first step"
            outputs = first_outputs(self.model, self.train.head(2).inputs)
            hint = self.loss_function.advice(outputs) or (
                "see what the model puts out for these data as it is initialised"
            )
        return DivergenceError(f"{what} {text}", self._last_finite, hint)


class Training(Descent):
    """One training run: the model's own parameters descend, in place.

    Args:
        model: Trained in place; sits on the device to use.
        train: Training samples, in stored order.
        test: Test samples.
        recipe: Everything that was chosen.
        seed: The user's seed.
        loss_function: One's own; by default the recipe's.

    Raises:
        InputError: if the model cannot take the samples.
        UsageError: if it has no trainable parameter, or the recipe augments samples that are no
            images.
    """

    stream = "train"
    row_type = EpochRow
    rows: list[EpochRow]

    def __init__(
        self,
        model: nn.Module,
        train: Samples,
        test: Samples,
        recipe: Recipe,
        *,
        seed: int = 0,
        loss_function: LossFunction | None = None,
    ) -> None:
        self.test = test
        optimizer = make_optimizer((p for p in model.parameters() if p.requires_grad), recipe)
        super().__init__(model, train, recipe, optimizer, seed=seed, loss_function=loss_function)

    def _weights(self) -> dict[str, Tensor]:
        return snapshot(self.model)

    def _gradients(self, inputs: Tensor, labels: Tensor) -> Tensor:
        loss = self._loss(inputs, labels)
        self.optimizer.zero_grad()
        with once_differentiable():
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _model_state(self) -> State:
        return {"model": snapshot(self.model)}

    def _load_model_state(self, state: State) -> None:
        self.model.load_state_dict(state["model"])

    def _log_epoch(self) -> dict[str, float]:
        train, test = self.evaluate(self.train), self.evaluate(self.test)
        if not math.isfinite(train.loss):
            raise self._diverged("training loss", train.loss, self.step)
        row = EpochRow(
            epoch=self.epoch,
            step=self.step,
            learning_rate=self._rate(max(self.step, 1) - 1),
            train_loss=train.loss,
            train_accuracy=train.accuracy,
            test_loss=test.loss,
            test_accuracy=test.accuracy,
        )
        self.rows.append(row)
        has_accuracy = not math.isnan(test.accuracy)
        return {"accuracy": test.accuracy} if has_accuracy else {"test_loss": test.loss}

    def evaluate(self, samples: Samples) -> Evaluation:
        """The model as it stands, in eval mode, on all of `samples`."""
        self.model.eval()
        return evaluate_model(
            self.model,
            samples,
            self.loss_function,
            default_micro_batch_size(self.model, samples.labels),
        )


def num_batches(num_samples: int, batch_size: int) -> int:
    """Optimiser steps of one epoch: a short last batch counts, unless it is a single sample."""
    full, rest = divmod(num_samples, batch_size)
    return full + int(rest > 1 or (rest == 1 and full == 0))


def crop_and_flip(inputs: Tensor, draw: torch.Generator) -> Tensor:
    """Random crop after zero padding by 4 pixels, and mirror image with probability one half.

    Args:
        inputs: Images [n, C, H, W].
        draw: CPU generator.

    Returns:
        Images [n, C, H, W] (He et al. 2016, section 4.2).
    """
    n, _, height, width = inputs.shape
    padded = F.pad(inputs, (CROP_PADDING,) * 4)
    top, left = torch.randint(0, 2 * CROP_PADDING + 1, (2, n, 1), generator=draw)
    mirrored = torch.randint(0, 2, (n, 1), generator=draw).bool()
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    columns = torch.where(mirrored, columns.flip(1), columns)
    # Indices on the CPU would make it wait for a GPU at each step.
    rows, columns = (index.to(inputs.device, non_blocking=True) for index in (rows, columns))
    index = torch.arange(n, device=inputs.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )
