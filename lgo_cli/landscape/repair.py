"""REPAIR: give an interpolated network's hidden units the spread that its two ends have.

Between two networks the activations of hidden units lose their variance, layer after layer, and
most of the barrier after alignment is due to that. Jordan, Sedghi, Saukh, Entezari & Neyshabur 2023
rescale each unit before its activation, so that mean and standard deviation over the samples are
the interpolation of the ends' (theory.md, section 26). Where batch norm follows, its running
statistics are measured anew instead, which is the same.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lgo_cli.errors import NumericsError
from lgo_cli.landscape.permutations import (
    State,
    evaluating,
    find_symmetries,
    first_names,
    run,
    tensors_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_LAYERS = {F.linear: -1, F.conv1d: 1, F.conv2d: 1, F.conv3d: 1}
"""Functions of an input, a weight and a bias, and the axis of their units; modules call them."""

_BATCH_NORM = (
    "input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"
)  # fmt: skip


@dataclass(frozen=True)
class LayerStatistics:
    """What each hidden unit puts out before its activation, over a set of samples.

    Attributes:
        mean: For each layer, by its weight's name, over samples and positions [units].
        std: Likewise.
        not_repaired: Layers that REPAIR has to leave alone, and why.
    """

    mean: Mapping[str, Tensor]
    std: Mapping[str, Tensor]
    not_repaired: Mapping[str, str]


@dataclass(frozen=True)
class Repaired:
    """An interpolated network after REPAIR.

    Attributes:
        state: Its state_dict: weights and biases of the layers, running statistics of batch norms.
        layers: Weights that were rescaled.
        batch_norms: Running means that were measured anew.
    """

    state: State
    layers: tuple[str, ...]
    batch_norms: tuple[str, ...]


def layer_statistics(
    model: nn.Module, state: Mapping[str, Tensor], inputs: Tensor
) -> LayerStatistics:
    """Measure the hidden layers of one end, in one pass.

    Layers are calls of `F.linear` and `F.conv*`, by modules or by a forward itself. Those that put
    out the network's outputs are no hidden ones.

    Args:
        model: The structure; left as it was.
        state: The end's state_dict.
        inputs: All samples [n, *input_shape], on the model's device; they go through in one batch.
    """
    tensors = tensors_of(model, state)
    outputs = find_symmetries(model, inputs).output_parameters
    watch = _Statistics(tensors)
    with evaluating(model), watch:
        run(model, tensors, inputs)
    hidden = [name for name in watch.mean if name not in outputs and name not in watch.excluded]
    return LayerStatistics(
        mean={name: watch.mean[name] for name in hidden},
        std={name: watch.std[name] for name in hidden},
        not_repaired={
            name: reason
            for name, reason in watch.excluded.items()
            if name not in outputs and reason != _NORMALISED
        },
    )


def repair(
    model: nn.Module,
    state: Mapping[str, Tensor],
    stats_a: LayerStatistics,
    stats_b: LayerStatistics,
    alpha: float,
    inputs: Tensor,
) -> Repaired:
    """Rescale an interpolated network's hidden units, layer after layer in one pass.

    Each unit's mean and standard deviation become (1 − α) times A's plus α times B's; the layers
    after it see what it puts out then. A unit that is constant over the samples is only shifted.

    Args:
        model: The structure; left as it was.
        state: State_dict of the network at α.
        stats_a: `layer_statistics` of A over the same samples.
        stats_b: Of B, its units in A's order.
        alpha: Where on the path it stands.
        inputs: The samples, as for the ends.

    Raises:
        NumericsError: if an activation is not finite.
    """
    tensors = tensors_of(model, state)
    targets = {
        name: tuple(
            torch.lerp(a[name], b[name], alpha)
            for a, b in ((stats_a.mean, stats_b.mean), (stats_a.std, stats_b.std))
        )
        for name in stats_a.mean
    }
    mode = _Repair(tensors, targets)
    with evaluating(model), mode:
        run(model, tensors, inputs)
    names = first_names(model)
    new = {key: mode.new.get(names.get(key, key), value) for key, value in state.items()}
    return Repaired(new, tuple(mode.layers), tuple(mode.batch_norms))


_NORMALISED = "batch norm follows"


class _Layers(TorchFunctionMode):
    """Sees each layer's and each batch norm's call, and may replace what it puts out."""

    def __init__(self, tensors: State) -> None:
        super().__init__()
        self.tensors = tensors
        self.names = {id(tensor): name for name, tensor in tensors.items()}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self.on_batch_norm(dict(zip(_BATCH_NORM, args, strict=False)) | kwargs)
        output = func(*args, **kwargs)
        if func not in _LAYERS:
            return output
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        weight, bias = (self.names.get(id(given.get(key)), "") for key in ("weight", "bias"))
        return self.on_layer(output, _LAYERS[func], weight, bias) if weight else output

    def on_layer(self, output: Tensor, axis: int, weight: str, bias: str) -> Tensor:
        raise NotImplementedError

    def on_batch_norm(self, given: dict[str, Any]) -> Tensor:
        return F.batch_norm(**given)


class _Statistics(_Layers):
    def __init__(self, tensors: State) -> None:
        super().__init__(tensors)
        self.mean: State = {}
        self.std: State = {}
        self.excluded: dict[str, str] = {}
        self._outputs: dict[str, weakref.ref[Tensor]] = {}

    def on_layer(self, output: Tensor, axis: int, weight: str, bias: str) -> Tensor:
        if weight in self.mean:
            self.excluded[weight] = "its weight is used more than once"
        elif not bias:
            self.excluded[weight] = "it has no bias to shift its units by"
        self.mean[weight], self.std[weight] = _moments(output, axis)
        self._outputs[weight] = weakref.ref(output)
        return output

    def on_batch_norm(self, given: dict[str, Any]) -> Tensor:
        for name, output in self._outputs.items():
            if output() is given["input"]:
                self.excluded[name] = _NORMALISED
        return super().on_batch_norm(given)


class _Repair(_Layers):
    def __init__(self, tensors: State, targets: Mapping[str, tuple[Tensor, ...]]) -> None:
        super().__init__(tensors)
        self.targets = targets
        self.new: State = {}
        self.layers: list[str] = []
        self.batch_norms: list[str] = []

    def on_layer(self, output: Tensor, axis: int, weight: str, bias: str) -> Tensor:
        if weight not in self.targets:
            return output
        target_mean, target_std = self.targets[weight]
        mean, std = _moments(output, axis)
        if not bool(torch.isfinite(std).all()):
            raise NumericsError(
                f"the units of {weight} are not finite, so REPAIR cannot rescale them"
            )
        scale = torch.where(std > 0, target_std / std, torch.ones_like(std))
        shift = target_mean - scale * mean
        value = self.tensors[weight]
        self.new[weight] = value * _along(scale, value.ndim, 0)
        self.new[bias] = self.tensors[bias] * scale + shift
        self.layers.append(weight)
        return output * _along(scale, output.ndim, axis) + _along(shift, output.ndim, axis)

    def on_batch_norm(self, given: dict[str, Any]) -> Tensor:
        buffers = [self.names.get(id(given.get(f"running_{key}")), "") for key in ("mean", "var")]
        if all(buffers) and not given.get("training"):
            x = given["input"]
            dims = [dim for dim in range(x.ndim) if dim != 1]
            variance, mean = torch.var_mean(x, dims)
            for key, name, value in zip(("mean", "var"), buffers, (mean, variance), strict=True):
                given[f"running_{key}"] = self.new[name] = value
            self.batch_norms.append(buffers[0])
        return super().on_batch_norm(given)


def _moments(output: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [units] over all other axes."""
    dims = [dim for dim in range(output.ndim) if dim != axis % output.ndim]
    std, mean = torch.std_mean(output, dims, correction=0)
    return mean, std


def _along(vector: Tensor, ndim: int, axis: int) -> Tensor:
    """A vector [units] to be broadcast along one axis of `ndim`."""
    shape = [1] * ndim
    shape[axis] = -1
    return vector.view(shape)
