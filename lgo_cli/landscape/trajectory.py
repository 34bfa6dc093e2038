"""The plane of a training trajectory, from checkpoints that need not fit in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lgo_cli.errors import InputError
from lgo_cli.landscape.batchnorm import is_frozen, statistics_at
from lgo_cli.landscape.directions import ROUNDING, displacements, project
from lgo_cli.landscape.planes import build_plane, range_around
from lgo_cli.landscape.unmoved import loss_of, unmoved
from lgo_cli.progress import SILENT, Progress
from lgo_cli.results import percent
from lgo_cli.vectors import fix_sign_, flatten, norm

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lgo_cli.landscape.batchnorm import BatchNorm
    from lgo_cli.landscape.planes import Plane
    from lgo_cli.objective import Objective

HELD_BYTES = 2**28
"""Memory for checkpoints held at a time, twice: when all fit, each is read once for the Gram
matrix; when not one does, two are held, and each is read once for every later one."""


@dataclass(frozen=True)
class Heights:
    """How far a trajectory's picture is from the trajectory.

    Attributes:
        loss: At each checkpoint's parameters, with buffers and batch norm as on the plane, the end
            last.
        own_loss: Of each checkpoint as itself, with all of its own buffers.
        surface: Of the plane at each checkpoint's projection.
    """

    loss: tuple[float, ...]
    own_loss: tuple[float, ...]
    surface: tuple[float, ...]


def pca_plane(
    objective: Objective,
    checkpoints: Sequence[Callable[[], Tensor]],
    labels: Sequence[str],
    *,
    progress: Progress = SILENT,
) -> Plane:
    """The plane in which a training trajectory moves most (Li et al. 2018, section 7.2).

    Principal axes of the displacements θ_t − θ of the checkpoints from the centre, not centred on
    their mean, so that the plane holds the centre: eigenvectors of the Gram matrix of the
    displacements, in float64. Axes have unit norm and are never rescaled; their signs put the first
    checkpoint at negative coordinates.

    Args:
        objective: Entered; its centre is the trajectory's end.
        checkpoints: Each reads parameters [P] on the way anew; the first first.
        labels: Name of each.
        progress: Told of each checkpoint read.

    Raises:
        InputError: if the checkpoints span no plane, as fewer than three distinct ones do.

    Memory: two checkpoints or 2·`HELD_BYTES`, whichever is more, and the two axes in float64.
    Cost: each checkpoint is read twice, and once more for each block of the Gram matrix's rows.
    """
    num_points = len(checkpoints)
    if num_points < 2:
        raise _no_plane(num_points)
    theta = objective.theta
    size = max(1, HELD_BYTES // (theta.numel() * theta.element_size()))
    num_reads = sum(index // size + 1 for index in range(num_points)) + 2 * num_points
    with progress.task("trajectory", num_reads, "checkpoints") as task:

        def read(index: int) -> Tensor:
            task.advance(1)
            return checkpoints[index]()

        gram = _gram(theta, read, num_points, size)
        squares, vectors = torch.linalg.eigh(gram)
        values, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
        lengths = values.sqrt().tolist()
        # How far rounding of the weights alone moves the points off a line.
        noise = ROUNDING * math.sqrt(num_points) * (norm(theta) + lengths[0])
        if lengths[1] <= noise:
            raise _no_plane(num_points)
        signs = [fix_sign_(vectors[:, index]) for index in (0, 1)]
        weights = torch.stack([-v if float(v[0]) > 0 else v for v in signs])
        axes = torch.zeros(2, theta.numel(), dtype=torch.float64, device=theta.device)
        for index in range(num_points):
            for block, delta in displacements(theta, [read(index)]):
                axes[:, block] += weights[:, index, None] * delta
        axes /= torch.linalg.vector_norm(axes, dim=1, keepdim=True)
        directions = axes.to(objective.dtype)
        del axes
        found = [project(theta, directions, read(index)) for index in range(num_points)]
    # The end is the centre itself.
    points = [*(point for point, _ in found), (0.0, 0.0)]
    share = (values[:2] / values.sum()).tolist()
    return build_plane(
        "pca",
        directions[0],
        directions[1],
        (
            f"x: principal axis 1 ({percent(share[0])} of the trajectory), unit norm",
            f"y: principal axis 2 ({percent(share[1])}), unit norm",
        ),
        range_around(points),
        trajectory=tuple(points),
        trajectory_labels=(*labels, "end"),
        trajectory_distances=(*(distance for _, distance in found), 0.0),
        explained_variance=(share[0], share[1]),
    )


def trajectory_heights(
    objective: Objective,
    plane: Plane,
    checkpoints: Sequence[Callable[[], Mapping[str, Tensor]]],
    surface: Callable[[float, float], float],
    batchnorm: BatchNorm | None = None,
) -> Heights:
    """The loss at each checkpoint's parameters, beside the plane's at its projection.

    Both with the objective's buffers and the policy's statistics, so that the two differ by the
    distance from the plane alone; and the loss of the checkpoint as itself, whose own buffers may
    make it another.

    Args:
        objective: Entered, at the trajectory's end.
        plane: With the trajectory on it.
        checkpoints: Each reads all tensors of a checkpoint anew, in the order of `pca_plane`'s.
        surface: The loss at coordinates of the plane.
        batchnorm: What batch norm does at each, as on the surface.

    Memory: two checkpoints.
    Cost: two passes over the probe set for each checkpoint, three where it has other buffers.

    Raises:
        ValueError: if the plane has no trajectory, or one of other checkpoints.
    """
    if plane.trajectory is None or len(plane.trajectory) != len(checkpoints) + 1:
        raise ValueError("the plane is not that of these checkpoints")
    losses, own_losses = [], []
    for read, (x, y) in zip(checkpoints, plane.trajectory, strict=False):
        state = read()
        weights = flatten(state[name] for name in objective.layout.names)
        with objective.at(weights), statistics_at(batchnorm, x, y):
            losses.append(objective.evaluate().loss)
        del weights
        as_drawn = is_frozen(batchnorm) and not any(unmoved(objective, batchnorm, state).values())
        own_losses.append(losses[-1] if as_drawn else loss_of(objective, state))
        del state  # Before the next is read.
    with statistics_at(batchnorm, 0.0, 0.0):
        losses.append(objective.evaluate().loss)
    return Heights(
        loss=tuple(losses),
        own_loss=(*own_losses, objective.center.loss),
        surface=tuple(surface(x, y) for x, y in plane.trajectory),
    )


def _gram(theta: Tensor, read: Callable[[int], Tensor], num_points: int, size: int) -> Tensor:
    """Inner products [n, n] of the displacements in float64, `size` by `size` at a time."""
    gram = torch.zeros(num_points, num_points, dtype=torch.float64, device=theta.device)
    starts = range(0, num_points, size)
    for start in starts:
        rows = [read(index) for index in range(start, min(start + size, num_points))]
        own = slice(start, start + len(rows))
        for _, block in displacements(theta, rows):
            gram[own, own] += block @ block.T
        for other in starts[start // size + 1 :]:
            columns = [read(index) for index in range(other, min(other + size, num_points))]
            beside = slice(other, other + len(columns))
            pairs = zip(displacements(theta, rows), displacements(theta, columns), strict=True)
            for (_, left), (_, right) in pairs:
                gram[own, beside] += left @ right.T
            gram[beside, own] = gram[own, beside].T
            # Before the next are read.
            del columns
        del rows
    return gram


def _no_plane(num_points: int) -> InputError:
    return InputError(
        "the trajectory's checkpoints span no plane: "
        f"{num_points} on the way, on one line with the end",
        hint="train with --save-every N, for more checkpoints on the way",
    )
