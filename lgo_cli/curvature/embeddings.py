"""Embeddings whose gradients, as PyTorch takes them, are no derivatives of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

    from lgo_cli.objective import Objective


@dataclass(frozen=True)
class FalseDerivative:
    """Entries of θ by which autograd does not differentiate the loss.

    Products with the Hessian are right along directions that are zero there, but for what these
    entries themselves get.

    Attributes:
        entries: Where they are in the flat vector.
        reason: What autograd does instead.
        effect: What that makes of their curvature.
    """

    entries: slice
    reason: str
    effect: str

    @property
    def warning(self) -> str:
        """Of a matrix that has them."""
        return f"{self.reason}: {self.effect}"

    def is_moved_by(self, direction: Tensor) -> bool:
        """Whether a direction [P] is not zero on all of the entries."""
        return bool(direction[self.entries].any())


def false_derivatives(objective: Objective) -> list[FalseDerivative]:
    """Rows of padding, and tables whose gradients are scaled by frequency, that are trainable.

    Both are what training wants, and leave the loss itself a function of every entry.
    """
    ends = accumulate(objective.layout.sizes)
    places = {
        id(parameter): (end - parameter.numel(), end)
        for parameter, end in zip(objective.parameters, ends, strict=True)
    }
    found = []
    for name, module in objective.model.named_modules():
        if not isinstance(module, nn.Embedding):
            continue
        weight, row = module.weight, module.padding_idx
        if isinstance(weight, nn.Parameter) and not weight.requires_grad:
            continue
        # A weight that is computed from parameters may hang on any entry of them.
        start, end = places.get(id(weight), (0, objective.dim))
        if module.scale_grad_by_freq:
            reason = f"{name or 'the model'} scales its gradients by frequency"
            effect = "they are no derivatives, and neither is its curvature"
            found.append(FalseDerivative(slice(start, end), reason, effect))
        if row is not None:
            if id(weight) in places:
                size = module.embedding_dim
                start, end = start + row * size, start + (row + 1) * size
            reason = f"row {row} of {name or 'the model'} is padding, which autograd holds fixed"
            effect = "its curvature as an input counts as zero"
            found.append(FalseDerivative(slice(start, end), reason, effect))
    return found
