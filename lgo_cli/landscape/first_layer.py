"""What of a traced graph is the same at every point: what leads to the first linear layers.

Graphs are those of torch.fx; they share the model's parameters.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lgo_cli.curvature.tracing import has_forward_hooks, tensor_of
from lgo_cli.vectors import combine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

KEPT = "kept_"
"""Arguments of a graph that start so are buffers, which it may write over."""


class FirstLinear(NamedTuple):
    """A linear layer whose input is the samples' own: its node, and weight and bias by tensor."""

    node: fx.Node
    inputs: fx.Node
    weight: Tensor
    bias: Tensor | None


class Products:
    """A first layer's outputs at θ + Σ cᵢ·dᵢ, from those at θ and along each direction.

    Points of a grid come row by row: what all coordinates but the first add is kept until one of
    them changes. The bits are the same in whichever order points come.

    Args:
        parts: xWᵀ + b, and xDᵀ + d for each direction, all [N, *, out].
        size: Samples at most that are asked for at once.
    """

    def __init__(self, parts: list[Tensor], size: int) -> None:
        self.parts = parts
        self._size = size
        self._sums = parts[0][:size].clone()
        self._others: list[float] = []
        self._row = parts[0]

    def head(self, num_samples: int) -> Products:
        """The same for the first samples alone."""
        return Products([part[:num_samples] for part in self.parts], self._size)

    def at(self, coordinates: Sequence[float], samples: slice) -> Tensor:
        """Some samples' outputs [n, *, out], in a buffer that is written anew each time."""
        origin, *along = self.parts
        others = [*coordinates[1:]]
        if others != self._others:
            out = torch.empty_like(origin) if self._row is origin else self._row
            self._row = combine(origin, [*zip(others, along[1:], strict=True)], out)
            self._others = others
        row = self._row[samples]
        first = [(x, part[samples]) for x, part in zip(coordinates[:1], along[:1], strict=True)]
        return combine(row, first, self._sums[: len(row)])


def first_linears(traced: fx.GraphModule) -> list[FirstLinear]:
    """Linear layers, as modules or functions, whose input depends on no parameter."""
    modules = dict(traced.named_modules())
    fixed = computed_from(traced, lambda node: _reads_no_parameter(node, traced, modules))
    linears = (_as_linear(node, traced, modules) for node in traced.graph.nodes)
    return [linear for linear in linears if linear is not None and linear.inputs in fixed]


def computed_from(traced: fx.GraphModule, allowed: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """Allowed nodes that are computed from such alone.

    None, if one of them is written over: an order of reading and writing that a graph of their own
    would not keep.
    """
    modules = dict(traced.named_modules())
    found: set[fx.Node] = set()
    for node in traced.graph.nodes:
        if writes_in_place(node, modules) and found & set(node.all_input_nodes):
            return set()
        if allowed(node) and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def writes_in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node changes a tensor that others may see."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    name = str(getattr(node.target, "__name__", node.target))
    named_so = name.endswith("_") and not name.endswith("__")
    in_place = named_so or node.target in _IN_PLACE or name in ("setitem", "__setitem__")
    return in_place or bool(node.kwargs.get("inplace")) or "out" in node.kwargs


_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem}


def _reads_no_parameter(
    node: fx.Node, traced: fx.GraphModule, modules: dict[str, nn.Module]
) -> bool:
    """Whether a node has no parameters of its own: samples, constants, and functions of these."""
    if node.op == "get_attr":
        return not isinstance(tensor_of(node, traced), nn.Parameter)
    if node.op == "call_module":
        module = modules[str(node.target)]
        return not (*module.parameters(), *module.buffers()) and not has_forward_hooks(module)
    return node.op != "output"


def _as_linear(
    node: fx.Node, traced: fx.GraphModule, modules: dict[str, nn.Module]
) -> FirstLinear | None:
    if node.op == "call_module":
        module = modules[str(node.target)]
        # A subclass, or a module with hooks, may do more.
        if type(module) is not nn.Linear or len(node.all_input_nodes) != 1:
            return None
        if has_forward_hooks(module):
            return None
        return FirstLinear(node, node.all_input_nodes[0], module.weight, module.bias)
    if node.op == "call_function" and node.target is F.linear:
        given = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | dict(node.kwargs)
        inputs = given.get("input")
        weight, bias = (tensor_of(given.get(name), traced) for name in ("weight", "bias"))
        if (
            isinstance(inputs, fx.Node)
            and weight is not None
            and ((bias is None) == (given.get("bias") is None))
        ):
            return FirstLinear(node, inputs, weight, bias)
    return None


def prefix_of(traced: fx.GraphModule, nodes: list[fx.Node]) -> fx.GraphModule:
    """What leads from the samples to some nodes, as a function of its own: a tuple of these."""
    needed, left = set(nodes), [*nodes]
    while left:
        before = set(left.pop().all_input_nodes) - needed
        needed |= before
        left += before
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        if node in needed or node.op == "placeholder":
            copied[node] = graph.node_copy(node, lambda node: copied[node])
    graph.output(tuple(copied[node] for node in nodes))
    return fx.GraphModule(traced, graph)


def take_out(traced: fx.GraphModule, nodes: list[fx.Node], name: str = KEPT) -> None:
    """Make the outputs of some nodes further arguments of the same function, in their order.

    The first ones: its own may have defaults, or be any number.
    """
    graph = traced.graph
    first = next(node for node in graph.nodes if node.op == "placeholder")
    for index, node in enumerate(nodes):
        with graph.inserting_before(first):
            argument = graph.placeholder(f"{name}{index}")
        node.replace_all_uses_with(argument)
        graph.erase_node(node)
    modules = dict(traced.named_modules())
    graph.eliminate_dead_code(lambda node: node.is_impure() or writes_in_place(node, modules))
    graph.lint()
    traced.recompile()
