"""The barriers between all pairs of checkpoints, for `lgo interp --matrix`."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from lgo_cli import checkpoint
from lgo_cli.results import BarrierMatrix, InterpResults
from lgo_cli.runs.steps.base import Context, common, save_arrays
from lgo_cli.runs.steps.ends import Ends

if TYPE_CHECKING:
    from lgo_cli.config import InterpConfig
    from lgo_cli.landscape.interpolation import Path

Array = np.ndarray[Any, Any]

_FIELDS = ("barrier", "standard_error", "lower", "upper")


def measure_matrix(context: Context, config: InterpConfig) -> InterpResults:
    """Measure the path of each pair once, from the earlier to the later checkpoint.

    Arrays of `interp.npz` hold a row for each of the k(k − 1)/2 pairs, and `matrix_barrier` and its
    like [k, k].
    """
    from lgo_cli.runs.loaded import objective
    from lgo_cli.training.loop import snapshot

    plan, loaded = context.plan, context.loaded
    paths: list[Path] = []
    losses = []
    with context.stopwatch.phase("compute"):
        states = [snapshot(loaded.model)]
        states += [
            checkpoint.load_fitting(plan.files[f"to_{index}"], loaded.model)
            for index in range(len(config.to))
        ]
        try:
            for first, state in enumerate(states):
                loaded.model.load_state_dict(state)
                with objective(plan, loaded) as problem:
                    losses.append(problem.center.loss)
                    ends = Ends(context, config, problem)
                    for other in states[first + 1 :]:
                        description = ends.measured(other)
                        paths.append(ends.straight(other))
        finally:
            loaded.model.load_state_dict(states[0])
    pairs = np.array([*combinations(range(len(states)), 2)])
    matrices = _matrices(pairs, paths, len(states))
    rows = [{**path.train.arrays(), **path.test.arrays("test_")} for path in paths]
    arrays = {
        "alpha": paths[0].alpha,
        "pairs": pairs,
        **{key: np.stack([row[key] for row in rows]) for key in rows[0]},
        **{
            f"{split}matrix_{name}": matrices[f"{split}{name}"]
            for split in ("", "test_")
            for name in _FIELDS
        },
    }
    save_arrays(context, "interp.npz", arrays)
    recorded: Any = plan.request.config["to"]
    names = ["run", *recorded]
    warnings = [
        f"{names[first]} to {names[second]}: {text}"
        for (first, second), path in zip(pairs, paths, strict=True)
        for text in path.warnings
    ]
    if description.batchnorm == "frozen":
        warnings.append(
            "batch-norm statistics are those of the first of each two: --batchnorm recompute or "
            "interpolate treats both alike"
        )
    return InterpResults(
        **common(context, warnings),
        measured=description,
        along="pairs",
        shape="arc" if config.spherical else "line",
        loss_at_start=losses[0],
        matrix=BarrierMatrix(
            names=names,
            loss=losses,
            **{name: matrix.tolist() for name, matrix in matrices.items()},
        ),
        range=(0.0, 1.0),
        num_points=len(paths[0].alpha),
        num_evaluations=sum(path.num_evaluations for path in paths),
        num_matvecs=sum(path.num_matvecs for path in paths),
    )


def _matrices(pairs: Array, paths: list[Path], size: int) -> dict[str, Array]:
    """Fields of `BarrierMatrix` [k, k]; no checkpoint has a barrier to itself."""
    found: dict[str, Array] = {}
    for split in ("", "test_"):
        barriers = [(path.test if split else path.train).barrier for path in paths]
        rows = [(each.value, each.standard_error, *each.interval) for each in barriers if each]
        for name, values in zip(_FIELDS, zip(*rows, strict=True), strict=True):
            matrix = np.zeros((size, size))
            matrix[pairs[:, 0], pairs[:, 1]] = matrix[pairs[:, 1], pairs[:, 0]] = values
            found[f"{split}{name}"] = matrix
    return found
