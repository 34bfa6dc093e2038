"""A contour under way: its plane, its grid, and how its cells are measured."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch

from lgo_cli import checkpoint
from lgo_cli.config import ContourConfig, FigureConfig
from lgo_cli.errors import MachineError
from lgo_cli.landscape.grids import linspace
from lgo_cli.runs.steps.base import common, typed
from lgo_cli.runs.steps.planes import named_plane

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lgo_cli.config import Range
    from lgo_cli.landscape.adaptive import Preview
    from lgo_cli.landscape.evaluator import Evaluator
    from lgo_cli.landscape.surface import Surface
    from lgo_cli.objective import Objective
    from lgo_cli.results import Measured
    from lgo_cli.runs.journal import Journal
    from lgo_cli.runs.steps.base import Context
    from lgo_cli.runs.steps.planes import Named

ARRAYS = ("loss", "standard_error", "accuracy", "measured", "error_estimate")
"""What is written of a surface, [ny, nx] each; of that on the test samples after `test_`."""

PREVIEW = "contour_preview.png"

SURFACE_BYTES = 33
"""Of a surface's arrays for each cell: four numbers and a mask."""

PLANE_BYTES = 17
"""Of one of several planes for each cell: its loss, and once more with a mask for statistics."""

EVALUATION_BYTES = 460
"""Of a measured cell in memory (`Cells`) and its place in the order, by `tracemalloc`; one surface
at a time. To a tolerance few cells are measured."""

SPLINE_BYTES = 1500
"""Of the splines through the first 37 cells of a surface that is filled in, for each cell: five
numbers for each of them, by the process's peak. More where more are measured."""


@dataclass
class Work:
    """A contour under way: its plane, grid and ways to measure.

    Attributes:
        share: Name of the share that is measured, whose journal is its own; empty for all of it.
        complaints: What `--strict` does not let pass, beside what the surfaces say.
    """

    context: Context
    config: ContourConfig
    problem: Objective
    named: Named
    evaluator: Evaluator
    description: Measured
    share: str = ""
    x_range: Range = (0.0, 0.0)
    y_range: Range = (0.0, 0.0)
    num_range_evaluations: int = 0
    warnings: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()
    begun: set[str] = field(default_factory=set)
    keys: WeakKeyDictionary[Evaluator, tuple[str, str]] = field(default_factory=WeakKeyDictionary)

    @property
    def x(self) -> list[float]:
        """Coordinates of the columns [nx]."""
        return linspace(self.x_range, self.config.shape[0])

    @property
    def y(self) -> list[float]:
        """Coordinates of the rows [ny]."""
        return linspace(self.y_range, self.config.shape[1])

    def key(self, evaluator: Evaluator) -> str:
        """The journal's key of an evaluator, on the path that it takes by now; hashed once."""
        from lgo_cli.runs.journal import key_of

        plan, key = self.keys.get(evaluator, (None, ""))
        if plan != evaluator.plan:
            key = key_of(evaluator, self.context.plan.request)
            self.keys[evaluator] = (evaluator.plan, key)
        return key

    def journal(self, evaluator: Evaluator) -> Journal:
        """What was measured on an evaluator's plane in this run's directory, whenever it was."""
        from lgo_cli.runs.journal import Journal

        key = self.key(evaluator)
        force = self.context.execution.force
        anew = force and key not in self.begun
        self.begun.add(key)
        # What shares measured before is measured again too, however often the file is opened.
        return Journal(self.context.plan.out, key, self.share, anew=anew, alone=force)

    @cached_property
    def test(self) -> Evaluator | None:
        """The plane on the test samples; `None` if they are not asked for."""
        if not self.config.test:
            return None
        # If the plane's fast path is given up, here it is too: else the key would hang on which
        # of them came first.
        self.verify(self.evaluator)
        samples = self.context.loaded.samples("test", self.config.analysis_samples)
        return self.evaluator.on(samples.to(self.problem.device, self.problem.dtype))

    def planes(self) -> Iterator[Evaluator]:
        """The plane, and as many further ones of its kind as the config asks for."""
        from lgo_cli.landscape.evaluator import Evaluator

        yield self.evaluator
        for index in range(1, self.config.num_planes):
            assert self.named.draw is not None  # the config says so
            directions = self.named.draw(index).directions
            yield Evaluator(self.problem, directions, batchnorm=self.evaluator.batchnorm)

    def evaluators(self) -> Iterator[Evaluator]:
        """All planes, and then the plane on the test samples, each made when it is asked for."""
        yield from self.planes()
        if self.test is not None:
            yield self.test

    def verify(self, evaluator: Evaluator) -> None:
        """Settle the path that cells take, which the journal's key is of."""
        from lgo_cli.landscape.surface import verify_on

        verify_on(evaluator, self.x, self.y)

    def measure(self, evaluator: Evaluator) -> Surface:
        """The surface on the plane of an evaluator, from the journal where it has the cells.

        Each is filled in from cells of its own: on test samples it rises elsewhere. The preview
        shows the run's own samples.
        """
        from lgo_cli.landscape.surface import measure_surface

        self.verify(evaluator)
        own = evaluator.samples is self.problem.samples
        with self.journal(evaluator) as cells, grids_in_memory(self.config):
            return measure_surface(
                evaluator,
                self.x,
                self.y,
                tolerance=self.config.tolerance,
                max_cells=self.config.max_cells,
                cells=cells,
                seed=self.config.seed,
                preview=_preview(self) if own and self.context.execution.preview else None,
                progress=self.context.progress,
            )

    def find_ranges(self) -> None:
        """Ranges as they are given, found, or the plane's own."""
        from lgo_cli.landscape.ranges import auto_range

        config, plane, evaluator = self.config, self.named.plane, self.evaluator
        self.x_range = config.x_range or plane.x_range
        self.y_range = config.y_range or plane.y_range
        if config.auto_range is None:
            return
        evaluator.verify([(0.0, 0.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)])
        with self.journal(evaluator) as cells:
            center = cells.measure(evaluator, 0.0, 0.0).loss
            found = auto_range(
                lambda x, y: cells.measure(evaluator, x, y).loss, center, config.auto_range
            )
        self.x_range, self.y_range = found.x_range, found.y_range
        self.num_range_evaluations = found.num_evaluations
        self.warnings = (*self.warnings, *found.warnings)


