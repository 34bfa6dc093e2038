"""Which hidden units of a network may change places without changing what it computes.

The network is traced into a torch.fx graph of aten operators, whatever modules, functions, hooks or
in-place operations it was written in. Every axis of every parameter begins as one block of units
that may be permuted freely. Each operator then says which axes must be permuted together, and what
is tied to inputs, outputs, kernel positions, or to an operator without a rule, is fixed. A rule
only ever takes freedom away, so that whatever is left over is a symmetry (theory.md, section 26).
"""

from __future__ import annotations

import operator
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.func import functional_call, functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from lgo_cli.buffers import buffer_tables, forget, keepers, modes_of, put_back, set_modes
from lgo_cli.curvature.tracing import ForwardError, strange_forward
from lgo_cli.errors import InputError
from lgo_cli.landscape.blocks import (
    INPUT,
    NATURAL,
    OUTPUT,
    PLACE,
    Axis,
    Block,
    blocks_of,
    fix,
    fixed_axis,
    free_axis,
    groups_of,
    is_fixed,
    length_of,
    resolve,
)
from lgo_cli.landscape.equivariance import ALIKE, Labelled, keeps_alike, rule_of
from lgo_cli.modes import uncompiled
from lgo_cli.objective import train_alone
from lgo_cli.outputs import first_outputs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

State = dict[str, Tensor]

UNREACHED = "the two traced samples' outputs do not depend on it"
"""Why a parameter is fixed that nothing reads, or only what other samples are routed to."""


@dataclass(frozen=True)
class Group:
    """Units that may be permuted among themselves.

    Attributes:
        name: The module whose outputs they are first.
        size: Number of units.
        parameters: Every parameter that has them on an axis.
    """

    name: str
    size: int
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Symmetries:
    """The permutations under which a network computes the same function.

    Attributes:
        groups: Units that may be permuted, in the order of the parameters.
        axes: For each parameter and buffer, by its first name, the blocks of each axis.
        names: For each entry of the state_dict, the first name of its tensor; tied ones share it.
        output_parameters: Those with an axis that is an axis of the outputs.
        not_permuted: Parameters with a hidden axis that had to be fixed, and why.
    """

    groups: tuple[Group, ...]
    axes: Mapping[str, tuple[Axis, ...]]
    names: Mapping[str, str]
    output_parameters: frozenset[str]
    not_permuted: Mapping[str, str]

    def permute(
        self, name: str, tensor: Tensor, order: list[Tensor], held: tuple[int, int] = (-1, -1)
    ) -> Tensor:
        """Permute a parameter or buffer along all of its axes.

        Args:
            name: Its first name.
            tensor: Its values.
            order: For each group, which old unit [size] each place is given.
            held: An axis, and a group that is left alone there.
        """
        for dim, axis in enumerate(self.axes[name]):
            here = list(order)
            if dim == held[0]:
                here[held[1]] = torch.arange(self.groups[held[1]].size)
            if groups_of(axis) - ({held[1]} if dim == held[0] else set()):
                tensor = tensor.index_select(dim, _places(axis, here).to(tensor.device))
        return tensor

    def permute_state(self, state: Mapping[str, Tensor], order: list[Tensor]) -> State:
        """A state_dict with its units permuted; new tensors."""
        return {
            key: self.permute(self.names[key], value, order).clone() if key in self.names else value
            for key, value in state.items()
        }


def _places(axis: Axis, order: list[Tensor]) -> Tensor:
    """Which old entry [length] each place on an axis is given."""
    index, start = [], 0
    for segment in axis:
        group, size = segment.block.group, segment.block.size
        units = torch.arange(size) if group is None else order[group]
        entries = _places(segment.inner, order) if segment.inner else torch.zeros(1).long()
        index.append((start + units[:, None] * segment.unit + entries).flatten())
        start += segment.length
    return torch.cat(index)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients and the random generators held, for a while."""
    modes = modes_of(model)
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
        model.eval()
        try:
            yield
        finally:
            forget(model)
            set_modes(modes)


def first_names(model: nn.Module) -> dict[str, str]:
    """For each tensor of the state_dict, the first name of the parameter or buffer it is."""
    named = [*model.named_parameters(), *model.named_buffers()]
    first = {id(tensor): name for name, tensor in named}
    entries = model.state_dict(keep_vars=True).items()
    return {key: first[id(value)] for key, value in entries if id(value) in first}


def tensors_of(model: nn.Module, state: Mapping[str, Tensor]) -> State:
    """Parameters and buffers by their first names, a state_dict's values where it has them."""
    named = [*model.named_parameters(), *model.named_buffers()]
    values = {name: tensor.detach() for name, tensor in named}
    return values | {
        first: state[key].to(values[first]) for key, first in first_names(model).items()
    }


