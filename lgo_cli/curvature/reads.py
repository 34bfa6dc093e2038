"""Where a network reads its parameters: operations of a traced graph that are linear in theirs.

Found on the graph (torch.fx), by the functions that run there and never by a class of the user's.
For each such operation the squared norm of every sample's own gradient is known from what goes in
and from the derivative by what comes out, without a gradient of the parameters' size for each
sample (Goodfellow 2015; Dangel et al. 2020).

Shapes: n samples, C cotangents at once, T positions at which one weight [O, K] is applied.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lgo_cli.curvature.convolutions import Geometry
from lgo_cli.curvature.folding import GEOMETRY_DEFAULTS, as_convolution, as_tuple
from lgo_cli.curvature.tracing import is_customised, tensor_of

if TYPE_CHECKING:
    from collections.abc import Callable

    Squares = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Operation:
    """One operation y = f(x; w, b), linear in (w, b).

    Attributes:
        inputs: The node of x.
        weight: w, or `None`.
        bias: b, which is broadcast over y, or `None`.
        weight_squares: Maps x and δ = ∂(uᵀz)/∂y [C, n, ...] to ‖∂(uᵀz)/∂w‖² [C, n].
        has_channels: Whether w and b of one axis lie along the first axis of a sample, as those of
            convolutions do; along the last ones if not.
        is_straight: Whether y is piecewise linear in x too.
    """

    inputs: fx.Node
    weight: Tensor | None
    bias: Tensor | None
    weight_squares: Squares
    has_channels: bool = False
    is_straight: bool = True

    def squares(self, parameter: Tensor, x: Tensor, delta: Tensor) -> Tensor:
        """Squared norm [C, n] of each sample's gradient by w or b."""
        if parameter is self.weight:
            return self.weight_squares(x, delta)
        return self.broadcast_squares(parameter, delta)

    def broadcast_squares(self, parameter: Tensor, delta: Tensor) -> Tensor:
        """‖δ summed over the axes that a parameter is broadcast over‖² [C, n]."""
        num_axes = delta.ndim - 2
        shape = list(parameter.shape)
        if self.has_channels:
            shape += [1] * (num_axes - len(shape))
        shape = [1] * num_axes + shape
        axes = [2 + axis for axis in range(num_axes) if shape[axis - num_axes] == 1]
        return _square(delta.sum(axes) if axes else delta)


def _square(tensor: Tensor) -> Tensor:
    """Sum of squares over all but the first two axes.

    By `sum`, which adds in pairs: `vector_norm` adds one by one, and in float32 the squared norm of
    a million equal entries is off by 7e-4.
    """
    squares = tensor.square()
    return squares if tensor.ndim == 2 else squares.flatten(2).sum(2)


def matrix_squares(a: Tensor, delta: Tensor) -> Tensor:
    """‖Σ_t δ_t a_tᵀ‖² [C, n] for a [n, K, T] and δ [C, n, O, T].

    By the gradient [O, K] itself, or as Σ_{t,t'} (δ_t·δ_t')(a_t·a_t') where that is less work.
    """
    num_cotangents, _, size, num_positions = delta.shape
    rows, columns = num_cotangents * size, a.shape[1]
    if num_positions == 1:
        return _square(delta) * a.square().sum((1, 2))
    if num_positions * (rows + columns) < rows * columns:
        return _gram_squares(a.mT @ a, delta)
    return torch.stack([(d @ a.mT).square_().sum((1, 2)) for d in delta])


def _gram_squares(gram: Tensor, delta: Tensor) -> Tensor:
    """The same from the products a_t·a_t' [n, T, T]."""
    return torch.stack([(d.mT @ d).mul_(gram).sum((1, 2)) for d in delta])


def _linear_squares(x: Tensor, delta: Tensor) -> Tensor:
    a = x.reshape(len(x), -1, x.shape[-1]).mT
    return matrix_squares(a, delta.reshape(*delta.shape[:2], -1, delta.shape[-1]).mT)


