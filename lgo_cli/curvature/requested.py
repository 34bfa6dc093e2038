"""The matrix that `lgo hessian` is asked for, on any samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lgo_cli.curvature.audit import Rounding, measure_rounding
from lgo_cli.curvature.folding import Rewritten, fold
from lgo_cli.curvature.networks import OPERATORS, NetworkOperator
from lgo_cli.curvature.operators import Operator, ScaledOperator, ShiftedOperator

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lgo_cli.config import HessianConfig
    from lgo_cli.curvature.spectrum import Setting
    from lgo_cli.objective import Objective
    from lgo_cli.vectors import Block


@dataclass(frozen=True)
class Requested:
    """Builds it as request and setting say: the bare operator, then weight decay and scaling.

    And Adam's preconditioned curvature beside it, of the same bare operator.
    """

    config: HessianConfig
    setting: Setting

    def rewritten(self, objective: Objective) -> Rewritten:
        """What products call in the model's place."""
        return fold(objective, own_derivatives=OPERATORS[self.config.operator].own_derivatives)

    def rounding(
        self,
        objective: Objective,
        block: Block,
        model: Rewritten,
        compose: Callable[[NetworkOperator[Any]], Operator],
        *,
        difference: bool = False,
    ) -> Rounding:
        """What products round on some samples: `measure_rounding` of what is composed."""
        kind, seed = OPERATORS[self.config.operator], self.config.seed
        return measure_rounding(
            objective, kind, model, block, compose, difference=difference, seed=seed
        )

    def measured(
        self, objective: Objective, block: Block, model: Rewritten, *, difference: bool = False
    ) -> tuple[NetworkOperator[Any], Operator, Rounding]:
        """The bare operator, the one that is asked for, and what that one's bounds allow for."""
        rounding = self.rounding(objective, block, model, self.composed, difference=difference)
        kind, memory_bytes = OPERATORS[self.config.operator], self.setting.memory_bytes
        network = kind(objective, block=block, memory_bytes=memory_bytes, model=model)
        operator = self.composed(network)
        operator.measured_rounding = rounding.units
        return network, operator, rounding

    def composed(self, network: NetworkOperator[Any]) -> Operator:
        """The operator that is asked for: with weight decay, and scaled."""
        operator: Operator = network
        if self.config.include_weight_decay:
            operator = ShiftedOperator(operator, self.setting.weight_decay)
        scaling = self.config.scaling
        if scaling == "elementwise":
            theta = network.objective.theta.abs()
            return ScaledOperator(operator, network.block.extract(theta))
        if scaling == "adam" and self.setting.preconditioner is not None:
            diagonal = network.block.extract(self.setting.preconditioner)
            return ScaledOperator(operator, diagonal.double().rsqrt())
        return operator

    def has_preconditioned(self, block: Block) -> bool:
        """Whether the curvature that Adam's steps see is another than the one asked for."""
        config = self.config
        missing = 0.0 if config.include_weight_decay else self._coupled_decay
        return (
            self.setting.preconditioner is not None
            and (config.scaling == "none" or (config.scaling == "adam" and missing != 0))
            and config.operator == "hessian"
            and block.is_whole
            and config.top_k > 0
        )

    def preconditioned(self, network: NetworkOperator[Any]) -> Operator:
        """That curvature. Adam's own decay is a part of the gradient that it preconditions."""
        assert self.setting.preconditioner is not None  # `has_preconditioned` says so
        shifted = ShiftedOperator(network, self._coupled_decay)
        return ScaledOperator(shifted, self.setting.preconditioner.double().rsqrt())

    @property
    def _coupled_decay(self) -> float:
        return self.setting.weight_decay if self.setting.is_decay_coupled else 0.0

    def gradient(self, network: NetworkOperator[Any]) -> Tensor:
        """∇L, with the decay's part where the operator has it."""
        gradient = network.gradient()
        if self.config.include_weight_decay:
            theta = network.block.extract(network.objective.theta)
            gradient = gradient + self.setting.weight_decay * theta
        return gradient
