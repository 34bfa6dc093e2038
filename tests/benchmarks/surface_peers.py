"""Surfaces as other tools measure them, behind one call, to be compared with `lgo contour`.

Each peer gets the same model, samples and number of steps, and measures the mean cross entropy over
all samples at each cell of a steps × steps grid on a random plane of its own making, over about
[−1, 1]² in units of the weights' norm. What it says is what it costs; its heights are not lgo's,
since its directions are other ones:

- `loss-landscapes` (De Bernardi) draws uniformly in [0, 1], filter-normalises after it
  orthogonalised, and walks from cell to cell by adding steps to the weights.
- `landscaper` (LBNL) draws normally, scales whole tensors instead of filters, clones the weights at
  each cell, adds one step after the other, and replaces what is not finite.
- `clone and copy` is the loop of Li et al. (2018) as people write it anew, with Gaussian,
  filter-normalised and orthogonal directions.

The first comes with the extra `bench`, the second by `pip install --no-deps landscaper`; neither is
imported before its peer is called.
"""

from __future__ import annotations

import copy
import io
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Callable[[nn.Module], float]


@dataclass(frozen=True)
class PeerSurface:
    """What a peer measured.

    Attributes:
        loss: [steps, steps].
        num_passes: Over all samples.
        setup_s: Before the first pass: directions and their normalisation.
        seconds: After that, until the surface is there.
    """

    loss: np.ndarray[Any, Any]
    num_passes: int
    setup_s: float
    seconds: float

    @property
    def seconds_per_cell(self) -> float:
        """Without the set-up."""
        return self.seconds / self.loss.size


Peer = Callable[[nn.Module, Tensor, Tensor, int, int], PeerSurface]


class _Passes:
    """Mean cross entropy over all samples; remembers how often it was asked, and since when."""

    def __init__(self, inputs: Tensor, labels: Tensor, batch_size: int) -> None:
        self.batches = list(zip(inputs.split(batch_size), labels.split(batch_size), strict=True))
        self.num_samples = len(labels)
        self.count = 0
        self.first_at = 0.0
        self.started_at = time.perf_counter()

    def __call__(self, forward: Callable[[Tensor], Tensor]) -> float:
        """One pass; one batch that is as large as all samples is the peers' documented use."""
        if self.count == 0:
            self.first_at = time.perf_counter()
        self.count += 1
        total = sum(
            F.cross_entropy(forward(inputs), labels, reduction="sum").item()
            for inputs, labels in self.batches
        )
        return total / self.num_samples

    def surface(self, loss: np.ndarray[Any, Any]) -> PeerSurface:
        """What was measured until now."""
        now = time.perf_counter()
        return PeerSurface(loss, self.count, self.first_at - self.started_at, now - self.first_at)


def loss_landscapes(
    model: nn.Module, inputs: Tensor, labels: Tensor, steps: int, batch_size: int
) -> PeerSurface:
    """`random_plane` on a copy of the model, with a `Metric`, as its documentation shows.

    Its library divides by `distance`: 0.5 makes the grid as wide as twice the weights' norm.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its docstrings have invalid escapes
        library = import_module("loss_landscapes")
        metric_type: Any = import_module("loss_landscapes.metrics").Metric

    class MeanLoss(metric_type):  # type: ignore[misc]
        def __call__(self, model_wrapper: Any) -> float:
            return passes(model_wrapper.forward)

    passes = _Passes(inputs, labels, batch_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = library.random_plane(
            model, MeanLoss(), distance=0.5, steps=steps, normalization="filter",
            deepcopy_model=True,
        )  # fmt: skip
    return passes.surface(loss)


def landscaper(
    model: nn.Module, inputs: Tensor, labels: Tensor, steps: int, batch_size: int
) -> PeerSurface:
    """`compute_loss_landscape` in two dimensions, along its own random directions."""
    compute, utils = _landscaper("compute"), _landscaper("utils")
    passes = _Passes(inputs, labels, batch_size)

    def scalar_fn(model: nn.Module, data: Any) -> float:
        del data
        return passes(model)

    moved = copy.deepcopy(model)
    silence = io.StringIO()
    with (
        torch.random.fork_rng(devices=[]),
        redirect_stdout(silence),
        redirect_stderr(silence),
    ):
        torch.manual_seed(0)
        directions = utils.generate_random_orthogonal_directions(moved, n=2)
        loss, _ = compute.compute_loss_landscape(
            moved, None, directions, scalar_fn, steps=steps, distance=1.0, dim=2, device="cpu"
        )
    return passes.surface(loss)


def _landscaper(name: str) -> ModuleType:
    """A module of Landscaper, without what the package imports to analyse surfaces.

    That is topopy, which wants a NumPy older than lgo's; what measures surfaces does without.

    Raises:
        ModuleNotFoundError: If it is not installed.
    """
    if "landscaper" not in sys.modules:
        spec = find_spec("landscaper")
        if spec is None:
            raise ModuleNotFoundError("No module named 'landscaper'", name="landscaper")
        sys.modules["landscaper"] = module_from_spec(spec)
    return import_module(f"landscaper.{name}")


@torch.no_grad()
def clone_and_copy(
    model: nn.Module, inputs: Tensor, labels: Tensor, steps: int, batch_size: int
) -> PeerSurface:
    """For each cell: clone the weights, add both directions, copy them into the model."""
    moved = copy.deepcopy(model)
    parameters = list(moved.parameters())
    weights = [p.clone() for p in parameters]
    passes = _Passes(inputs, labels, batch_size)
    draw = torch.Generator().manual_seed(0)
    first, drawn = (_filter_normalized(weights, draw) for _ in range(2))
    along = _inner(first, drawn) / _inner(first, first)
    second = [d - along * f for d, f in zip(drawn, first, strict=True)]
    loss = np.empty((steps, steps))
    coordinates = np.linspace(-1, 1, steps)
    for i, y in enumerate(coordinates):
        for j, x in enumerate(coordinates):
            point = [weight.clone() for weight in weights]
            for new, a, b in zip(point, first, second, strict=True):
                new.add_(float(x) * a).add_(float(y) * b)
            for parameter, new in zip(parameters, point, strict=True):
                parameter.copy_(new)
            loss[i, j] = passes(moved)
    return passes.surface(loss)


def _filter_normalized(weights: list[Tensor], draw: torch.Generator) -> list[Tensor]:
    """A Gaussian direction with the norm of each filter; biases and norm layers stay."""
    directions = []
    for weight in weights:
        direction = torch.randn(weight.shape, generator=draw)
        if weight.ndim < 2:
            directions.append(torch.zeros_like(weight))
            continue
        scale = weight.flatten(1).norm(dim=1) / direction.flatten(1).norm(dim=1)
        directions.append(direction * scale.view(-1, *[1] * (weight.ndim - 1)))
    return directions


def _inner(a: list[Tensor], b: list[Tensor]) -> float:
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


PEERS: dict[str, Peer] = {
    "clone and copy": clone_and_copy,
    "loss-landscapes": loss_landscapes,
    "landscaper": landscaper,
}
