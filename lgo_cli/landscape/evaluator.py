"""The loss at a point of a line or plane, several times faster than the model's own pass.

Points are θ + Σ cᵢ·dᵢ with k fixed directions. What is the same at every point is done once:

- A linear layer that sees the inputs themselves is linear in the coordinates:
  x(W + Σ cᵢDᵢ)ᵀ = xWᵀ + Σ cᵢ·xDᵢᵀ, of which the k + 1 products are kept.
- Batch norm in eval mode is folded into the convolution before it, and convolutions see channels
  last.

Which of them serve is read off the traced graph (torch.fx) and its sizes, never by a class's name
or a timing, so that equal requests give equal bits; what was chosen is compared with the model
itself (`verify`) and said (`plan`).
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from lgo_cli.curvature.convolutions import SLOPE, can_fuse
from lgo_cli.curvature.folding import in_words, rewrite_convolutions, wants_channels_last
from lgo_cli.curvature.tracing import ForwardError, strange_forward, trace
from lgo_cli.landscape.batchnorm import statistics_at
from lgo_cli.landscape.first_layer import (
    FirstLinear,
    Products,
    first_linears,
    prefix_of,
    take_out,
)
from lgo_cli.landscape.fusing import fuse_convolutions, reuse_memory
from lgo_cli.landscape.weights import note_sizes, take_out_weights
from lgo_cli.loss import Recording
from lgo_cli.samples import Evaluation, evaluate_outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from lgo_cli.landscape.batchnorm import BatchNorm
    from lgo_cli.objective import Objective
    from lgo_cli.samples import Samples

VERSION = 6
"""Raised when a cell's bits can change for an equal model: kept cells of another are not used."""

TOLERANCE = 1e-5
"""Relative difference of the fast path's loss from the model's own beyond which it is not used."""

LEAST_FEATURES = 32
"""Inputs of a linear layer from which on keeping its products pays: a point reads k + 1 numbers for
each output in place of that many multiplications."""

NEGLIGIBLE = 1e6 * SLOPE
"""Outputs below which may be what oneDNN's leaky ReLU has in place of zero."""

MOST_BYTES = 2**30
"""Memory for the kept products of all layers. A constant, since the choice moves the last bits."""

NUM_COMPARED = 512
"""Samples at most on which the fast path is compared with the model: another function would show in
each of them."""