@contextmanager
def open_work(context: Context, share: str = "") -> Iterator[Work]:
    """Enter the objective, and build the plane and the evaluator that the config names.

    Args:
        context: Of the step.
        share: See `Work`.

    Raises:
        MachineError: if the grid does not fit into memory.
    """
    from lgo_cli.landscape.batchnorm import BatchNorm
    from lgo_cli.landscape.evaluator import Evaluator
    from lgo_cli.runs.loaded import measured, objective

    config = typed(context.plan, ContourConfig)
    _refuse_vast_grid(config)
    with objective(context.plan, context.loaded) as problem:
        named = named_plane(context, problem, config)
        files, model = context.plan.files, context.loaded.model
        interpolated = named.ends if config.batchnorm == "interpolate" else ()
        batchnorm = BatchNorm(
            problem,
            config.batchnorm,
            num_samples=config.batchnorm_samples,
            ends={at: checkpoint.load_fitting(files[name], model) for at, name in interpolated},
        )
        work = Work(
            context=context,
            config=config,
            problem=problem,
            named=named,
            evaluator=Evaluator(problem, named.plane.directions, batchnorm=batchnorm),
            description=measured(problem, context.loaded, batchnorm=batchnorm),
            share=share,
            complaints=(*problem.complaints, *named.complaints),
        )
        work.find_ranges()
        yield work


def _refuse_vast_grid(config: ContourConfig) -> None:
    """Say what is too large before hours are spent, and before the system kills the process."""
    from lgo_cli.memory import total_memory_bytes

    nx, ny = config.shape
    several = config.num_planes > 1
    # The first surface stays, and one is measured beside it.
    for_each = SURFACE_BYTES * (2 if several or config.test else 1)
    for_each += PLANE_BYTES * config.num_planes if several else 0
    for_each += EVALUATION_BYTES if config.tolerance is None else SPLINE_BYTES
    num_bytes = nx * ny * for_each
    total = total_memory_bytes(torch.device("cpu"))
    if num_bytes > total:
        what, hint = _grids(config)
        raise MachineError(
            f"{what} would take {num_bytes / 2**30:.3g} GiB, more than the "
            f"{total / 2**30:.3g} GiB of memory",
            hint=hint,
        )


@contextmanager
def grids_in_memory(config: ContourConfig) -> Iterator[None]:
    """NumPy has no memory left: here, it holds arrays over the grid alone; tensors are torch's."""
    try:
        yield
    except MemoryError as error:
        what, hint = _grids(config)
        raise MachineError(f"out of memory for {what}", hint=hint) from error


def _grids(config: ContourConfig) -> tuple[str, str]:
    """What is to be measured, and what would be less."""
    nx, ny = config.shape
    number = config.num_planes + config.test
    hint = "lower --resolution"
    hint += " or --num-planes" if config.num_planes > 1 else ""
    hint += ", or leave out --test" if config.test else ""
    return f"{'a grid' if number == 1 else f'{number} grids'} of {nx} x {ny} cells", hint


def _preview(work: Work) -> Preview:
    """Draw the surface as it stands, unmeasured cells taken from their nearest neighbours."""
    from lgo_cli.figures.files import save_figure
    from lgo_cli.figures.surface import draw_contour
    from lgo_cli.files import BOOKKEEPING, atomic_write

    plane = work.named.plane
    results = {
        **common(work.context),
        "measured": work.description.model_dump(mode="json"),
        "axis_labels": plane.axis_labels,
        "loss_at_center": work.problem.center.loss,
        "markers": [marker.model_dump() for marker in plane.markers],
        "trajectory": None,
        "num_cells": len(work.x) * len(work.y),
    }

    def show(loss: np.ndarray, measured: np.ndarray) -> None:
        arrays = {"x": np.array(work.x), "y": np.array(work.y), "measured": measured}
        arrays["loss"] = _nearest(loss, measured)
        found = {**results, "num_measured": int(measured.sum())}
        figure = draw_contour(arrays, found, FigureConfig().inches)
        with atomic_write(work.context.plan.out / BOOKKEEPING / PREVIEW) as handle:
            save_figure(figure, handle, "png", FigureConfig().dpi)

    return show


def _nearest(loss: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Losses with those that are neither measured nor filled taken from the nearest measured.

    Where one was measured it is the nearest itself, finite or not.
    """
    missing = ~np.isfinite(loss)
    rows, columns = np.nonzero(measured)
    if not missing.any() or not len(rows):
        return loss
    filled = loss.copy()
    for i in np.flatnonzero(missing.any(axis=1)):
        wanted = np.flatnonzero(missing[i])
        distances = (rows - i) ** 2 + (columns - wanted[:, None]) ** 2
        nearest = distances.argmin(axis=1)
        filled[i, wanted] = loss[rows[nearest], columns[nearest]]
    return filled
