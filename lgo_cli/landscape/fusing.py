"""A traced graph without gradients: as few tensors written as may be.

A new tensor of a few megabytes costs as much as the ReLU or the sum that fills it. Graphs are those
of torch.fx, with their convolutions rewritten (`curvature.folding`).
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lgo_cli.curvature.convolutions import (
    Geometry,
    convolution,
    convolution_relu,
    convolution_sum,
)
from lgo_cli.curvature.tracing import has_forward_hooks
from lgo_cli.landscape.first_layer import KEPT, writes_in_place

SIZE = "lgo_input_size"
"""Where a convolution's node keeps the size [C, H, W] of its inputs."""

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

    For float32 on a CPU, two-dimensional, of noted size, where `can_fuse` says so, and after
    `reuse_memory`.

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
                new = traced.graph.call_function(convolution_relu, arguments)
        elif _is_sum(user) and not _changes_on_the_way(node, user, order, modules):
            place = user
            (other,) = set(user.all_input_nodes) - {node}
            # All that read the other summand are convolutions that came before.
            unread = _is_fresh(other, modules) and all(
                reader.target in CONVOLUTIONS and order[reader] < order[user]
                for reader in other.users
                if reader is not user
            )
            unread &= node not in other.users  # which would read what it writes
            with traced.graph.inserting_before(place):
                new = traced.graph.call_function(convolution_sum, (*arguments, other, unread))
        else:
            continue
        new.meta[SIZE] = node.meta[SIZE]
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
        if between.target is convolution_sum and between.args[5]:
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


def _add_into(written: Tensor, other: Tensor) -> Tensor:
    """Their sum, in the place of the first if it has room for it."""
    shape = torch.broadcast_shapes(written.shape, other.shape)  # type: ignore[no-untyped-call]
    if shape == written.shape and torch.result_type(written, other) == written.dtype:
        return written.add_(other)
    return written + other


_OURS = "lgo_in_place"
"""Marks nodes that `reuse_memory` made write in place."""

CONVOLUTIONS = {convolution, convolution_relu, convolution_sum}
"""Functions of inputs, weight, bias and geometry."""

_FRESH = {F.linear, operator.add, torch.add, *CONVOLUTIONS}
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
