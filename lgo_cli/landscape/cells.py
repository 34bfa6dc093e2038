"""What has been measured at points of a plane, so that no point is measured twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lgo_cli.landscape.evaluator import Evaluator
    from lgo_cli.samples import Evaluation

    Key = tuple[float, float, int]


class Cells:
    """Evaluations by coordinates and number of samples, in memory.

    Coordinates are compared as numbers, to the bit: grids that share points share them. A cell that
    is not finite is a measured cell like any other. All are of one centre, pair of directions,
    probe set and evaluator: who keeps them longer than for one plane keeps these apart
    (`runs.journal`).
    """

    def __init__(self) -> None:
        self.known: dict[Key, Evaluation] = {}
        self.num_measured = 0

    def measure(self, evaluator: Evaluator, x: float, y: float) -> Evaluation:
        """The evaluation at (x, y), from what is known or by the evaluator."""
        key = (x, y, len(evaluator.samples))
        found = self.known.get(key)
        if found is None:
            found = evaluator(x, y)
            self.num_measured += 1
            self.add(key, found)
        return found

    def add(self, key: Key, evaluation: Evaluation) -> None:
        """Keep an evaluation."""
        self.known[key] = evaluation
