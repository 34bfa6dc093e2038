"""The step of `lgo train`."""

from __future__ import annotations

import csv
import io
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lgo_cli import checkpoint
from lgo_cli.config import TrainConfig
from lgo_cli.errors import InputError
from lgo_cli.files import atomic_write
from lgo_cli.results import TrainResults, counted
from lgo_cli.runs.names import PAYLOADS, checkpoint_name, optimizer_name
from lgo_cli.runs.steps.base import Context, Step, common, typed
from lgo_cli.training.recipe import resolve_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from lgo_cli.results import Recipe
    from lgo_cli.runs.loaded import Loaded
    from lgo_cli.runs.plan import Plan

STATE_INTERVAL_S = 2.0
"""Seconds between saves of the training state, so that short epochs do not wait for the disk."""


class TrainStep(Step):
    """`lgo train`."""

    def payload_names(self, plan: Plan, loaded: Loaded) -> list[str]:
        """The fixed names, and the checkpoints that `--save-every` will keep, with Adam's state."""
        recipe = _recipe(plan)
        kept = self._checkpoints(plan, loaded, recipe)
        states = [optimizer_name(name) for name in kept] if recipe.is_adaptive else []
        return [*PAYLOADS[plan.command], *kept, *states]

    def _checkpoints(self, plan: Plan, loaded: Loaded, recipe: Recipe) -> list[str]:
        from lgo_cli.training.loop import num_batches

        config = typed(plan, TrainConfig)
        if config.save_every is None:
            return []
        total = recipe.epochs * num_batches(len(loaded.dataset.y_train), recipe.batch_size)
        steps = range(config.save_every, total + 1, config.save_every)
        return [checkpoint_name(step) for step in steps]

    def compute(self, context: Context) -> TrainResults:
        """Train, or go on training where a saved state allows it."""
        from lgo_cli.training.loop import COLUMNS, DivergenceError, Training

        plan, loaded = context.plan, context.loaded
        config = typed(plan, TrainConfig)
        recipe = _recipe(plan)
        with context.stopwatch.phase("compute"):
            training = Training(
                loaded.model,
                loaded.samples("train"),
                loaded.samples("test"),
                recipe,
                seed=config.seed,
                loss_function=loaded.loss_function,
            )
            if config.save_every is not None and config.save_every > training.total_steps:
                context.progress.note(
                    f"warning: --save-every {config.save_every} is more than the "
                    f"{counted(training.total_steps, 'step')} of this training: it keeps no "
                    "checkpoint"
                )
            initial = checkpoint.snapshot(loaded.model)
            self._resume(context, training)
            checkpoint.save(initial, context.path("init.pth"))
            last_saved = time.monotonic()

            def save_state(training: Training) -> None:
                nonlocal last_saved
                if time.monotonic() - last_saved >= STATE_INTERVAL_S:
                    self._save_state(context, training)
                    last_saved = time.monotonic()

            def save_checkpoint(step: int, weights: dict[str, Tensor]) -> None:
                name = checkpoint_name(step)
                checkpoint.save(weights, context.path(name))
                if recipe.is_adaptive:
                    optimizer = {"optimizer": training.optimizer.state_dict()}
                    checkpoint.save(optimizer, context.path(optimizer_name(name)))

            try:
                training.run(
                    progress=context.progress,
                    save_every=config.save_every,
                    on_checkpoint=save_checkpoint,
                    on_epoch=save_state,
                )
            except DivergenceError as error:
                checkpoint.save(error.state, context.path("model.pth"))
                raise
        with context.stopwatch.phase("write"):
            checkpoint.save(checkpoint.snapshot(loaded.model), context.path("model.pth"))
            self._save_state(context, training)
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(asdict(row).values() for row in training.rows)
            with atomic_write(context.path("train.csv")) as handle:
                handle.write(text.getvalue().encode())
        last = training.rows[-1]
        return TrainResults(
            **common(context),
            train_loss=last.train_loss,
            test_loss=last.test_loss,
            train_accuracy=last.train_accuracy,
            test_accuracy=last.test_accuracy,
            epochs=training.epoch,
            num_steps=training.step,
            num_train_samples=len(training.train),
            num_test_samples=len(training.test),
            final_lr=training.final_lr,
            recipe=recipe,
            normalization=loaded.dataset.normalization,
            checkpoints=self._checkpoints(plan, loaded, recipe),
        )

    def _save_state(self, context: Context, training: Any) -> None:
        state = {"fingerprint": context.plan.fingerprint, **training.state()}
        checkpoint.save(state, context.path("state.pth"))

    def _resume(self, context: Context, training: Any) -> None:
        """Load the saved state; without `--resume`, remove it so that none is taken for ours."""
        path = context.path("state.pth")
        if not context.execution.resume:
            path.unlink(missing_ok=True)
            return
        if not path.exists():
            context.progress.note(f"{path.parent} has no saved state: training from the start")
            return
        state = saved_state(path, context.plan.fingerprint, "leave --resume out to start over")
        training.load_state(state)


def _recipe(plan: Plan) -> Recipe:
    return resolve_recipe(typed(plan, TrainConfig))


def saved_state(path: Path, fingerprint: str, start_over: str) -> dict[str, Any]:
    """Read the state that an interrupted training saved.

    Args:
        path: Where it is.
        fingerprint: Of the request that it must be of.
        start_over: What to do to begin anew instead.

    Raises:
        InputError: if it is damaged, or of another training.
    """
    try:
        state = checkpoint.load(path)
    except InputError as error:
        raise InputError(error.message, hint=start_over) from error
    if state.get("fingerprint") != fingerprint:
        raise InputError(
            f"{path} is the state of another training, with other options or data",
            hint=f"give the options of that training, or {start_over}",
        )
    return dict(_with_shared_names(state))


def _with_shared_names(nest: Any) -> Any:
    """The same, with one object for equal names, as in a training that was never interrupted.

    A pickle refers back to a string by its identity: else the state saved next had other bytes.
    """
    if isinstance(nest, dict):
        return {
            sys.intern(name) if isinstance(name, str) else name: _with_shared_names(value)
            for name, value in nest.items()
        }
    return [_with_shared_names(each) for each in nest] if isinstance(nest, list) else nest
