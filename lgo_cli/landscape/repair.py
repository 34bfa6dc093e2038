"""REPAIR: give an interpolated network's hidden units the spread that its two ends have.

Between two networks the activations of hidden units lose their variance, layer after layer, and
most of the barrier after alignment is due to that. Jordan, Sedghi, Saukh, Entezari & Neyshabur 2023
rescale each unit before its activation, so that mean and standard deviation over the samples are
the interpolation of the ends' (theory.md, section 26). Where batch norm follows, its running
statistics are recomputed instead, which is the same.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lgo_cli.errors import NumericsError, UsageError
from lgo_cli.landscape.batchnorm import BatchNorm
from lgo_cli.landscape.permutations import find_symmetries
from lgo_cli.outputs import call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lgo_cli.objective import Objective

_LAYERS = {F.linear: -1, F.conv1d: 1, F.conv2d: 1, F.conv3d: 1}
"""Functions of an input, a weight and a bias, and the axis of their units; modules call them."""

ROUNDING = 100.0
"""A spread below so many rounding errors is none: rescaled, it would be noise of a percent."""

_AT_AN_END = "at an end of the path"
_FEW = "it sees no more than one sample"
_TWICE = "its weight is used more than once"


class Moments(NamedTuple):
    """What a layer's units put out before their activation, over samples and positions.

    Attributes:
        mean: Mean of each unit [units], float64.
        std: Standard deviation of each unit [units], float64.
    """

    mean: Tensor
    std: Tensor


class Repair:
    """REPAIR at every point of a path, as something to be in force around its passes.

    Layers are calls of `F.linear` and `F.conv*`, by modules or by a forward itself, but for those
    that give the network's outputs. A layer to which samples are routed, such as an expert of a
    mixture, has the moments of those that reach it. Fewer than two of them at an end leave it alone
    at all points, fewer than two at a point leave it alone there.

    Args:
        objective: Entered; its centre is the path's start.
        end: The path's other end [P].

    Attributes:
        ends: For each layer, by its weight's name and in the order of a pass, its moments at the
            path's start and end.
        batchnorm: Of the statistics of batch norm at every point, the ends among them; see
            `recomputed`.
        batch_norms: Names of the running means that are recomputed.
        not_repaired: Weights with hidden units that REPAIR has to leave alone, and why; `at` adds
            those that it leaves alone at a point, which are in `ends` all the same.

    Raises:
        UsageError: if the statistics of batch norm cannot be recomputed, or if nothing can be
            repaired since no layer sees two samples.
        NumericsError: if a hidden unit is not finite at an end.
    """

    def __init__(self, objective: Objective, end: Tensor) -> None:
        self._objective = objective
        self._parameters = dict(objective.model.named_parameters())
        self._layers, self.not_repaired = _find(objective)
        self.batchnorm = recomputed(objective)
        self.batch_norms = tuple(self.batchnorm.buffers)[::2]
        found = []
        for theta in (objective.theta, end):
            with objective.at(theta), self.batchnorm.at():
                found.append(self.moments(*self._layers, whole=True))
        self.ends: dict[str, tuple[Moments, Moments]] = {}
        for name in self._layers:
            start, stop = (moments[name] for moments in found)
            if isinstance(start, Moments) and isinstance(stop, Moments):
                self.ends[name] = (start, stop)
            else:
                reason = start if isinstance(start, str) else stop
                self.not_repaired[name] = f"{_AT_AN_END} {reason}"
        lacking = f"{_AT_AN_END} {_FEW}" in self.not_repaired.values()
        if lacking and not self.ends and not self.batch_norms:
            raise UsageError(
                "--repair: no layer that it could rescale sees more than one sample at both ends, "
                "and the units of one have no spread",
                hint="choose a larger --analysis-samples",
            )

    @contextmanager
    def at(self, alpha: float) -> Iterator[None]:
        """Rescale the hidden units of the network where the objective stands, for a while.

        Each unit's mean and standard deviation become (1 − α) times the start's plus α times the
        end's. Layers are repaired in order, each measured behind those repaired already, so that
        micro-batches do not matter to the result. This costs a pass as far as each layer, and with
        batch norm a whole one to recompute the statistics that it is measured under. A unit that is
        constant over the samples is only shifted. A layer that has no moments here is left alone
        and noted in `not_repaired`. Afterwards all is what it was, to the bit.

        Args:
            alpha: Where on the path it stands.

        Raises:
            NumericsError: if a hidden unit is not finite.
        """
        names = [name for weight in self.ends for name in (weight, self._layers[weight])]
        before = {name: self._parameters[name].detach().clone() for name in names}
        try:
            for name, (start, end) in self.ends.items():
                with self.batchnorm.at():
                    moments = self.moments(name)[name]
                if isinstance(moments, str):
                    self.not_repaired.setdefault(name, f"at some points of the path {moments}")
                    continue
                target = Moments(
                    *(torch.lerp(a, b, alpha) for a, b in zip(start, end, strict=True))
                )
                self._rescale(name, moments, target)
            with self.batchnorm.at():
                yield
        finally:
            with torch.no_grad():
                for name, value in before.items():
                    self._parameters[name].copy_(value)

    @torch.no_grad()
    def moments(self, *names: str, whole: bool = False) -> dict[str, Moments | str]:
        """Measure layers where the network stands, pooled over all samples in float64.

        Args:
            names: Of their weights.
            whole: Whether each pass goes on when all have been called, which shows whether one is
                called again.

        Returns:
            For each, or why it has none.
        """
        wanted = {id(self._parameters[name]): name for name in names}
        pools = {name: _Pool() for name in names}
        seen: set[str] = set()
        twice: set[str] = set()

        def see(call: _Call) -> None:
            if call.func in _LAYERS and (name := wanted.get(id(call.given("weight")))):
                pools[name].add(call.output, _LAYERS[call.func])
                (twice if name in seen else seen).add(name)
                if len(seen) == len(pools) and not whole:
                    raise _AllSeen

        for batch in self._objective.micro_batches():
            seen.clear()
            with suppress(_AllSeen), _Watching(see):
                call(self._objective.model, batch.inputs)
        return {
            name: _TWICE if name in twice else pool.moments(name) for name, pool in pools.items()
        }

    @torch.no_grad()
    def _rescale(self, name: str, now: Moments, target: Moments) -> None:
        weight, bias = self._parameters[name], self._parameters[self._layers[name]]
        floor = ROUNDING * torch.finfo(weight.dtype).eps * (target.std + now.mean.abs())
        scale = torch.where(now.std > floor, target.std / now.std, 1.0)
        weight.copy_(weight.double() * scale.view(-1, *[1] * (weight.ndim - 1)))
        bias.copy_(bias.double() * scale + (target.mean - scale * now.mean))


def recomputed(objective: Objective) -> BatchNorm:
    """What batch norm does on a repaired path, and on those that it is compared with.

    Its statistics are recomputed at every point, if there is batch norm.

    Raises:
        UsageError: if they cannot be.
    """
    frozen = BatchNorm(objective, "frozen")
    if frozen.unreachable:
        raise UsageError(
            f"--repair recomputes batch norm's statistics: {frozen.unreachable}",
            hint="leave out --repair",
        )
    return BatchNorm(objective, "recompute") if frozen.buffers else frozen


class _AllSeen(BaseException):
    """Ends a pass behind the last layer to be measured; no forward should take it for an error."""


class _Pool:
    """Count, mean and sum of squares around it of each unit, batch after batch.

    Two sets are pooled as by Chan, Golub & LeVeque 1983, without the cancellation of E x² − (E x)².
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, output: Tensor, axis: int) -> None:
        """Take in a layer's output, its units along an axis; no sample may have come to it."""
        values = output.double().movedim(axis, 0).flatten(1)
        if not values.shape[1]:
            return
        mean = values.mean(1)
        squares = (values - mean[:, None]).square().sum(1)
        total = self.count + values.shape[1]
        share = values.shape[1] / total
        difference = mean - self.mean
        self.squares = self.squares + squares + difference.square() * self.count * share
        self.mean = self.mean + difference * share
        self.count = total

    def moments(self, name: str) -> Moments | str:
        """Of a layer's units, or why REPAIR can do nothing with them."""
        if self.count < 2:
            return _FEW
        std = (self.squares / self.count).sqrt()
        if not bool(torch.isfinite(std).all()):
            raise NumericsError(
                f"the units of {name} are not finite, so REPAIR cannot rescale them",
                hint="leave out --repair",
            )
        return Moments(self.mean, std)


