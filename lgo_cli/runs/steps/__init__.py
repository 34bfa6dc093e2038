"""What each command computes and writes; `execute` does the rest, figures included."""

from lgo_cli.runs.steps.base import Context, Step
from lgo_cli.runs.steps.contour import ContourStep
from lgo_cli.runs.steps.hessian import HessianStep
from lgo_cli.runs.steps.interp import InterpStep
from lgo_cli.runs.steps.train import TrainStep

STEPS: dict[str, Step] = {
    "train": TrainStep(),
    "hessian": HessianStep(),
    "interp": InterpStep(),
    "contour": ContourStep(),
}

__all__ = ["STEPS", "Context", "Step"]
