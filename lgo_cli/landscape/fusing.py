"""A traced graph without gradients: as few tensors written as may be.

A new tensor of a few megabytes costs as much as the ReLU or the sum that fills it. Graphs are those
of torch.fx, with their convolutions rewritten (`curvature.folding`).
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lgo_cli.curvature.folding import Geometry, convolution
from lgo_cli.curvature.tracing import has_forward_hooks
from lgo_cli.landscape.first_layer import KEPT

SLOPE = 1e-30
"""oneDNN's ReLU makes 0 of NaN, which would hide an overflow behind a finite loss. Its leaky ReLU
keeps what is not finite, and this slope is lost in float32 wherever a unit is active."""

_FRESH = {convolution, F.linear, operator.add, operator.iadd, torch.add}
"""Functions that put out a tensor of their own."""

_RELU = {F.relu, torch.relu}
_ADD = {operator.add, operator.iadd, torch.add}


def reuse_memory(traced: fx.GraphModule) -> None:
    """Let ReLU and addition write over what they read, where nothing else reads it."""
    modules = dict(traced.named_modules())
    for node in traced.graph.nodes:
        is_relu = node.op == "call_function" and node.target in _RELU
        if node.op == "call_module":
            module = modules[str(node.target)]
            is_relu = type(module) is nn.ReLU and not has_forward_hooks(module)
        is_sum = _is_sum(node)
        if not (is_relu or is_sum):
            continue
        written = node.all_input_nodes[0]
        if len(written.users) == 1 and _is_fresh(written, modules):
            node.op = "call_function"
            node.target = torch.relu_ if is_relu else operator.iadd
            node.args, node.kwargs = tuple(node.all_input_nodes), {}
    traced.recompile()


def fuse_convolutions(traced: fx.GraphModule) -> int:
    """Let convolutions put out their ReLU, or add to what they are to be added to.

    For float32 on a CPU, two-dimensional, where `can_fuse` says so, and after `reuse_memory`.

    Returns:
        How many do.
    """
    modules = dict(traced.named_modules())
    order = {node: index for index, node in enumerate(traced.graph.nodes)}
    num_fused = 0
    for node in list(traced.graph.nodes):
        if node.target is not convolution or len(node.users) != 1:
            continue
        (user,) = node.users
        arguments: tuple[Any, ...] = node.args[:4]
        if len(Geometry(*arguments[3]).stride) != 2:
            continue
        if user.target is torch.relu_:
            with traced.graph.inserting_before(user):
                new = traced.graph.call_function(_convolution_relu, arguments)
        elif _is_sum(user):
            (other,) = set(user.all_input_nodes) - {node}
            # All that read the other summand are convolutions that came before.
            unread = _is_fresh(other, modules) and all(
                reader.target in _CONVOLUTIONS and order[reader] < order[user]
                for reader in other.users
                if reader is not user
            )
            unread &= node not in other.users  # which would read what it writes
            with traced.graph.inserting_before(user):
                new = traced.graph.call_function(_convolution_sum, (*arguments, other, unread))
        else:
            continue
        order[new] = order[user]
        user.replace_all_uses_with(new)
        traced.graph.erase_node(user)
        traced.graph.erase_node(node)
        num_fused += 1
    traced.graph.lint()
    traced.recompile()
    return num_fused


@functools.cache
def can_fuse() -> bool:
    """Whether this PyTorch has the two operators, which it does not promise to keep."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    x, weight = torch.ones(1, 1, 2, 2), torch.full((1, 1, 1, 1), 2.0)
    geometry = Geometry((1, 1), (0, 0), (1, 1), 1)
    try:
        positive = _convolution_relu(x, weight, None, geometry)
        added = _convolution_sum(x, weight, None, geometry, x.clone(), True)
        kept = _convolution_relu(x * torch.nan, weight, None, geometry)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool((positive == 2).all() and (added == 3).all() and kept.isnan().all())


def _convolution_relu(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    stride, padding, dilation, groups = geometry
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, padding, stride, dilation, groups, "leaky_relu", [SLOPE], ""
    )
    return result


def _convolution_sum(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, other: Tensor, unread: bool
) -> Tensor:
    """The convolution plus another tensor, written over that if nothing else will read it."""
    stride, padding, dilation, groups = geometry
    rest: tuple[Any, ...] = (
        weight,
        bias,
        padding,
        stride,
        dilation,
        groups,
        "add",
        1.0,
        None,
        [],
        "",
    )
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(
            x.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True
        )
    ]
    if other.shape != (len(x), len(weight), *size):  # it is spread over some axis
        return convolution(x, weight, bias, geometry, False) + other
    result: Tensor
    if unread:
        result = torch.ops.mkldnn._convolution_pointwise_.binary(other, x, *rest)
    else:
        result = torch.ops.mkldnn._convolution_pointwise.binary(x, other, *rest)
    return result


_CONVOLUTIONS = {convolution, _convolution_relu, _convolution_sum}


def _is_sum(node: fx.Node) -> bool:
    """Whether a node adds two different tensors."""
    return (
        node.op == "call_function"
        and node.target in _ADD
        and len(node.args) == 2
        and not node.kwargs
        and all(isinstance(value, fx.Node) for value in node.args)
        and node.args[0] is not node.args[1]
    )


def _is_fresh(value: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node's output is a tensor of its own, not a view of another's."""
    if value.op == "placeholder":
        return str(value.target).startswith(KEPT)
    if value.op == "call_module":
        return type(modules[str(value.target)]) is nn.Linear
    if value.op == "call_function" and value.target is torch.relu_:
        (written,) = value.all_input_nodes
        return len(written.users) == 1 and _is_fresh(written, modules)
    return value.op == "call_function" and value.target in _FRESH | _CONVOLUTIONS
