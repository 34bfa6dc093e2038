"""Whether a network's outputs are piecewise linear in each single parameter, proved on its graph.

If every parameter enters through one operation that is linear in it, and all that its result goes
through on the way to the outputs is piecewise linear, then ∂²z/∂θᵢ² = 0 wherever the second
derivatives that autograd takes exist, and the traces of the Hessian and of the generalised
Gauss-Newton matrix are the same number (theory.md, section 31). Two parameters may multiply each
other, as those of two layers do; two values that both depend on parameters may not, since they
could share one.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from lgo_cli.curvature.reads import Operation, described, operation
from lgo_cli.curvature.tracing import is_customised

if TYPE_CHECKING:
    from collections.abc import Collection

_OF_ONE = [
    "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "hardtanh", "hardtanh_", "hardsigmoid",
    "threshold", "threshold_", "softshrink", "clamp", "clamp_", "clamp_min", "clamp_max", "clip",
    "abs", "neg", "neg_", "pos", "amax", "amin", "max_pool1d", "max_pool2d", "max_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "avg_pool1d", "avg_pool2d",
    "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "mean",
    "sum", "div", "div_", "truediv", "itruediv", "imul", "mul_", "masked_fill", "pad",
    "interpolate", "pixel_shuffle", "flatten", "unflatten", "reshape", "view", "contiguous",
    "clone", "permute", "transpose", "t", "swapaxes", "movedim", "squeeze", "unsqueeze", "expand",
    "repeat", "getitem", "chunk", "split", "narrow", "select", "flip", "roll", "unfold", "fold",
    "to", "float", "double",
]  # fmt: skip
"""Piecewise linear in their first argument, the others fixed."""

_OF_MANY = [
    "add", "add_", "iadd", "sub", "sub_", "isub", "cat", "concat", "concatenate", "stack", "hstack",
    "vstack", "maximum", "minimum",
]  # fmt: skip
"""Piecewise linear in all positional arguments together."""

_PRODUCTS = ["mul", "matmul", "bmm", "einsum"]
"""Linear in each of their arguments, the others fixed."""

_TRANSPOSES = ["T", "mT", "H", "mH"]
"""Attributes that are a tensor's own values in another order."""

_SHAPES = [
    "size", "dim", "numel", "shape", "ndim", "device", "dtype", "new_zeros", "new_ones",
    "zeros_like", "ones_like",
]  # fmt: skip
"""What of a tensor no parameter moves."""

_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, nn.Hardsigmoid, nn.Threshold, nn.Softshrink,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.Upsample,
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ReflectionPad2d,
)  # fmt: skip
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def _functions(names: Collection[str]) -> set[Any]:
    """The functions of these names: by identity, since a user's own may bear one of them too."""
    spaces = (torch, F, operator)
    return {getattr(space, name) for space in spaces for name in names if hasattr(space, name)}


_FUNCTIONS_OF_ONE = _functions(_OF_ONE)
_FUNCTIONS_OF_MANY = _functions(_OF_MANY)
_PRODUCT_FUNCTIONS = _functions(_PRODUCTS)
_SHAPE_FUNCTIONS = _functions(_SHAPES) | {len}


def what_bends(traced: fx.GraphModule, reads: dict[fx.Node, Operation]) -> str | None:
    """What is not piecewise linear between the parameters and the outputs; `None` if all is.

    Args:
        traced: The model's graph, in eval mode.
        reads: The operations that read the parameters, each of which is read at most once.
    """
    modules = dict(traced.named_modules())
    moved: set[fx.Node] = set()
    for node in traced.graph.nodes:
        parents = [parent for parent in _arguments(node) if parent in moved]
        if node in reads:
            fits = not parents or (reads[node].is_straight and parents == [reads[node].inputs])
        elif not parents or _asks_the_shape(node):
            continue
        else:
            fits = node.op == "output" or _keeps_linearity(node, parents, traced, modules)
        if not fits:
            return f"{described(node, modules)} is not known to be piecewise linear"
        moved.add(node)
    return None


def _arguments(node: fx.Node) -> list[fx.Node]:
    """The nodes among a node's arguments, each as often as it is there."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return found


def _asks_the_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _SHAPES
    if node.target is getattr:
        return node.args[1] in _SHAPES
    return node.op == "call_function" and node.target in _SHAPE_FUNCTIONS


def _keeps_linearity(
    node: fx.Node, parents: list[fx.Node], traced: fx.GraphModule, modules: dict[str, nn.Module]
) -> bool:
    """Whether a node is piecewise linear in all of the values that parameters move."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        if type(module) in (*_MODULES, *_DROPOUTS):
            return not is_customised(module, (type(module),)) and not module.training
    first = node.args[0] if node.args else node.kwargs.get("input")
    alone = parents == [first]
    known = operation(node, traced, modules)
    if known is not None:  # of frozen weights
        return known.is_straight and parents == [known.inputs]
    is_method = node.op == "call_method"
    is_transpose = node.target is getattr and node.args[1] in _TRANSPOSES
    if is_transpose or node.target in (_OF_ONE if is_method else _FUNCTIONS_OF_ONE):
        return alone
    if node.target in (_OF_MANY if is_method else _FUNCTIONS_OF_MANY):
        # A number such as `alpha` multiplies; what is changed in place must count as moved before.
        # Arguments by keyword are not read, and so prove nothing.
        positional = first if isinstance(first, tuple | list) else node.args
        in_place = described(node, modules) in ("add_", "sub_", "iadd", "isub")
        given = all(parent in positional for parent in parents)
        return given and (first in parents or not in_place)
    if node.target in (_PRODUCTS if is_method else _PRODUCT_FUNCTIONS):
        return len(parents) == 1
    return node.target is F.dropout and alone and node.kwargs.get("training") is False
