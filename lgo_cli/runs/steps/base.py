"""What every step is, and what steps share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lgo_cli.files import atomic_write
from lgo_cli.runs.names import PAYLOADS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

    from lgo_cli.config import Execution
    from lgo_cli.progress import Progress
    from lgo_cli.provenance import Stopwatch
    from lgo_cli.results import Results
    from lgo_cli.runs.loaded import Loaded
    from lgo_cli.runs.plan import Plan

C = TypeVar("C")


@dataclass(frozen=True)
class TopEigenpairs:
    """The top of the spectrum, for a step that goes along it.

    Attributes:
        values: The largest eigenvalues [k].
        vectors: Their eigenvectors [k, P], unit norm.
        num_matvecs: Products spent here; 0 if they were read.
        unconverged: What did not converge, which `--strict` does not let pass.
    """

    values: Tensor
    vectors: Tensor
    num_matvecs: int
    unconverged: tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """What a step needs beside its plan.

    Attributes:
        plan: The step, ready to be carried out.
        loaded: Model and data.
        execution: Where and how to run.
        progress: Listener.
        stopwatch: Of the phases.
        eigenpairs: Those found so far, by their number.
    """

    plan: Plan
    loaded: Loaded
    execution: Execution
    progress: Progress
    stopwatch: Stopwatch
    eigenpairs: dict[int, TopEigenpairs] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """Where an output goes."""
        return self.plan.out / name


class Step(ABC):
    """One command's work: names of its outputs, and computation."""

    def payload_names(self, plan: Plan, loaded: Loaded) -> list[str]:
        """File names of all that holds numbers."""
        del loaded
        return list(PAYLOADS[plan.command])

    @abstractmethod
    def compute(self, context: Context) -> Results:
        """Compute, write the payloads and return the results."""

    def published(self, context: Context) -> None:
        """Remove what was kept for the case of a kill, now that the manifest stands."""
        del context


def typed(plan: Plan, cls: type[C]) -> C:
    """The plan's config as the class that its command has.

    Raises:
        TypeError: if it is of another command.
    """
    if not isinstance(plan.config, cls):
        raise TypeError(f"this step takes a {cls.__name__}")
    return plan.config


def common(context: Context, warnings: Iterable[str] = ()) -> dict[str, Any]:
    """What every command's results begin with; names as in the request, which hold no path."""
    config = context.plan.request.config
    parameters = context.loaded.model.parameters()
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "num_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "warnings": [*context.loaded.warnings, *warnings],
    }


def save_arrays(context: Context, name: str, arrays: Mapping[str, Any]) -> None:
    """Write a `.npz` atomically; its bytes depend on the arrays alone."""
    with context.stopwatch.phase("write"), atomic_write(context.path(name)) as handle:
        np.savez(handle, **arrays)
