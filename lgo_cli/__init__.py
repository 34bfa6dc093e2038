"""Loss-landscape geometry of neural networks, for notebooks and scripts.

`execute` carries out a step in a run directory with the caching, manifests and numbers of the
command line::

    from pathlib import Path

    from lgo_cli import Execution, TrainConfig, execute

    outcome = execute(TrainConfig(epochs=5), execution=Execution(out=Path("outputs")))
    print(outcome.manifest.results.test_accuracy)

What a user can mend is raised as an `LgoError`, and a field that a config does not take, or a bad
value of one, as pydantic's `ValidationError`.

Below it, an `Objective` and the estimators work on any model and data, inside `with`, at whose end
the model is as it was::

    import torch
    from torch import nn

    from lgo_cli import HessianOperator, Objective, Samples, Wanted, extreme_eigenpairs

    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    samples = Samples(torch.randn(64, 4), torch.randint(3, (64,)))
    with Objective(model, samples) as objective:
        pairs = extreme_eigenpairs(HessianOperator(objective), Wanted(top_k=3))
    print(pairs.values, pairs.residual_bounds)

Names are loaded when they are first used, so that `import lgo_cli` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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
    "Samples": "lgo_cli.samples",
    "LossFunction": "lgo_cli.loss",
    "Operator": "lgo_cli.curvature.operators",
    "HessianOperator": "lgo_cli.curvature.networks",
    "GaussNewtonOperator": "lgo_cli.curvature.networks",
    "FisherOperator": "lgo_cli.curvature.networks",
    "EmpiricalFisherOperator": "lgo_cli.curvature.networks",
    "Lanczos": "lgo_cli.curvature.lanczos",
    "Wanted": "lgo_cli.curvature.search",
    "extreme_eigenpairs": "lgo_cli.curvature.eigenpairs",
    "estimate_trace": "lgo_cli.curvature.trace",
    "spectral_density": "lgo_cli.curvature.density",
    "Evaluator": "lgo_cli.landscape.evaluator",
    "interpolate": "lgo_cli.landscape.interpolation",
    "measure_surface": "lgo_cli.landscape.surface",
}

__all__ = [  # noqa: PLE0604 - the names are the table's
    "__version__",
    *_HOMES,
]


if TYPE_CHECKING:  # type checkers and editors see the names where they are
    from lgo_cli.config import ContourConfig as ContourConfig
    from lgo_cli.config import Execution as Execution
    from lgo_cli.config import FigureConfig as FigureConfig
    from lgo_cli.config import HessianConfig as HessianConfig
    from lgo_cli.config import InterpConfig as InterpConfig
    from lgo_cli.config import TrainConfig as TrainConfig
    from lgo_cli.curvature.density import spectral_density as spectral_density
    from lgo_cli.curvature.eigenpairs import extreme_eigenpairs as extreme_eigenpairs
    from lgo_cli.curvature.lanczos import Lanczos as Lanczos
    from lgo_cli.curvature.networks import EmpiricalFisherOperator as EmpiricalFisherOperator
    from lgo_cli.curvature.networks import FisherOperator as FisherOperator
    from lgo_cli.curvature.networks import GaussNewtonOperator as GaussNewtonOperator
    from lgo_cli.curvature.networks import HessianOperator as HessianOperator
    from lgo_cli.curvature.operators import Operator as Operator
    from lgo_cli.curvature.search import Wanted as Wanted
    from lgo_cli.curvature.trace import estimate_trace as estimate_trace
    from lgo_cli.errors import LgoError as LgoError
    from lgo_cli.landscape.evaluator import Evaluator as Evaluator
    from lgo_cli.landscape.interpolation import interpolate as interpolate
    from lgo_cli.landscape.surface import measure_surface as measure_surface
    from lgo_cli.loss import LossFunction as LossFunction
    from lgo_cli.manifest import Manifest as Manifest
    from lgo_cli.manifest import read_manifest as read_manifest
    from lgo_cli.objective import Objective as Objective
    from lgo_cli.runs.execute import Outcome as Outcome
    from lgo_cli.runs.execute import Status as Status
    from lgo_cli.runs.execute import execute as execute
    from lgo_cli.samples import Samples as Samples
else:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
