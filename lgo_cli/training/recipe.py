"""How a run is trained: what the user asked for, completed by the model's published recipe."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lgo_cli.errors import UsageError
from lgo_cli.factories import recorded_name
from lgo_cli.models.registry import recipe_of
from lgo_cli.results import Recipe

if TYPE_CHECKING:
    from lgo_cli.config import RecipeConfig

NATURAL_IMAGES = ("cifar10", "cifar100")
"""Data sets whose classes survive a shift and a mirror: crop-flip is a default only for these."""


def resolve_recipe(config: RecipeConfig) -> Recipe:
    """Fill each automatic value of the config from the model's published recipe.

    A user who names an optimiser other than the recipe's gets that optimiser's own usual rate
    (Adam and AdamW: 1e-3) and no momentum, since the recipe's belong to its optimiser.
    """
    published = recipe_of(str(config.model))
    optimizer = config.optimizer or published.optimizer
    adaptive = optimizer != "sgd"
    own = optimizer == published.optimizer
    lr = published.lr if own else (1e-3 if adaptive else 0.1)
    momentum = 0.0 if adaptive else (published.momentum if own else 0.9)
    if config.momentum is not None:
        momentum = config.momentum
    if adaptive and (momentum or config.nesterov):
        raise UsageError(f"--momentum and --nesterov do not go with --optimizer {optimizer}")
    if config.nesterov and momentum == 0:
        raise UsageError("--nesterov needs a --momentum above 0")
    epochs = published.epochs if config.epochs is None else config.epochs
    if config.warmup_epochs > epochs:
        raise UsageError(
            f"--warmup-epochs {config.warmup_epochs} is more than the {epochs} epochs there are"
        )
    augment = published.augment if config.dataset in NATURAL_IMAGES else "none"
    return Recipe(
        epochs=epochs,
        batch_size=config.batch_size or published.batch_size,
        optimizer=optimizer,
        lr=config.lr or lr,
        momentum=momentum,
        nesterov=config.nesterov,
        weight_decay=(
            published.weight_decay if config.weight_decay is None else config.weight_decay
        ),
        schedule=config.schedule or published.schedule,
        milestones=published.milestones,
        gamma=published.gamma,
        warmup_epochs=config.warmup_epochs,
        augment=config.augment or augment,
        loss=recorded_name(config.loss or "cross_entropy", "loss.py"),
        label_smoothing=config.label_smoothing or 0.0,
    )


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Rate of optimiser step `step` (counted from 0).

    Linear warm-up over `warmup_epochs`, from 1/W of the rate at the first of W steps; then
    constant, or half a cosine towards zero over the remaining steps (Loshchilov & Hutter 2017,
    without restarts), or the recipe's `gamma` times the rate for each of its milestones passed.
    """
    warmup = recipe.warmup_epochs * steps_per_epoch
    total = recipe.epochs * steps_per_epoch
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    if recipe.schedule == "cosine":
        progress = (step - warmup) / max(total - warmup, 1)
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * progress))
    if recipe.schedule == "step":
        passed = sum(step >= milestone * total for milestone in recipe.milestones)
        return recipe.lr * float(recipe.gamma**passed)
    return recipe.lr