class Evaluator:
    """Losses at θ + Σ cᵢ·dᵢ on fixed samples.

    Args:
        objective: Entered; θ is its centre.
        directions: [k, P].
        batchnorm: What batch norm does at each point; its running statistics by default.

    Attributes:
        samples: What the loss is the mean over: the objective's own, unless `on` gave others.
        plan: Which path the points take, and why.
    """

    def __init__(
        self, objective: Objective, directions: Tensor, *, batchnorm: BatchNorm | None = None
    ) -> None:
        self.objective = objective
        self.directions = directions.to(objective.theta)
        self.batchnorm = batchnorm
        self.samples = objective.samples
        self._compared: dict[tuple[float, ...], float] = {}
        self._call: Callable[..., Tensor] | None = None
        self._weights: Callable[[], tuple[Tensor, ...]] = tuple
        self._prefix: Callable[[Tensor], tuple[Tensor, ...]] | None = None
        self._linears: list[FirstLinear] = []
        self._products: list[Products] = []
        self._inputs = self.samples.inputs
        self._channels_last = False
        self._has_fused_relus = False
        self.plan = self._choose()
        if self._call is not None:
            self._prepare()

    def on(self, samples: Samples) -> Self:
        """The same points on other samples, such as a test set; on the objective's device."""
        other = copy.copy(self)
        other.samples = samples
        other._compared = {}
        if other._call is not None:
            other._prepare()
        return other

    def __call__(self, *coordinates: float) -> Evaluation:
        """Loss, its standard error and accuracy at θ + Σ cᵢ·dᵢ; one synchronisation.

        A loss that is not finite is the model's own, not the fast path's.
        """
        self._move(coordinates)
        with statistics_at(self.batchnorm, *coordinates):
            return self.here(*coordinates)[0]

    def here(self, *coordinates: float) -> tuple[Evaluation, Tensor]:
        """The same, and the loss of each sample [N] in float64, where the model is there already.

        For several sets of samples at one point, which is moved to and given its statistics once.

        Args:
            coordinates: Of the point at which the objective stands, its statistics in force.
        """
        if self._call is not None:
            found, losses = self._fast(coordinates)
            if math.isfinite(found.loss):
                return found, losses
        return self.objective.sample_losses(self.samples)

    def reference(self, *coordinates: float) -> Evaluation:
        """The same by the model itself, as `Objective.evaluate` does it."""
        self._move(coordinates)
        with statistics_at(self.batchnorm, *coordinates):
            return self.objective.evaluate(self.samples)

    def verify(self, points: Iterable[Sequence[float]]) -> float:
        """Compare the fast path with the model on a few samples at some points.

        Beyond a relative difference of 1e-5 it is given up, and `plan` says so. A point is compared
        once, however often it is asked for.

        Returns:
            The largest relative difference of the mean loss at these points; once there is no fast
            path, that at any.
        """
        if self._call is None:
            return self.difference
        size = min(self.objective.micro_batch_size, NUM_COMPARED)
        few = copy.copy(self)
        few.samples = self.samples.head(size)
        few._inputs = self._inputs[:size]
        few._products = [products.head(size) for products in self._products]
        wanted = [tuple(point) for point in points]
        for point in wanted:
            if point not in self._compared:
                fast, plain = few(*point).loss, few.reference(*point).loss
                known = math.isfinite(plain)
                scale = max(abs(plain), torch.finfo().tiny)
                self._compared[point] = abs(fast - plain) / scale if known else 0.0
        worst = max((self._compared[point] for point in wanted), default=0.0)
        if worst > TOLERANCE:
            self._give_up(f"it would move the loss by {worst:.1e}")
        return worst

    @property
    def is_fast(self) -> bool:
        """Whether points take another way than the model's own pass."""
        return self._call is not None

    @property
    def difference(self) -> float:
        """Largest relative difference from the model itself that `verify` ever found."""
        return max(self._compared.values(), default=0.0)

    def _move(self, coordinates: Sequence[float]) -> None:
        self.objective.displace(*zip(coordinates, self.directions, strict=True))

    @torch.no_grad()
    def _fast(self, coordinates: Sequence[float]) -> tuple[Evaluation, Tensor]:
        recording = Recording(self.objective.loss_function)
        found = evaluate_outputs(self._calls(coordinates), recording, self.samples)
        return found, recording.losses

    def _calls(self, coordinates: Sequence[float]) -> Iterator[tuple[Tensor, Tensor]]:
        """Outputs and labels, micro-batch by micro-batch."""
        assert self._call is not None
        size = self.objective.micro_batch_size
        weights = self._weights()
        for start in range(0, len(self.samples), size):
            rows = slice(start, start + size)
            kept = (products.at(coordinates, rows) for products in self._products)
            found = self._call(*weights, *kept, self._inputs[rows])
            if self._has_fused_relus:
                # Where all classes are at a ReLU's zero, what stands for it must not decide.
                found = torch.where(found.abs() < NEGLIGIBLE, 0.0, found)
            yield found, self.samples.labels[rows]

    def _give_up(self, reason: str) -> None:
        self._call = None
        self._products = []
        self.plan = f"the model's own pass: {reason}"

    def _choose(self) -> str:
        """Find what serves, and say so."""
        objective = self.objective
        if self.batchnorm is not None and self.batchnorm.policy == "batch":
            return "the model's own pass: batch norm normalises by each micro-batch"
        traced = trace(objective.model)
        if isinstance(traced, str):
            return f"the model's own pass: {traced}"
        num_folded, num_convolutions = rewrite_convolutions(traced, own_derivatives=False)
        try:
            self._linears = self._worth_keeping(traced)
            if num_convolutions:
                self._note_sizes(traced)
        except ForwardError as error:
            return f"the model's own pass: the rewritten model fails ({error})"
        done = []
        if num_convolutions:
            self._channels_last = wants_channels_last(objective)
            last = ", channels last" if self._channels_last else ""
            done.append(f"{in_words(num_folded, num_convolutions)}{last}")
        if self._linears:
            sizes = (f"{w.shape[1]} to {w.shape[0]}" for _, _, w, _ in self._linears)
            done.append(f"products of the first linear layer kept ({', '.join(sizes)})")
        if not done:
            return "the model's own pass: no convolution, and no wide linear layer sees the inputs"
        self._prefix = prefix_of(traced, [linear.inputs for linear in self._linears])
        take_out(traced, [linear.node for linear in self._linears])
        reuse_memory(traced)
        if self._channels_last and objective.dtype == torch.float32 and can_fuse():
            num_fused = fuse_convolutions(traced)
            if num_fused:
                self._has_fused_relus = True
                done.append(f"ReLU or sum in {num_fused} of them")
        self._weights = take_out_weights(traced, objective.micro_batch_size)
        self._call = traced
        return "; ".join(done)

    @torch.no_grad()
    def _note_sizes(self, traced: fx.GraphModule) -> None:
        with strange_forward():
            note_sizes(traced, self.samples.inputs[:2])

    @torch.no_grad()
    def _worth_keeping(self, traced: fx.GraphModule) -> list[FirstLinear]:
        """The wide first layers, in their order, whose products all together fit in."""
        wide = [
            linear for linear in first_linears(traced) if linear.weight.shape[1] >= LEAST_FEATURES
        ]
        few = self.samples.inputs[:2]
        with strange_forward():
            seen = prefix_of(traced, [linear.inputs for linear in wide])(few) if wide else ()
        kept, left = [], MOST_BYTES
        for linear, inputs in zip(wide, seen, strict=True):
            # A layer may serve many positions of a sample, such as the patches of an image.
            outputs = linear.weight.shape[0] * inputs[..., 0].numel() * len(self.samples)
            num_kept = 1 + len(self.directions) + (len(self.directions) > 1)  # and a row's sum
            num_bytes = num_kept * outputs // len(few) * inputs.itemsize
            if num_bytes <= left:
                kept.append(linear)
                left -= num_bytes
        return kept

    @torch.no_grad()
    def _prepare(self) -> None:
        """Inputs and kept products for the samples at hand."""
        self._inputs = self.samples.inputs
        if self._channels_last:
            self._inputs = self._inputs.contiguous(memory_format=torch.channels_last)
        self.objective.move(self.objective.theta)
        self._products = []
        try:
            with strange_forward():
                self._fill_products()
        except ForwardError as error:
            self._give_up(f"the rewritten model fails ({error})")

    def _fill_products(self) -> None:
        """Keep the products, and see on two samples that the call takes them."""
        if self._prefix is not None and self._linears:
            seen = self._prefix(self.samples.inputs)
            self._products = [
                Products(self._products_of(linear, inputs), self.objective.micro_batch_size)
                for linear, inputs in zip(self._linears, seen, strict=True)
            ]
        assert self._call is not None
        centre = [0.0] * len(self.directions)
        kept = (products.at(centre, slice(2)) for products in self._products)
        self._call(*self._weights(), *kept, self._inputs[:2])

    def _products_of(self, linear: FirstLinear, inputs: Tensor) -> list[Tensor]:
        """xWᵀ + b, and xDᵀ + d for each direction, all [N, *, out]."""
        index = {id(parameter): i for i, parameter in enumerate(self.objective.parameters)}
        products = [F.linear(inputs, linear.weight, linear.bias)]
        for direction in self.directions:
            pieces = self.objective.layout.split(direction)
            weight, bias = (
                pieces[index[id(tensor)]] if tensor is not None and id(tensor) in index else None
                for tensor in (linear.weight, linear.bias)
            )
            if weight is None:
                weight = torch.zeros_like(linear.weight)
            products.append(F.linear(inputs, weight, bias))
        return products
