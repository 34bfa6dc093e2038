"""The linear assignment problem."""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array


def assign(cost: Array) -> tuple[Array, Array, Array]:
    """The linear assignment problem: rows to columns, each once, at the least sum.

    Shortest augmenting paths (Jonker & Volgenant 1987; Crouse 2016), O(n³).

    Args:
        cost: [n, n], finite.

    Returns:
        The column [n] of each row, and dual variables u, v [n], which prove that it is optimal:
        u_i + v_j ≤ cost_ij for all pairs, with equality for those assigned.
    """
    n = len(cost)
    v = cost.min(axis=0, initial=np.inf)
    reduced = cost - v
    u = reduced.min(axis=1, initial=np.inf)
    row_of = np.full(n, -1)
    column_of = np.full(n, -1)
    for row, column in enumerate(reduced.argmin(axis=1) if n else ()):
        if row_of[column] < 0:
            row_of[column], column_of[row] = row, column
    for start in np.flatnonzero(column_of < 0):
        # Dijkstra over columns, with reduced costs as lengths, to the nearest that is free.
        distance = cost[start] - u[start] - v
        previous = np.full(n, start)
        open_distance = distance.copy()
        while True:
            column = int(open_distance.argmin())
            nearest = distance[column]
            open_distance[column] = np.inf
            row = row_of[column]
            if row < 0:
                break
            through = cost[row] - v + (nearest - u[row])
            shorter = (through < distance) & (open_distance < np.inf)
            distance[shorter] = open_distance[shorter] = through[shorter]
            previous[shorter] = row
        visited = np.flatnonzero(open_distance == np.inf)
        gained = nearest - distance[visited]
        v[visited] -= gained
        through_rows = row_of[visited] >= 0
        u[row_of[visited[through_rows]]] += gained[through_rows]
        u[start] += nearest
        while True:
            row = previous[column]
            row_of[column] = row
            column_of[row], column = column, column_of[row]
            if row == start:
                break
    return column_of, u, v