def _convolution_squares(x: Tensor, delta: Tensor, *, weight: Tensor, geometry: Geometry) -> Tensor:
    patches = _patches(x, weight.shape[2:], delta.shape[3:], geometry)
    n, groups = len(x), geometry.groups
    a = patches.reshape(n * groups, weight[0].numel(), -1)
    by_group = delta.reshape(len(delta), n * groups, len(weight) // groups, -1)
    return matrix_squares(a, by_group).view(len(delta), n, groups).sum(2)


def _transposed_squares(x: Tensor, delta: Tensor, *, weight: Tensor, geometry: Geometry) -> Tensor:
    """By the convolution of which this is the transpose: it maps y to x by the same weight."""
    by_cotangent = [
        _convolution_squares(d, x[None], weight=weight, geometry=geometry) for d in delta
    ]
    return torch.cat(by_cotangent)


def _patches(x: Tensor, kernel: torch.Size, sizes: torch.Size, geometry: Geometry) -> Tensor:
    """What a kernel sees [n, channels, *kernel, *sizes], as a view of the padded input."""
    stride, padding, dilation, _ = geometry
    padded = F.pad(x, [size for size in reversed(padding) for _ in range(2)])
    batch, channel, *steps = padded.stride()
    within = [step * d for step, d in zip(steps, dilation, strict=True)]
    between = [step * s for step, s in zip(steps, stride, strict=True)]
    shape = (*padded.shape[:2], *kernel, *sizes)
    return padded.as_strided(shape, (batch, channel, *within, *between))


def _embedding_squares(tokens: Tensor, delta: Tensor, *, padding_idx: int | None) -> Tensor:
    """A row's gradient is the sum over the positions with its token; padding's is held at zero."""
    tokens = tokens.reshape(len(tokens), -1)
    same = tokens[:, :, None] == tokens[:, None, :]
    if padding_idx is not None:
        same &= (tokens != padding_idx)[:, None, :]
    at_positions = delta.reshape(*delta.shape[:2], -1, delta.shape[-1]).mT
    return _gram_squares(same.to(delta.dtype), at_positions)


_MODULES: dict[type[nn.Module], tuple[Any, tuple[str, ...]]] = {
    nn.Linear: (F.linear, ("weight", "bias")),
    nn.LayerNorm: (F.layer_norm, ("normalized_shape", "weight", "bias", "eps")),
    nn.GroupNorm: (F.group_norm, ("num_groups", "weight", "bias", "eps")),
    nn.RMSNorm: (F.rms_norm, ("normalized_shape", "weight", "eps")),
    nn.PReLU: (F.prelu, ("weight",)),
    nn.Embedding: (
        F.embedding,
        ("weight", "padding_idx", "max_norm", "scale_grad_by_freq", "sparse"),
    ),
    **dict.fromkeys(
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
        (F.batch_norm, ("running_mean", "running_var", "weight", "bias", "training", "eps")),
    ),
    **dict.fromkeys(
        (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        (F.instance_norm, ("running_mean", "running_var", "weight", "bias", "eps")),
    ),
    **{
        getattr(nn, f"ConvTranspose{dims}d"): (
            getattr(F, f"conv_transpose{dims}d"),
            ("weight", "bias", "stride", "padding", "groups", "dilation"),
        )
        for dims in (1, 2, 3)
    },
}
"""What modules run, and which of their attributes are arguments of the same name."""

_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)

_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    F.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    F.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
    F.batch_norm: (
        "input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps",
    ),
    F.instance_norm: (
        "input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum",
        "eps",
    ),
    F.rms_norm: ("input", "normalized_shape", "weight", "eps"),
    F.prelu: ("input", "weight"),
    F.embedding: (
        "input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse",
    ),
    **dict.fromkeys(
        _TRANSPOSED,
        (
            "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation",
        ),
    ),
}  # fmt: skip

_SUMS = (operator.add, operator.sub, torch.add, torch.sub)
_PRODUCTS = (operator.mul, torch.mul)
_MATRIX_PRODUCTS = (operator.matmul, torch.matmul)


