"""The barriers between all pairs of checkpoints, for `lgo interp --matrix`."""

from __future__ import annotations

import math
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray as Array

from lgo_cli import checkpoint
from lgo_cli.results import Barrier, BarrierMatrix, InterpResults
from lgo_cli.runs.checkpoints import distinct_names
from lgo_cli.runs.evidence import MATRIX_FIELDS
from lgo_cli.runs.steps.base import Context, common
from lgo_cli.runs.steps.ends import Ends, largest_difference

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lgo_cli.config import InterpConfig
    from lgo_cli.landscape.interpolation import LossPath, Series


def measure_matrix(context: Context, config: InterpConfig) -> tuple[InterpResults, dict[str, Any]]:
    """Measure the path of each pair once, from the earlier to the later checkpoint.

    Arrays of `interp.npz` hold a row for each of the k(k − 1)/2 pairs, and `matrix_barrier` and its
    like [k, k]. A checkpoint whose loss is not finite has no barrier to any other: its pairs are
    not measured, and all of their numbers are NaN.
    """
    from lgo_cli.landscape.unmoved import loss_of
    from lgo_cli.runs.loaded import objective

    plan, loaded = context.plan, context.loaded
    files = [f"to_{index}" for index in range(len(config.to))]
    names = distinct_names([plan.files[name] for name in ("model.pth", *files)])
    paths: dict[tuple[int, int], LossPath] = {}
    losses: list[float] = []
    complaints: tuple[str, ...] = ()
    with context.stopwatch.phase("compute"):
        states = [checkpoint.snapshot(loaded.model)]
        states += [checkpoint.load_fitting(plan.files[name], loaded.model) for name in files]
        try:
            for first, state in enumerate(states[:-1]):
                if first and not math.isfinite(losses[first]):
                    continue
                loaded.model.load_state_dict(state)
                with objective(plan, loaded) as problem:
                    complaints = complaints or problem.complaints  # of the model
                    ends = Ends(context, config, problem)
                    if not losses:
                        others = (loss_of(problem, other) for other in states[1:])
                        losses = [problem.center.loss, *others]
                        description = ends.measured(states[1])
                    for second in range(first + 1, len(states)):
                        if math.isfinite(losses[second]):
                            paths[first, second] = ends.path(states[second])
        finally:
            loaded.model.load_state_dict(states[0])
    if config.batchnorm != "frozen":  # as the paths have them; from one's own model first
        at = {second: path.loss_at_end for (_, second), path in paths.items()}
        at |= {first: path.loss_at_start for (first, _), path in paths.items()}
        losses = [at.get(index, loss) for index, loss in enumerate(losses)]
    arrays, matrices = _arrays(paths, ends.alphas, len(states))
    warnings = [
        f"{name}: its loss is {loss}, and it has no barrier to any other checkpoint"
        for name, loss in zip(names, losses, strict=True)
        if not math.isfinite(loss)
    ]
    warnings += [
        f"{names[first]} to {names[second]}: {text}"
        for (first, second), path in paths.items()
        for text in path.warnings
    ]
    if description.batchnorm == "frozen":
        warnings.append(
            "batch-norm statistics are those of the first of each two: --batchnorm recompute or "
            "interpolate treats both alike"
        )
    results = InterpResults(
        **common(context, [*complaints, *warnings]),
        measured=description,
        unconverged=complaints,
        along="pairs",
        shape="arc" if config.spherical else "line",
        loss_at_start=losses[0],
        matrix=BarrierMatrix(
            names=names,
            loss=losses,
            **matrices,
        ),
        range=(0.0, 1.0),
        num_points=len(ends.alphas),
        point_plan=" | ".join(dict.fromkeys(path.plan for path in paths.values())),
        is_fast=all(path.is_fast for path in paths.values()),
        fast_path_difference=largest_difference(paths.values()),
        num_nonfinite=None,
        test_num_nonfinite=None,
        num_evaluations=sum(path.num_evaluations for path in paths.values()),
        num_matvecs=sum(path.num_matvecs for path in paths.values()),
    )
    return results, arrays


def _arrays(
    paths: Mapping[tuple[int, int], LossPath], alphas: list[float], size: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `interp.npz` holds, and fields of `BarrierMatrix`; NaN where there is no path."""
    from lgo_cli.landscape.interpolation import Series

    pairs = np.array([*combinations(range(size), 2)])
    blank = np.full(len(alphas), math.nan)
    none = Barrier(value=math.nan, standard_error=math.nan, interval=(math.nan,) * 2, alpha=0.0)
    unknown = Series(blank, blank, blank, blank, none)
    arrays: dict[str, Any] = {"alpha": np.array(alphas), "pairs": pairs}
    fields: dict[str, Any] = {}
    for split, prefix in (("train", ""), ("test", "test_")):
        series = [
            getattr(paths[first, second], split) if (first, second) in paths else unknown
            for first, second in pairs.tolist()
        ]
        rows = [each.arrays(prefix) for each in series]
        arrays |= {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        for name, matrix in _matrices(pairs, series, size).items():
            arrays[f"{prefix}matrix_{name}"] = matrix
            fields[f"{prefix}{name}"] = matrix.tolist()
    return arrays, fields


def _matrices(pairs: Array, series: list[Series], size: int) -> dict[str, Array]:
    """Fields of `BarrierMatrix` [k, k] on one split; no checkpoint has a barrier to itself."""
    found = {}
    rows = [(b.value, b.standard_error, *b.interval) for b in (s.barrier for s in series) if b]
    for name, values in zip(MATRIX_FIELDS, zip(*rows, strict=True), strict=True):
        found[name] = np.zeros((size, size))
        found[name][pairs[:, 0], pairs[:, 1]] = found[name][pairs[:, 1], pairs[:, 0]] = values
    return found