def run(model: nn.Module, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """The model's outputs with other parameters and buffers, given by their first names."""
    named = [*model.named_parameters(), *model.named_buffers()]
    first = {id(tensor): name for name, tensor in named}
    # One entry for each place that holds a tensor. `functional_call` would tie names by itself,
    # but leaves a module that has two names with the tensors it was lent.
    places = {
        f"{prefix}.{attribute}".removeprefix("."): tensors[first[id(value)]]
        for prefix, module in model.named_modules()
        for attribute, value in (
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False, remove_duplicate=False),
        )
    }
    forget(model)  # what it made of its own
    outputs: Tensor = functional_call(model, places, (inputs,), tie_weights=False)
    return outputs


def run_as_itself(model: nn.Module, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """The same by the model itself, which makes of them what it keeps, or merges, in eval mode."""
    with evaluating(model):
        model.train()
        tables = buffer_tables(model)
        own = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
        try:
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                tensor.data = tensors[name].clone()
            model.eval()
            outputs: Tensor = model(inputs)
            return outputs
        finally:
            model.train()
            for tensor, data in own:
                tensor.data = data
            put_back(tables)


def find_symmetries(model: nn.Module, inputs: Tensor, still: Collection[str] = ()) -> Symmetries:
    """Trace a network and find which of its units may be permuted.

    Frozen parameters are no part of a path and stay as they are, and so do the units they touch.

    Args:
        model: Maps inputs [n, *input_shape] to outputs; left as it was.
        inputs: A few samples, on the model's device.
        still: Buffers that stay as they are too, but for statistics that batch norm alone reads.

    Raises:
        InputError: if the network cannot be traced.
    """
    tensors = tensors_of(model, model.state_dict())
    graph = _trace(model, tensors, inputs).graph
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    # Dictionaries flatten in the order of their insertion, the inputs come last.
    placeholders = dict(zip(tensors, nodes[:-1], strict=True))
    axes: dict[str, tuple[Axis, ...]] = {
        name: tuple(free_axis(size) for size in tensor.shape) for name, tensor in tensors.items()
    }
    names = first_names(model)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    for name, node in placeholders.items():
        for axis in axes[name]:
            if not node.users:
                fix(axis, UNREACHED)
            elif name not in names.values():
                fix(axis, "a buffer that is not in the state_dict")
            elif name not in trainable and name in dict(model.named_parameters()):
                fix(axis, "frozen weights keep their order")
            elif name in still and any("batch_norm" not in str(u.target) for u in node.users):
                fix(axis, "a buffer that is the same in both networks")
    labels = {node: axes[name] for name, node in placeholders.items()}
    labels[nodes[-1]] = tuple(fixed_axis(size, INPUT) for size in inputs[:2].shape)
    _propagate(graph, labels)
    return _collect(axes, names, trainable)


def _trace(model: nn.Module, tensors: State, inputs: Tensor) -> fx.GraphModule:
    def call(tensors: State, inputs: Tensor) -> Tensor:
        return run(model, tensors, inputs)

    # The kernels that fuse a recurrent layer or attention have no rule; what they fuse has.
    with uncompiled(), evaluating(model), _without_mkldnn(), sdpa_kernel(SDPBackend.MATH):
        first_outputs(model, inputs[:2])
        keeping = keepers(model)  # what they made of their own, they would not make of `tensors`
        if keeping:
            train_alone(model, keeping, inputs[:2])
        try:
            with strange_forward(), _forward_alone():
                traced: fx.GraphModule = make_fx(functionalize(call))(tensors, inputs[:2])
        except ForwardError as error:
            raise InputError(
                f"the model cannot be traced, so its symmetries are unknown: {error}",
                hint="give the model as it was before torch.jit, which has the same weights"
                if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
                else "a forward whose course depends on values cannot be aligned",
            ) from error
    traced.graph.eliminate_dead_code()
    return traced


def _propagate(graph: fx.Graph, labels: dict[fx.Node, Any]) -> None:
    """Refine the blocks until every operator of a graph is equivariant under what is left.

    Args:
        graph: Traced by make_fx: aten operators, with `meta["val"]`.
        labels: Axes of each placeholder; the others are put in.
    """
    for node in graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            for axis in _axes_in(node.args, labels):
                fix(axis, OUTPUT)
        elif node.op == "get_attr":
            value = getattr(graph.owning_module, node.target)
            labels[node] = tuple(fixed_axis(size) for size in value.shape)
        elif node.target is operator.getitem:
            source = labels[node.args[0]]
            labels[node] = source if source is ALIKE else source[node.args[1]]
        else:
            labels[node] = _apply(node, labels)


def _apply(node: fx.Node, labels: dict[fx.Node, Any]) -> Any:
    target: Any = node.target
    name = target._schema.name.removeprefix("aten::")
    values = node.meta["val"]
    rule = rule_of(node, name)
    axes = list(_axes_in((node.args, node.kwargs), labels))
    if rule is not None and keeps_alike(rule) and labels[node.all_input_nodes[0]] is ALIKE:
        return ALIKE
    if rule is not None and not any(length_of(axis) == 0 for axis in axes):
        given = {a.name: a.default_value for a in target._schema.arguments}
        given |= dict(zip(given, node.args, strict=False)) | node.kwargs
        given = {key: _labelled(value, labels) for key, value in given.items()}
        shape = tuple(values.shape if isinstance(values, Tensor) else values[0].shape)
        found = rule(given, shape)
        if isinstance(found, list) or (isinstance(values, Tensor) and found is not None):
            return found
        if found is not None:
            # A rule is about the first result; others that have its shape go along with it.
            used = {user.args[1] for user in node.users}
            return [
                found if value.shape == shape else _tied(value, axes, name) if index in used else ()
                for index, value in enumerate(values)
            ]
    return _tied(values, axes, name)


def _tied(values: Any, axes: list[Axis], name: str) -> Any:
    """Fix all axes that go into an operator, and those that come out."""
    lost = not all(map(is_fixed, axes))
    reason = f"{name} has no rule" if lost else PLACE
    for axis in axes:
        fix(axis, reason)
    if isinstance(values, Tensor):
        return tuple(fixed_axis(size, reason) for size in values.shape)
    return [_tied(value, [], name) if isinstance(value, Tensor) else () for value in values]


def _axes_in(arguments: Any, labels: dict[fx.Node, Any]) -> Iterable[Axis]:
    found: list[fx.Node] = []

    def note(node: fx.Node) -> fx.Node:
        found.append(node)
        return node

    fx.node.map_arg(arguments, note)
    return (axis for node in found for axis in labels[node])


def _labelled(value: Any, labels: dict[fx.Node, Any]) -> Any:
    def label(leaf: Any) -> Any:
        if not isinstance(leaf, fx.Node):
            return leaf
        if labels[leaf] is ALIKE:
            return Labelled(map(free_axis, leaf.meta["val"].shape))
        return Labelled(labels[leaf])

    return fx.node.map_aggregate(value, label)


@contextmanager
def _without_mkldnn() -> Iterator[None]:
    # Not `torch.backends.mkldnn.flags`, which also sets flags that a machine may warn of.
    enabled = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = enabled


@contextmanager
def _forward_alone() -> Iterator[None]:
    """Functions with derivatives of their own run as what they compute, in this thread.

    `functionalize` takes none whose forward has the context among its arguments, as most have.
    """
    plain, me = Function.__dict__["apply"], threading.get_ident()

    def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != me:
            return plain.__get__(None, cls)(*args, **kwargs)
        if cls.setup_context is not Function.setup_context:
            return cls.forward(*args, **kwargs)
        context: Any = FunctionCtx()
        context.needs_input_grad = (False,) * len(args)
        return cls.forward(context, *args, **kwargs)

    Function.apply = classmethod(apply)
    try:
        yield
    finally:
        Function.apply = plain


def _collect(
    axes: Mapping[str, tuple[Axis, ...]], names: dict[str, str], trainable: set[str]
) -> Symmetries:
    """Number the blocks that are still free, as they appear in the parameters."""
    members: dict[Block, dict[str, None]] = {}
    producers: dict[Block, str] = {}
    not_permuted: dict[str, str] = {}
    outputs = set()
    for name, parts in axes.items():
        for dim, axis in enumerate(parts):
            for block in blocks_of(axis):
                if block.fixed is None and block.size > 1 and name in trainable:
                    members.setdefault(block, {})[name] = None
                    if dim == 0:
                        producers.setdefault(block, name.rpartition(".")[0] or name)
                elif block.fixed == OUTPUT:
                    outputs.add(name)
                elif block.size > 1 and block.fixed not in {None, *NATURAL} and name in trainable:
                    not_permuted.setdefault(name, str(block.fixed))
    for number, block in enumerate(members):
        block.group = number
    return Symmetries(
        groups=tuple(
            Group(producers.get(block, next(iter(using))), block.size, tuple(using))
            for block, using in members.items()
        ),
        axes={name: tuple(map(resolve, parts)) for name, parts in axes.items()},
        names=names,
        output_parameters=frozenset(outputs),
        not_permuted=not_permuted,
    )
