"""Symmetric linear maps that are known only by their products with vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


ROUNDING_UNITS = 16.0
"""Rounding of a product, in units of eps·‖H‖, that any operator is allowed. A product is a chain of
a few sums, each off by a few eps of its result when summed in blocks: on networks in float32 whose
logits are small, ‖fl(H) − H‖ is 1 to 3 units (tests/test_operators.py)."""

ROUNDING_SLACK = 1e3
"""Units of eps to which symmetry and linearity must hold: products on random vectors are
small beside ‖H‖, and their relative error is larger."""

WRONG_DERIVATIVE = (
    "a second derivative of the model is wrong, and no eigenvalue, trace or norm to be relied on"
)


class Operator(ABC):
    """A symmetric linear map on vectors [P].

    Attributes:
        dim: P.
        dtype: Of vectors and products.
        device: Where they are.
        num_matvecs: Products computed so far, the unit of cost.
        measured_rounding: Units of eps·‖H‖ by which products were seen to be off (audit.py);
            `None` if that was not measured.
        rounding_floor: ‖fl(Hv) − Hv‖ to allow for at least, absolute: a block of a matrix rounds
            as the whole does, however small it is itself.
        crowd: Where most eigenvalues are thought to lie: at zero, or where a shift puts it.
    """

    measured_rounding: float | None = None
    rounding_floor = 0.0
    crowd = 0.0

    def __init__(self, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self.dim = dim
        self.dtype = dtype
        self.device = device
        self.num_matvecs = 0

    def matvec(self, vector: Tensor) -> Tensor:
        """The product with a vector [P], a new vector [P]."""
        self.num_matvecs += 1
        return self._product(vector)

    @property
    def rounding_units(self) -> float:
        """‖fl(Hv) − Hv‖ to allow for unit v, in units of eps·‖H‖, eps of `dtype`.

        To be asked after a product, when the operator has seen its numbers.
        """
        return max(self._expected_rounding, self.measured_rounding or 0.0)

    @property
    def _expected_rounding(self) -> float:
        """Units that are known without a measurement."""
        return ROUNDING_UNITS

    @abstractmethod
    def _product(self, vector: Tensor) -> Tensor: ...


class DenseOperator(Operator):
    """A symmetric matrix [P, P], so that estimators can be tested without a network.

    Raises:
        ValueError: if the matrix is not square.
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"an operator needs a square matrix, not {tuple(matrix.shape)}")
        super().__init__(matrix.shape[0], matrix.dtype, matrix.device)
        self.matrix = matrix

    def _product(self, vector: Tensor) -> Tensor:
        return self.matrix @ vector


class ShiftedOperator(Operator):
    """H + c·I: the Hessian of a loss with the term c/2·‖θ‖² of coupled weight decay.

    Args:
        operator: H.
        shift: c.
    """

    def __init__(self, operator: Operator, shift: float) -> None:
        super().__init__(operator.dim, operator.dtype, operator.device)
        self.operator = operator
        self.shift = shift
        self.crowd = operator.crowd + shift

    @property
    def _expected_rounding(self) -> float:
        """That of H; the shift is a scalar times the vector."""
        return self.operator.rounding_units

    def _product(self, vector: Tensor) -> Tensor:
        return self.operator.matvec(vector).add_(vector, alpha=self.shift)


class ScaledOperator(Operator):
    """S H S with a diagonal S.

    S may magnify the rounding of H more than its norm, so that the rounding of S H S is measured by
    itself (`measure_rounding`).

    With S = |θ| its largest eigenvalue is the elementwise adaptive sharpness (Kwon et al. 2021;
    theory.md, section 23); with S = D^{-1/2} its spectrum is that of D^{-1}H, the curvature that a
    preconditioned step sees (Cohen et al. 2022; theory.md, section 22).

    Args:
        operator: H.
        scale: The diagonal of S [P].
    """

    def __init__(self, operator: Operator, scale: Tensor) -> None:
        super().__init__(operator.dim, operator.dtype, operator.device)
        self.operator = operator
        self.scale = scale.to(operator.device, operator.dtype)

    @property
    def _expected_rounding(self) -> float:
        """That of H; the two scalings round once each."""
        return self.operator.rounding_units + 2

    def _product(self, vector: Tensor) -> Tensor:
        return self.operator.matvec(self.scale * vector).mul_(self.scale)


def scaled_gradient(gradient: Tensor, operator: Operator) -> Tensor:
    """The gradient in the coordinates of an operator, if those are scaled."""
    return operator.scale * gradient if isinstance(operator, ScaledOperator) else gradient


def most_asymmetry(operator: Operator) -> float:
    """Relative asymmetry that rounding can explain, also where a part computes in float32."""
    return max(ROUNDING_SLACK, operator.rounding_units) * torch.finfo(torch.float32).eps