def operation(
    node: fx.Node, traced: fx.GraphModule, modules: dict[str, nn.Module]
) -> Operation | None:
    """The operation of a node if it is one of those that are linear in their parameters."""
    found = (
        _convolution(node, traced, modules)
        or _function_of_layer(node, traced, modules)
        or _elementwise(node, traced)
    )
    # One tensor as both would be read twice.
    return None if found is None or (found.weight is found.bias is not None) else found


def _convolution(
    node: fx.Node, traced: fx.GraphModule, modules: dict[str, nn.Module]
) -> Operation | None:
    found = as_convolution(node, modules)
    if found is None:
        return None
    weight, bias = (tensor_of(value, traced) for value in found[1:3])
    if weight is None:
        return None
    squares = partial(_convolution_squares, weight=weight, geometry=found[3])
    return Operation(found[0], weight, bias, squares, has_channels=True)


def _function_of_layer(
    node: fx.Node, traced: fx.GraphModule, modules: dict[str, nn.Module]
) -> Operation | None:
    """Layers but for convolutions, as modules or functions."""
    given: dict[str, Any]
    if node.op == "call_module":
        module = modules[str(node.target)]
        if type(module) not in _MODULES or is_customised(module, (type(module),)):
            return None
        function, names = _MODULES[type(module)]
        given = {name: getattr(module, name) for name in names}
        given["input"] = node.args[0] if node.args else node.kwargs["input"]
        if function is F.instance_norm:
            given["use_input_stats"] = module.training or not module.track_running_stats
    elif node.op == "call_function" and node.target in _ARGUMENTS:
        function = node.target
        given = dict(zip(_ARGUMENTS[function], node.args, strict=False)) | dict(node.kwargs)
        given |= {
            name: tensor_of(value, traced)
            for name, value in given.items()
            if name != "input" and isinstance(value, fx.Node)
        }
    else:
        return None
    if not isinstance(given.get("input"), fx.Node):
        return None
    if function not in _RULES:
        return _normalisation(function, given)
    return None if given.get("weight") is None else _RULES[function](given)


def _linear(given: dict[str, Any]) -> Operation:
    return Operation(given["input"], given["weight"], given.get("bias"), _linear_squares)


def _transposed_convolution(given: dict[str, Any]) -> Operation:
    weight = given["weight"]
    stride, padding, dilation = (
        as_tuple(given.get(name, default), weight.ndim - 2) for name, default in GEOMETRY_DEFAULTS
    )
    geometry = Geometry(stride, padding, dilation, given.get("groups", 1))
    squares = partial(_transposed_squares, weight=weight, geometry=geometry)
    return Operation(given["input"], weight, given.get("bias"), squares, has_channels=True)


def _prelu(given: dict[str, Any]) -> Operation:
    """Its slopes multiply what is negative, by channel."""
    negative = partial(torch.clamp, max=0)
    return _scaling(given["input"], given["weight"], None, negative, has_channels=True)


def _embedding(given: dict[str, Any]) -> Operation | None:
    """Rows of a table; `None` if its gradients are no derivatives, or sparse."""
    weight, padding = given["weight"], given.get("padding_idx")
    strange = given.get("scale_grad_by_freq") or given.get("sparse")
    if strange or given.get("max_norm") is not None:
        return None
    padding = None if padding is None else padding % len(weight)
    squares = partial(_embedding_squares, padding_idx=padding)
    return Operation(given["input"], weight, None, squares)


def _normalisation(function: Any, given: dict[str, Any]) -> Operation | None:
    """Batch norm by running statistics, instance, layer and group norm: w ⊙ x̂ + b."""
    is_fixed = function in (F.batch_norm, F.instance_norm)
    others = ["input", "weight", "bias", "training", "momentum"]
    if function is F.batch_norm and (given.get("training") or given.get("running_mean") is None):
        return None
    if function is F.instance_norm and given.get("use_input_stats", True):
        is_fixed = False
        others += ["running_mean", "running_var"]  # which the call would write
    fixed = {name: value for name, value in given.items() if name not in others}
    return _scaling(
        given["input"],
        given.get("weight"),
        given.get("bias"),
        partial(function, **fixed),
        has_channels=function not in (F.layer_norm, F.rms_norm),
        is_straight=is_fixed,
    )