@dataclass(frozen=True)
class _Call:
    """A call of a torch function."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    def given(self, key: str) -> Any:
        """A layer's input, weight or bias, or `None`."""
        given = dict(zip(("input", "weight", "bias"), self.args, strict=False)) | self.kwargs
        return given.get(key)


class _Watching(TorchFunctionMode):
    """Shows each call of a torch function, but not those that it makes itself in turn."""

    def __init__(self, see: Callable[[_Call], None]) -> None:
        super().__init__()
        self._see = see

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        output = func(*args, **(kwargs or {}))
        self._see(_Call(func, args, kwargs or {}, output))
        return output


@torch.no_grad()
def _find(objective: Objective) -> tuple[dict[str, str], dict[str, str]]:
    """Run two samples; return the layers to repair, bias by weight, and why others are not."""
    named = dict(objective.model.named_parameters())
    names = {id(parameter): name for name, parameter in named.items()}
    uses: dict[str, list[str]] = {name: [] for name in named}
    outputs: dict[str, weakref.ref[Tensor]] = {}
    layers: dict[str, str] = {}
    normalised: set[str] = set()

    def see(call: _Call) -> None:
        if next(_tensors(call.output), None) is None:
            return  # a shape or a dtype
        if call.func is F.batch_norm:
            given = call.given("input")
            normalised.update(name for name, output in outputs.items() if output() is given)
        for tensor in _tensors((call.args, list(call.kwargs.values()))):
            if name := names.get(id(tensor)):
                uses[name].append(call.func.__name__)
                if isinstance(call.output, Tensor):
                    outputs[name] = weakref.ref(call.output)
        if call.func in _LAYERS and (weight := names.get(id(call.given("weight")))):
            layers[weight] = names.get(id(call.given("bias")), "")

    inputs = objective.samples.head(2).inputs
    with _Watching(see):
        objective.model(inputs)
    done = normalised | find_symmetries(objective.model, inputs).output_parameters
    not_repaired = {}
    for name, parameter in named.items():
        if parameter.ndim < 2 or (name in done and len(uses[name]) == 1):
            continue
        bias = layers.get(name)
        if not uses[name]:
            not_repaired[name] = "no call is seen to use it on the two traced samples"
        elif bias is None:
            not_repaired[name] = f"it is used by {uses[name][0]}, whose units are not seen"
        elif len(uses[name]) > 1:
            not_repaired[name] = _TWICE
        elif not bias:
            not_repaired[name] = "it has no bias to shift its units by"
        elif len(uses[bias]) > 1:
            not_repaired[name] = "its bias is used more than once"
        elif not (parameter.requires_grad and named[bias].requires_grad):
            not_repaired[name] = "it is frozen"
    repaired = {
        name: bias for name, bias in layers.items() if name not in done and name not in not_repaired
    }
    return repaired, not_repaired


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
