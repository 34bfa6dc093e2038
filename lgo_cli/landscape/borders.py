"""Where finite cells of a grid end and others begin, found from a few of them.

Shapes: m = ny·nx cells in the order of rows, n of them measured.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array


def nearest_is_finite(
    shape: tuple[int, int], measured: Array, values: Array
) -> tuple[Array, Array]:
    """Whether the measured cell nearest to each is finite [m], and how far away it is [m].

    Args:
        shape: (ny, nx).
        measured: Numbers of the measured cells [n], at least one.
        values: Theirs [n].

    Returns:
        The guess, right at the measured cells; and the distance in cells, the larger of rows and
        columns. Of several at one distance the first in `measured` counts.
    """
    guess, distance = np.ones(shape, bool), np.full(shape, max(shape))
    finite = np.isfinite(values)
    if finite.all():
        return guess.ravel(), np.zeros(guess.size)
    rows, columns = np.arange(shape[0])[:, None], np.arange(shape[1])
    # One after another: all distances at once would be m·n numbers.
    for row, column, is_finite in zip(*np.divmod(measured, shape[1]), finite, strict=True):
        gap = np.maximum(np.abs(rows - row), np.abs(columns - column))
        is_nearer = gap < distance
        guess[is_nearer] = is_finite
        distance[is_nearer] = gap[is_nearer]
    return guess.ravel(), distance.ravel()


def border(shape: tuple[int, int], known: Array, finite: Array, distance: Array) -> list[int]:
    """Cells to measure next between finite cells and others, farthest from measured ones first.

    Empty once, of any two neighbours (along a row, column or diagonal) that differ, both are
    measured. Cells of one batch are no nearer to each other than to measured ones, so that each
    batch halves what is unknown along the whole border.

    Args:
        shape: (ny, nx).
        known: Whether each is measured [m].
        finite: Whether each is finite, or is taken to be [m].
        distance: Of each from the nearest measured cell [m].
    """
    ny, nx = shape
    cells = np.stack(np.divmod(np.arange(ny * nx), nx), axis=1)
    padded = np.pad(finite.reshape(shape), 1, mode="edge")
    windows = [padded[i : i + ny, j : j + nx] for i in range(3) for j in range(3)]
    differs = (np.any(windows, axis=0) & ~np.all(windows, axis=0)).ravel()
    candidates = np.flatnonzero(differs & ~known)
    chosen: list[int] = []
    for cell in candidates[np.argsort(-distance[candidates], kind="stable")]:
        gaps = np.abs(cells[chosen] - cells[cell]).max(axis=1)
        if not (gaps < distance[cell]).any():
            chosen.append(int(cell))
    return chosen
