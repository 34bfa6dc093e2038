"""What the Hessian's spectrum says of a solution, and of the optimiser that found it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lgo_cli.curvature.density import SpectralDensity, spectral_density
from lgo_cli.curvature.lanczos import Eigenpairs, extreme_eigenpairs, matvec_limit
from lgo_cli.curvature.operators import HessianOperator
from lgo_cli.curvature.trace import TraceEstimate, estimate_trace
from lgo_cli.progress import SILENT, Progress
from lgo_cli.vectors import norm

if TYPE_CHECKING:
    from lgo_cli.config import HessianConfig
    from lgo_cli.objective import Objective


@dataclass(frozen=True)
class Spectrum:
    """All that `lgo hessian` measures.

    Attributes:
        loss: L at the centre.
        gradient_norm: ‖∇L‖ there.
        eigenpairs: Both ends of the spectrum.
        trace: Hutchinson's estimate, if asked.
        density: The spectral density, if asked.
        num_matvecs: Every product spent.
        keeps_graph: Whether gradient graphs were kept between products.
        warnings: What a reader must know.
    """

    loss: float
    gradient_norm: float
    eigenpairs: Eigenpairs
    trace: TraceEstimate | None
    density: SpectralDensity | None
    num_matvecs: int
    keeps_graph: bool
    warnings: tuple[str, ...]


def analyze_spectrum(
    objective: Objective, config: HessianConfig, progress: Progress = SILENT
) -> Spectrum:
    """Measure the curvature at an objective's centre.

    Args:
        objective: Entered.
        config: What to measure.
        progress: Listener.

    Raises:
        UsageError: if more eigenvalues are wanted than there are, or than products may be spent.
        NumericsError: if a product is not finite.
    """
    # Refused before anything is computed.
    matvec_limit(objective.dim, config.top_k, config.bottom_k, config.max_matvecs)
    _, gradient = objective.loss_and_gradient()
    operator = HessianOperator(objective)
    pairs = extreme_eigenpairs(
        operator,
        top_k=config.top_k,
        bottom_k=config.bottom_k,
        rtol=config.rtol,
        max_matvecs=config.max_matvecs,
        seed=config.seed,
        progress=progress,
    )
    trace = estimate_trace(operator, seed=config.seed, progress=progress) if config.trace else None
    density = (
        spectral_density(operator, seed=config.seed, progress=progress) if config.density else None
    )
    return Spectrum(
        loss=objective.center.loss,
        gradient_norm=norm(gradient),
        eigenpairs=pairs,
        trace=trace,
        density=density,
        num_matvecs=operator.num_matvecs,
        keeps_graph=operator.keeps_graph,
        warnings=pairs.warnings,
    )


def stability_threshold(
    optimizer: str, lr: float | None, momentum: float, nesterov: bool
) -> tuple[float | None, str | None]:
    """Largest curvature at which the optimiser is stable on a quadratic, at full batch.

    Gradient descent 2/η; heavy ball (2 + 2β)/η (Polyak 1964); Nesterov (2 + 2β)/(η(1 + 2β)); see
    theory.md, section 8. Momentum is torch's, without dampening.

    Args:
        optimizer: `sgd`, `adam` or `adamw`.
        lr: η, the rate of the last step.
        momentum: β.
        nesterov: Whether in Nesterov's form.

    Returns:
        The threshold and `None`, or `None` and why there is none.
    """
    if optimizer != "sgd":
        return None, f"{optimizer} preconditions its steps: the plain Hessian has no threshold"
    if not lr:
        return None, "the learning rate of the last step is 0 or unknown"
    if nesterov:
        return (2 + 2 * momentum) / (lr * (1 + 2 * momentum)), None
    return (2 + 2 * momentum) / lr, None


def sharpness_ratio(
    largest: float, threshold: float | None, weight_decay: float, *, coupled: bool
) -> float | None:
    """λmax over the threshold; coupled weight decay adds its own curvature to λmax.

    Above 1, full-batch steps diverge along the sharpest direction of the quadratic model.
    """
    if threshold is None:
        return None
    return (largest + (weight_decay if coupled else 0.0)) / threshold
