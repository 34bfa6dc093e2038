"""Paths from a checkpoint to others, as `lgo interp` measures them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from lgo_cli.config import InterpConfig
    from lgo_cli.landscape.batchnorm import BatchNorm
    from lgo_cli.landscape.curves import Curve
    from lgo_cli.landscape.interpolation import LossPath
    from lgo_cli.landscape.repair import Repair
    from lgo_cli.objective import Objective
    from lgo_cli.results import Measured
    from lgo_cli.runs.steps.base import Context


class Ends:
    """A checkpoint and other ends of paths from it, measured on both splits.

    Args:
        context: Of the step.
        config: What is asked.
        problem: Entered, at that checkpoint.
    """

    def __init__(self, context: Context, config: InterpConfig, problem: Objective) -> None:
        from lgo_cli.landscape.grids import alpha_grid

        between = config.matrix or config.spherical or config.repair or config.curve is not None
        within = (0.0, 1.0) if between else (-0.5, 1.5)
        test = context.loaded.samples("test", config.analysis_samples)
        self.context = context
        self.config = config
        self.problem = problem
        self.alphas = alpha_grid(config.range or within, config.num_points, (0.0, 1.0))
        self.test = test.to(problem.device, problem.dtype)
        self.own = context.loaded.model.state_dict()

    def weights(self, state: Mapping[str, Tensor]) -> Tensor:
        """The trainable parameters [P] of a checkpoint."""
        from lgo_cli.vectors import flatten

        return flatten(state[name] for name in self.problem.layout.names).to(self.problem.theta)

    def policy(self, state: Mapping[str, Tensor]) -> BatchNorm:
        """The policy for batch norm on the way to an end, repaired or not: paths are compared."""
        from lgo_cli.landscape.batchnorm import BatchNorm
        from lgo_cli.landscape.repair import recomputed

        if self.config.repair:
            return recomputed(self.problem)
        return BatchNorm(
            self.problem,
            self.config.batchnorm,
            num_samples=self.config.batchnorm_samples,
            ends={(0.0,): self.own, (1.0,): state},
        )

    def repair(self, state: Mapping[str, Tensor]) -> Repair:
        """REPAIR on the way to an end, its units in the run's order."""
        from lgo_cli.landscape.repair import Repair

        return Repair(self.problem, self.weights(state))

    def measured(self, state: Mapping[str, Tensor]) -> Measured:
        """What is measured, for the record."""
        from lgo_cli.runs.loaded import measured

        return measured(self.problem, self.context.loaded, len(self.test), self.policy(state))

    def path(
        self,
        state: Mapping[str, Tensor],
        *,
        curve: Curve | None = None,
        repair: Repair | None = None,
    ) -> LossPath:
        """Measure the line to an end, or the arc where arcs are asked for, or a curve.

        Args:
            state: The end's tensors.
            curve: That leads there.
            repair: In force at each point.
        """
        from lgo_cli.landscape.curves import Arc
        from lgo_cli.landscape.interpolation import interpolate

        target = self.weights(state)
        if curve is None and self.config.spherical:
            curve = Arc.between(self.problem.theta, target)
        return interpolate(
            self.problem,
            self.test,
            self.alphas,
            target=target if curve is None else None,
            curve=curve,
            batchnorm=None if repair else self.policy(state),
            around=repair.at if repair else None,
            seed=self.config.seed,
            memory_bytes=self.context.execution.memory_bytes,
            progress=self.context.progress,
        )


def largest_difference(paths: Iterable[LossPath]) -> float | None:
    """Of the fast paths that were taken from the model's own; `None` if there was none."""
    found = [path.fast_path_difference for path in paths]
    return max((each for each in found if each is not None), default=None)