def _scaling(
    inputs: fx.Node,
    weight: Tensor | None,
    bias: Tensor | None,
    normalized: Callable[[Tensor], Tensor],
    *,
    has_channels: bool = False,
    is_straight: bool = True,
) -> Operation:
    """The operation w ⊙ x̂ + b with x̂ a function of x."""

    def squares(x: Tensor, delta: Tensor) -> Tensor:
        assert weight is not None
        return found.broadcast_squares(weight, delta * normalized(x))

    found = Operation(inputs, weight, bias, squares, has_channels, is_straight)
    return found


_RULES: dict[Any, Callable[[dict[str, Any]], Operation | None]] = {
    F.linear: _linear,
    F.embedding: _embedding,
    F.prelu: _prelu,
    **dict.fromkeys(_TRANSPOSED, _transposed_convolution),
}
"""What has a weight, and is no normalisation."""


def _elementwise(node: fx.Node, traced: fx.GraphModule) -> Operation | None:
    """A sum x + b or a product x·w or x @ w with a parameter of the model itself."""
    known = (*_SUMS, *_PRODUCTS, *_MATRIX_PRODUCTS)
    if node.op != "call_function" or node.target not in known:
        return None
    if len(node.args) != 2 or node.kwargs:
        return None
    # A string would be taken for a tensor's name.
    tensors = [tensor_of(v, traced) if isinstance(v, fx.Node) else None for v in node.args]
    is_parameter = [isinstance(tensor, nn.Parameter) for tensor in tensors]
    if sum(is_parameter) != 1:
        return None
    place = is_parameter.index(True)
    parameter, inputs = tensors[place], node.args[1 - place]
    if not isinstance(inputs, fx.Node) or parameter is None:
        return None
    found = None
    if node.target in _SUMS:
        found = _scaling(inputs, None, parameter, torch.clone)
    elif node.target in _PRODUCTS:
        found = _scaling(inputs, parameter, None, torch.clone)
    elif node.target in _MATRIX_PRODUCTS and place == 1 and parameter.ndim == 2:
        found = Operation(inputs, parameter, None, _linear_squares)
    return found


def reads(traced: fx.GraphModule, names: dict[int, str]) -> dict[fx.Node, Operation] | str:
    """The operations that read some parameters, or why their gradients are not known so.

    Args:
        traced: The model's graph.
        names: Of the parameters, by the identity of each.

    Returns:
        By node, in the graph's order; each of the parameters is read once, or never.
    """
    modules = dict(traced.named_modules())
    found: dict[fx.Node, Operation] = {}
    seen: set[int] = set()
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            tensor = tensor_of(node, traced)
            if tensor is not None and tensor.requires_grad and not tensor.is_leaf:
                return f"{node.target} is computed from parameters outside of the graph"
            continue
        read = _parameters_of(node, traced, modules, names)
        for key in read:
            if key in seen:
                return f"{names[key]} is read more than once"
            seen.add(key)
        if not read:
            continue
        known = operation(node, traced, modules)
        if known is None or not set(read) <= {id(known.weight), id(known.bias)}:
            return f"{names[read[0]]} is read by {described(node, modules)}"
        found[node] = known
    return found


def _parameters_of(
    node: fx.Node,
    traced: fx.GraphModule,
    modules: dict[str, nn.Module],
    names: dict[int, str],
) -> list[int]:
    """Identities of the parameters that a node reads."""
    tensors = [tensor_of(parent, traced) for parent in node.all_input_nodes]
    if node.op == "call_module":
        tensors += modules[str(node.target)].parameters()
    return [id(tensor) for tensor in tensors if id(tensor) in names]


def described(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """A node in a reader's words."""
    if node.op == "call_module":
        return f"{node.target} ({type(modules[str(node.target)]).__name__})"
    if node.target is getattr:
        return str(node.args[1])
    return str(getattr(node.target, "__name__", node.target))
