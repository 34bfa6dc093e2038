"""The plane that a contour's config names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lgo_cli import checkpoint
from lgo_cli.errors import UsageError
from lgo_cli.runs.names import checkpoint_step
from lgo_cli.runs.steps.eigenpairs import top_eigenpairs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from lgo_cli.config import ContourConfig
    from lgo_cli.landscape.planes import Plane
    from lgo_cli.objective import Objective
    from lgo_cli.runs.steps.base import Context


_FROZEN = " with frozen statistics"
"""Said of what is the centre's derivative, where the surface has other statistics of batch norm."""


@dataclass(frozen=True)
class Named:
    """A plane, and what a step must know to go on with it.

    Attributes:
        plane: An origin and two directions.
        num_matvecs: Products that finding it took.
        checkpoints: Each reads a trajectory's tensors anew; empty without one.
        ends: Checkpoint files by their coordinates, of a plane through three.
        draw: Builds another plane of the same kind by its index; `None` if there is one only.
        complaints: What `--strict` does not let pass.
        trained_curve: Whether the plane's curve is one that `lgo interp --curve` trained.
    """

    plane: Plane
    num_matvecs: int = 0
    checkpoints: Sequence[Callable[[], Mapping[str, Tensor]]] = ()
    ends: tuple[tuple[tuple[float, float], str], ...] = ()
    draw: Callable[[int], Plane] | None = None
    complaints: tuple[str, ...] = ()
    trained_curve: bool = False


def named_plane(context: Context, problem: Objective, config: ContourConfig) -> Named:
    """Build the plane.

    Args:
        context: Of the step.
        problem: Entered.
        config: With `plane` resolved.

    Raises:
        UsageError: if the model has one parameter, and so a line only.
    """
    if problem.dim < 2:
        raise UsageError(
            "a plane needs two parameters, and the model has one",
            hint="measure its line: lgo interp --direction eigen",
        )
    builders = {
        "eigen": _eigen,
        "pca": _pca,
        "checkpoints": _checkpoints,
        "gradient": _drawn,
        "random+eigen": _random_eigen,
        "file": _file,
        "random": _drawn,
    }
    return builders[config.kind](context, problem, config)


def _of(config: ContourConfig) -> str:
    """Of which function derivatives at the centre are, where it is not the one that is drawn."""
    return "" if config.batchnorm == "frozen" else _FROZEN


def _drawn(context: Context, problem: Objective, config: ContourConfig) -> Named:
    from lgo_cli.landscape.directions import gradient_complaints
    from lgo_cli.landscape.planes import gradient_plane, random_plane

    del context
    uphill = partial(gradient_plane, function=_of(config))
    build = uphill if config.kind == "gradient" else random_plane

    def draw(index: int) -> Plane:
        return build(problem, config.seed, normalization=config.normalization, index=index)

    plane = draw(0)
    complaints = gradient_complaints(problem) if config.kind == "gradient" else ()
    return Named(plane, draw=draw, complaints=complaints)


def _eigen(context: Context, problem: Objective, config: ContourConfig) -> Named:
    from lgo_cli.landscape.planes import eigen_plane

    top = top_eigenpairs(context, problem, 2)
    plane = eigen_plane(problem, top.values, top.vectors, function=_of(config))
    return Named(plane, top.num_matvecs, complaints=top.unconverged)


def _random_eigen(context: Context, problem: Objective, config: ContourConfig) -> Named:
    from lgo_cli.landscape.planes import random_eigen_plane

    top = top_eigenpairs(context, problem, 1)

    def draw(index: int) -> Plane:
        return random_eigen_plane(
            problem,
            float(top.values[0]),
            top.vectors[0],
            config.seed,
            normalization=config.normalization,
            index=index,
            function=_of(config),
        )

    return Named(draw(0), top.num_matvecs, draw=draw, complaints=top.unconverged)


def _pca(context: Context, problem: Objective, config: ContourConfig) -> Named:
    from lgo_cli.landscape.trajectory import pca_plane
    from lgo_cli.runs.loaded import flat_weights

    del config
    results = context.plan.trained
    kept = results.checkpoints if results else []
    labels = ["init", *(str(checkpoint_step(name)) for name in kept)]
    files = [context.plan.files[name] for name in ["init.pth", *kept]]
    weights = [partial(flat_weights, context.loaded, file, problem.dtype) for file in files]
    states = [partial(checkpoint.load_fitting, file, context.loaded.model) for file in files]
    plane = pca_plane(problem, weights, labels, progress=context.progress)
    return Named(plane, checkpoints=states)


def _checkpoints(context: Context, problem: Objective, config: ContourConfig) -> Named:
    from lgo_cli.landscape.planes import checkpoints_plane
    from lgo_cli.runs.loaded import flat_weights

    del config
    files = context.plan.files
    a, b = (flat_weights(context.loaded, files[name], problem.dtype) for name in ("to_0", "to_1"))
    plane = checkpoints_plane(problem, a, b)
    places = [(marker.x, marker.y) for marker in plane.markers]
    return Named(plane, ends=tuple(zip(places, ("model.pth", "to_0", "to_1"), strict=True)))


def _file(context: Context, problem: Objective, config: ContourConfig) -> Named:
    from lgo_cli.landscape.planes import given_plane
    from lgo_cli.runs.directions import has_bends, read_curve, read_directions

    paths = [context.plan.files[f"directions_{i}"] for i in range(len(config.directions))]
    directions = read_directions(paths, problem.model)
    curve = read_curve(paths)
    plane = given_plane(problem, directions, curve)
    return Named(plane, trained_curve=curve is not None and has_bends(paths))
