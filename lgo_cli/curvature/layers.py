"""The curvature of each layer by itself: diagonal blocks of a network's matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lgo_cli.curvature.eigenpairs import extreme_eigenpairs
from lgo_cli.curvature.search import basis_limit
from lgo_cli.curvature.spectrum import LayerCurvature
from lgo_cli.curvature.trace import estimate_trace
from lgo_cli.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from lgo_cli.curvature.basis import Basis
    from lgo_cli.curvature.lanczos import Lanczos
    from lgo_cli.curvature.networks import NetworkOperator
    from lgo_cli.curvature.operators import Operator
    from lgo_cli.curvature.search import Wanted
    from lgo_cli.curvature.spectrum import Trace
    from lgo_cli.curvature.trace import TraceEstimate
    from lgo_cli.vectors import Block

NUM_PROBES = 10
"""Probes for each layer's trace and norm, beside the basis of its largest eigenvalue."""


def curvature_of_layers(
    network: NetworkOperator[Any],
    compose: Callable[[NetworkOperator[Any]], Operator],
    wanted: Wanted,
    whole: Trace,
    *,
    basis: Callable[[Operator], Basis | None],
    report: Callable[[TraceEstimate, Lanczos, Block], Trace],
    progress: Progress = SILENT,
) -> tuple[tuple[LayerCurvature, ...], int]:
    """Largest eigenvalue, trace and norm of the diagonal block of each module's own parameters.

    Blocks share the graphs of the whole matrix and its tolerance on small eigenvalues, since even a
    small block rounds as the whole does. Each costs 5 to 20 products for its eigenvalue and 10
    probes, or fewer if they complete its basis. A block that is the whole matrix takes its trace.

    Args:
        network: The whole matrix.
        compose: What is measured of a block: the block itself, shifted or scaled.
        wanted: Of each block; one eigenvalue, its scale that of the whole.
        whole: The trace of the whole matrix.
        basis: Where to put the basis of an operator.
        report: Makes of an estimate on a space what is reported of a block.
        progress: Told of each layer.

    Returns:
        The layers in the order of their parameters, and the products spent.
    """
    layers: list[LayerCurvature] = []
    spent = 0
    blocks = network.block.modules()
    with progress.task("layers", len(blocks), "layers") as task:
        for name, block in blocks.items():
            operator = compose(network.restricted(block))
            pairs = extreme_eigenpairs(operator, wanted, basis=basis(operator))
            assert pairs.process is not None  # one eigenvalue is wanted
            trace = whole
            if block.members != network.block.members:
                estimate = estimate_trace(
                    pairs.process,
                    num_total=pairs.process.num_steps + NUM_PROBES,
                    least_basis=pairs.process.size,
                    max_basis=basis_limit(operator.dim, operator.dtype, wanted),
                    seed=wanted.seed,
                )
                trace = report(estimate, pairs.process, block)
            layers.append(
                LayerCurvature(
                    name,
                    block.dim,
                    float(pairs.values[0]),
                    float(pairs.residual_bounds[0]),
                    float(pairs.error_estimates[0]),
                    trace,
                    pairs.unconverged,
                )
            )
            spent += operator.num_matvecs
            task.advance(1)
    return tuple(layers), spent
