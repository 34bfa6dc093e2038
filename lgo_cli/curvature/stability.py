"""At which curvature an optimiser's full-batch steps begin to diverge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lgo_cli.errors import InputError
from lgo_cli.vectors import flatten

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lgo_cli.vectors import ParameterLayout


def stability_threshold(
    optimizer: str,
    lr: float | None,
    momentum: float,
    nesterov: bool,
    first_moment_decay: float = 0.9,
    weight_decay: float = 0.0,
) -> tuple[float | None, str | None]:
    """Largest curvature at which the optimiser is stable on a quadratic, at full batch.

    Gradient descent 2/η; heavy ball (2 + 2β)/η (Polyak 1964); Nesterov (2 + 2β)/(η(1 + 2β)); Adam
    (2 + 2β₁)/((1 − β₁)η), of the preconditioned Hessian and with the preconditioner held fixed
    (Cohen et al. 2022); AdamW the same times 1 − ηω/2, since its decay is no part of the gradient;
    see theory.md, sections 8 and 22. Momentum is torch's, without dampening.

    Args:
        optimizer: `sgd`, `adam` or `adamw`.
        lr: η, the rate of the last step.
        momentum: β of `sgd`.
        nesterov: Whether in Nesterov's form.
        first_moment_decay: β₁ of Adam.
        weight_decay: ω of AdamW. Coupled decay adds to the curvature instead (`sharpness_ratio`).

    Returns:
        The threshold and `None`, or `None` and why there is none.
    """
    if not lr:
        return None, "the learning rate of the last step is 0 or unknown"
    if optimizer != "sgd":
        shrinking = lr * weight_decay if optimizer == "adamw" else 0.0
        beta = first_moment_decay
        return (1 + beta) * (2 - shrinking) / ((1 - beta) * lr), None
    if nesterov:
        return (2 + 2 * momentum) / (lr * (1 + 2 * momentum)), None
    return (2 + 2 * momentum) / lr, None


def sharpness_ratio(
    largest: float | None, threshold: float | None, weight_decay: float, *, coupled: bool
) -> float | None:
    """λmax over the threshold, where both are known; coupled weight decay adds to λmax.

    Above 1, full-batch steps diverge along the sharpest direction of the quadratic model.
    """
    if largest is None or threshold is None:
        return None
    return (largest + (weight_decay if coupled else 0.0)) / threshold


@dataclass(frozen=True)
class Preconditioner:
    """The diagonal D by which Adam divides its averaged gradient (theory.md, section 22).

    Attributes:
        diagonal: (1 − β₁ᵗ)(√(v/(1 − β₂ᵗ)) + ε) for each parameter [P], float64; infinite for one
            that never had a gradient, which Adam never steps.
        first_moment_decay: β₁.
    """

    diagonal: Tensor
    first_moment_decay: float

    @classmethod
    def of(cls, optimizer: Mapping[str, Any], layout: ParameterLayout) -> Preconditioner:
        """Read it from the state_dict of a `torch.optim.Adam` or `AdamW` over all of a layout.

        Raises:
            InputError: if the state is of another optimiser or other parameters.
        """
        try:
            (group,) = optimizer["param_groups"]
            decay, second_decay = group["betas"]
            pieces = []
            for index, shape in zip(group["params"], layout.shapes, strict=True):
                state = optimizer["state"].get(index)
                if state is None:
                    pieces.append(torch.full(shape, torch.inf, dtype=torch.float64))
                    continue
                second = state["exp_avg_sq"].double()
                if second.shape != shape:
                    raise ValueError(f"a second moment has shape {tuple(second.shape)}")
                steps = float(state["step"])
                corrected = second / (1 - second_decay**steps)
                # Adam divides its first moment by this too.
                pieces.append((1 - decay**steps) * (corrected.sqrt() + group["eps"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"the saved optimiser state is not Adam's over these parameters: {error}"
            ) from error
        return cls(flatten(pieces), float(decay))
