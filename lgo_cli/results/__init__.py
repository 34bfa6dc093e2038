"""What each command reports: typed, frozen, with the evidence inside."""

from __future__ import annotations

from lgo_cli.results.base import (
    AnalysisResults,
    Measured,
    Real,
    Recipe,
    Results,
    TrainResults,
)
from lgo_cli.results.paths import (
    AlignmentResults,
    Barrier,
    BarrierMatrix,
    CurveResults,
    InterpResults,
    RepairResults,
)
from lgo_cli.results.spectrum import (
    AuditResults,
    Density,
    Eigenvalue,
    FrobeniusNorm,
    Half,
    Halves,
    HessianResults,
    Layer,
    Layers,
    Trace,
)
from lgo_cli.results.surfaces import (
    BandResults,
    ContourResults,
    ConvexityResults,
    Filling,
    FillingCheck,
    LineCurvatureResults,
    Marker,
    Planes,
    Quadratic,
    RecomputedCell,
    SelfCheck,
    TestSurface,
    TrajectoryPoint,
)

__all__ = [
    "RESULTS",
    "AlignmentResults",
    "AnalysisResults",
    "AuditResults",
    "BandResults",
    "Barrier",
    "BarrierMatrix",
    "ContourResults",
    "ConvexityResults",
    "CurveResults",
    "Density",
    "Eigenvalue",
    "Filling",
    "FillingCheck",
    "FrobeniusNorm",
    "Half",
    "Halves",
    "HessianResults",
    "InterpResults",
    "Layer",
    "Layers",
    "LineCurvatureResults",
    "Marker",
    "Measured",
    "Planes",
    "Quadratic",
    "Real",
    "Recipe",
    "RecomputedCell",
    "RepairResults",
    "Results",
    "SelfCheck",
    "TestSurface",
    "Trace",
    "TrainResults",
    "TrajectoryPoint",
]

RESULTS: dict[str, type[Results]] = {
    "train": TrainResults,
    "hessian": HessianResults,
    "interp": InterpResults,
    "contour": ContourResults,
}
