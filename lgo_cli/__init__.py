"""Loss-landscape geometry of neural networks, for notebooks and scripts.

`execute` carries out a step in a run directory with the caching, manifests and numbers of the
command line. Below it, `Objective` and the estimators work on any model and data::

    from pathlib import Path

    from lgo_cli import Execution, TrainConfig, execute

    outcome = execute(TrainConfig(epochs=5), execution=Execution(out=Path("outputs")))
    print(outcome.manifest.results.test_accuracy)

Names are loaded when they are first used, so that `import lgo_cli` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "TrainConfig": "lgo_cli.config",
    "HessianConfig": "lgo_cli.config",
    "InterpConfig": "lgo_cli.config",
    "ContourConfig": "lgo_cli.config",
    "Execution": "lgo_cli.config",
    "FigureConfig": "lgo_cli.config",
    "LgoError": "lgo_cli.errors",
    "Manifest": "lgo_cli.manifest",
    "read_manifest": "lgo_cli.manifest",
    "execute": "lgo_cli.runs",
    "Outcome": "lgo_cli.runs",
    "Status": "lgo_cli.runs",
    "Objective": "lgo_cli.objective",
    "Samples": "lgo_cli.objective",
    "LossFunction": "lgo_cli.loss",
    "Operator": "lgo_cli.curvature.operators",
    "HessianOperator": "lgo_cli.curvature.networks",
    "Wanted": "lgo_cli.curvature.search",
    "extreme_eigenpairs": "lgo_cli.curvature.eigenpairs",
    "estimate_trace": "lgo_cli.curvature.trace",
    "spectral_density": "lgo_cli.curvature.density",
    "interpolate": "lgo_cli.landscape.interpolation",
    "measure_surface": "lgo_cli.landscape.surface",
}

__all__ = [  # noqa: PLE0604 - the names are the table's
    "__version__",
    *_HOMES,
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
