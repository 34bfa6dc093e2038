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
from lgo_cli.landscape.first_layer import KEPT, writes_in_place

SLOPE = 1e-30
"""oneDNN's ReLU makes 0 of NaN, which would hide an overflow behind a finite loss. Its leaky ReLU
keeps what is not finite, and this slope is lost in float32 wherever a unit is active."""

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
            node.target = torch.relu_ if is_relu else _add_into
            node.args, node.kwargs = tuple(node.all_input_nodes), {}
            node.meta[_OURS] = True
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
            place = node
            with traced.graph.inserting_before(place):
                new = traced.graph.call_function(_convolution_relu, arguments)
        elif _is_sum(user) and not _changes_on_the_way(node, user, order, modules):
            place = user
            (other,) = set(user.all_input_nodes) - {node}
            # All that read the other summand are convolutions that came before.
            unread = _is_fresh(other, modules) and all(
                reader.target in _CONVOLUTIONS and order[reader] < order[user]
                for reader in other.users
                if reader is not user
            )
            unread &= node not in other.users  # which would read what it writes
            with traced.graph.inserting_before(place):
                new = traced.graph.call_function(_convolution_sum, (*arguments, other, unread))
        else:
            continue
        order[new] = order[place]
        user.replace_all_uses_with(new)
        traced.graph.erase_node(user)
        traced.graph.erase_node(node)
        num_fused += 1
    traced.graph.lint()
    traced.recompile()
    return num_fused


def _changes_on_the_way(
    node: fx.Node, user: fx.Node, order: dict[fx.Node, int], modules: dict[str, nn.Module]
) -> bool:
    """Whether a convolution's input may be written over between its own place and its user's."""
    for between in node.graph.nodes:
        if not order[node] < order[between] < order[user]:
            continue
        if between.target is _convolution_sum and between.args[5]:
            written: object = between.args[4]
        elif between.meta.get(_OURS):
            written = between.args[0]
        elif writes_in_place(between, modules):  # perhaps through a view
            return True
        else:
            continue
        if written is node.args[0]:
            return True
    return False


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
    axes = zip(x.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True)
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in axes]
    if other.shape != (len(x), len(weight), *size):  # one of them is spread over some axis
        return convolution(x, weight, bias, geometry, False) + other
    rest: list[Any] = [weight, bias, padding, stride, dilation, groups, "add", 1.0, None, [], ""]
    result: Tensor
    if unread:
        result = torch.ops.mkldnn._convolution_pointwise_.binary(other, x, *rest)
    else:
        result = torch.ops.mkldnn._convolution_pointwise.binary(x, other, *rest)
    return result


def _add_into(written: Tensor, other: Tensor) -> Tensor:
    """Their sum, in the place of the first if it has room for it."""
    shape = torch.broadcast_shapes(written.shape, other.shape)  # type: ignore[no-untyped-call]
    if shape == written.shape and torch.result_type(written, other) == written.dtype:
        return written.add_(other)
    return written + other


_OURS = "lgo_in_place"
"""Marks nodes that `reuse_memory` made write in place."""

_CONVOLUTIONS = {convolution, _convolution_relu, _convolution_sum}

_FRESH = {F.linear, operator.add, torch.add, *_CONVOLUTIONS}
"""Functions that put out a tensor of their own."""


def _is_sum(node: fx.Node) -> bool:
    """Whether a node adds two different tensors."""
    return (
        node.op == "call_function"
        and node.target in _ADD | {_add_into}
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
        module = modules[str(value.target)]
        return type(module) is nn.Linear and not has_forward_hooks(module)
    if value.op != "call_function":
        return False
    return value.target in _FRESH or bool(value.meta.get(_OURS))
