"""The optimisers that a recipe names."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from lgo_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from lgo_cli.results import Recipe

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)


def make_optimizer(weights: Iterable[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    """Optimiser over all that is to be trained.

    Weight decay is coupled (added to the gradient) for `sgd` and `adam`, decoupled for `adamw`, and
    falls on every parameter, biases and batch norm included, as in He et al. 2016.

    Raises:
        UsageError: if there are no weights.
    """
    parameters = list(weights)
    if not any(parameter.numel() for parameter in parameters):
        raise UsageError("the model has no trainable parameter")
    if recipe.optimizer == "sgd":
        return _without_compiler(torch.optim.SGD)(
            parameters,
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
        )
    adaptive = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return _without_compiler(adaptive)(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)


def _without_compiler(optimizer: type[Kind]) -> type[Kind]:
    """An optimiser that does the same and does not import PyTorch's compiler: 1 s and 150 MB.

    These methods are wrapped so that the compiler, where there is one, does not trace them; for
    that each wrapper imports it. Nothing here is compiled: a subclass has what is wrapped, which is
    the method itself in a version that does not wrap it, and `step` without gradients as before.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    own: dict[str, Any] = {name: inspect.unwrap(getattr(optimizer, name)) for name in names}
    own["step"] = torch.no_grad()(inspect.unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), own)
