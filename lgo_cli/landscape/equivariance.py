"""What each aten operator demands of the axes that go into it, and what comes out.

A rule takes the labels of an operator's tensors, unifies or fixes axes, and returns the labels of
the result; it must hold for every permutation that its demands leave. An operator without a rule
fixes all that goes into it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import fx

from lgo_cli.landscape.blocks import (
    INPUT,
    PLACE,
    Axis,
    fix,
    fixed_axis,
    free_axis,
    length_of,
    merge,
    reason_of,
    split,
    unify,
    unmerge,
)

Labels = tuple[Axis, ...]
Arguments = dict[str, Any]
Shape = tuple[int, ...]
Rule = Callable[[Arguments, Shape], Labels | list[Labels] | None]


class Labelled(tuple):  # type: ignore[type-arg]
    """Labels of a tensor among an operator's arguments, to be told from a tuple of numbers."""


ALIKE = Labelled()
"""Of a tensor all of whose entries are alike, such as a recurrent layer's first state: any
permutation leaves it so, and each use of it is of axes of its own."""


def _tensors(given: Arguments) -> list[Labelled]:
    found: list[Labelled] = []
    for value in given.values():
        parts = [value] if isinstance(value, Labelled) else value
        if isinstance(parts, list):
            found += [part for part in parts if isinstance(part, Labelled)]
    return found


def _first(given: Arguments) -> Labels:
    return tuple(_tensors(given)[0])


def _broadcast(*tensors: Labels) -> Labels:
    """Axes of what is combined entry by entry; one of length 1 is alike for all entries."""
    result: list[Axis] = []
    for place in range(1, max(map(len, tensors)) + 1):
        axes = [axes[-place] for axes in tensors if len(axes) >= place]
        wide = [axis for axis in axes if length_of(axis) != 1]
        for axis in wide[1:]:
            unify(wide[0], axis)
        result.insert(0, wide[0] if wide else axes[0])
    return tuple(result)


def _pointwise(given: Arguments, shape: Shape) -> Labels:
    """Entry by entry; or behind a statistic that asks for no order along its axes.

    So are layer norm's, whose weight and bias follow the axes, and v·g/‖v‖ with a norm over all
    axes but g's.
    """
    return _broadcast(*_tensors(given))


def _same(given: Arguments, shape: Shape) -> Labels:
    """Softmax and the like: equivariant along every axis, alone or as a whole."""
    return _first(given)


def _constant(given: Arguments, shape: Shape) -> Labels:
    return ALIKE


def keeps_alike(rule: Rule) -> bool:
    """Whether a rule is of operators that only move entries, or copy them."""
    return rule in (
        _same, _view, _permute, _transpose, _squeeze, _expand, _repeat, _slice, _select, _split,
        _unbind,
    )  # fmt: skip


_LOCAL = re.compile(
    r"_?(adaptive_)?(avg|max)_pool(?P<dims>\d)d(_with_indices)?|_?upsample_[a-z_]*(?P<up>\d)d(_aa)?"
    r"|(reflection|replication)_pad(?P<pad>\d)d"
)


def _local(given: Arguments, shape: Shape, *, dims: int) -> Labels:
    """Pooling, resampling and padding of the last axes, each channel for itself."""
    axes = _first(given)
    for axis in axes[-dims:]:
        fix(axis, PLACE)
    return axes[:-dims] + tuple(map(fixed_axis, shape[-dims:]))


def _view(given: Arguments, shape: Shape) -> Labels | None:
    if "size" not in given:
        return None
    axes = [axis for axis in given["self"] if length_of(axis) != 1]
    sizes = [size for size in shape if size != 1]
    found: list[Axis] = []
    while axes:
        axis, wanted = axes.pop(0), sizes.pop(0)
        inner: list[int] = [wanted]
        while length_of(axis) != wanted:
            if length_of(axis) < wanted:
                axis = merge(axis, axes.pop(0))
            else:
                inner.append(sizes.pop(0))
                wanted *= inner[-1]
        for size in inner[:-1]:
            wanted //= size
            outer, axis = unmerge(axis, size, wanted)
            found.append(outer)
        found.append(axis)
    return tuple(fixed_axis(1) if size == 1 else found.pop(0) for size in shape)


def _permute(given: Arguments, shape: Shape) -> Labels:
    axes = given["self"]
    return tuple(axes[dim] for dim in given["dims"])


def _transpose(given: Arguments, shape: Shape) -> Labels:
    axes = list(given["self"])
    if len(axes) > 1:
        i, j = given.get("dim0", 0), given.get("dim1", 1)
        axes[i], axes[j] = axes[j], axes[i]
    return tuple(axes)


def _squeeze(given: Arguments, shape: Shape) -> Labels:
    """Axes of length 1 come or go; the others stay in order."""
    wide = [axis for axis in given["self"] if length_of(axis) != 1]
    return tuple(fixed_axis(1) if size == 1 else wide.pop(0) for size in shape)


def _expand(given: Arguments, shape: Shape) -> Labels:
    axes = given["self"]
    lead = len(shape) - len(axes)
    return tuple(
        axes[dim - lead] if dim >= lead and length_of(axes[dim - lead]) == size else free_axis(size)
        for dim, size in enumerate(shape)
    )


def _repeat(given: Arguments, shape: Shape) -> Labels:
    axes = [fixed_axis(1)] * (len(shape) - len(given["self"])) + list(given["self"])
    return tuple(map(merge, map(free_axis, given["repeats"]), axes))


def _slice(given: Arguments, shape: Shape) -> Labels:
    axes, dim = list(given["self"]), given["dim"]
    start, stop, _ = slice(given["start"], given["end"]).indices(length_of(axes[dim]))
    if given["step"] == 1:
        axes[dim] = split(split(axes[dim], stop)[0], start)[1]
    else:
        fix(axes[dim], "a slice takes every second of its units, or fewer")
        axes[dim] = fixed_axis(shape[dim], reason_of(axes[dim]))
    return tuple(axes)


def _slice_scatter(given: Arguments, shape: Shape) -> Labels:
    """A copy in which a slice is another tensor."""
    _broadcast(_slice(given, tuple(map(length_of, given["src"]))), given["src"])
    return tuple(given["self"])


def _select(given: Arguments, shape: Shape) -> Labels:
    """Unit `index`, which keeps its place; so do those before it and behind it, as two parts."""
    axes, dim, index = list(given["self"]), given["dim"], given["index"]
    axis = axes.pop(dim)
    split(split(axis, index % length_of(axis))[1], 1)
    return tuple(axes)


def _split(given: Arguments, shape: Shape) -> list[Labels]:
    axes, dim = list(given["self"]), given["dim"]
    rest = axes[dim]
    pieces: list[Labels] = []
    sizes = given["split_sizes"] if "split_sizes" in given else given["split_size"]
    while rest:
        size = sizes if isinstance(sizes, int) else sizes[len(pieces)]
        piece, rest = split(rest, min(size, length_of(rest)))
        axes[dim] = piece
        pieces.append(tuple(axes))
    return pieces


def _unbind(given: Arguments, shape: Shape) -> list[Labels]:
    size = length_of(given["self"][given["dim"]])
    return [_select(given | {"index": index}, shape) for index in range(size)]


def _cat(given: Arguments, shape: Shape) -> Labels:
    # Tensors of no entries may be joined to any.
    tensors = [list(axes) for axes in given["tensors"] if len(axes) == len(shape)]
    dim = given["dim"]
    joined = tuple(segment for axes in tensors for segment in axes[dim])
    for axes in tensors:
        axes[dim] = fixed_axis(1)
    result = list(_broadcast(*map(tuple, tensors)))
    result[dim] = joined
    return tuple(result)


def _stack(given: Arguments, shape: Shape) -> Labels:
    axes = list(_broadcast(*given["tensors"]))
    axes.insert(given["dim"] % len(shape), fixed_axis(len(given["tensors"])))
    return tuple(axes)


def _pad(given: Arguments, shape: Shape) -> Labels:
    """A constant before and after: units of their own, all alike."""
    axes, amounts = list(given["self"]), list(given["pad"])
    for place in range(len(amounts) // 2):
        before, after = amounts[2 * place : 2 * place + 2]
        axis = axes[-1 - place]
        axis = split(split(axis, length_of(axis) + min(after, 0))[0], max(-before, 0))[1]
        front, back = (free_axis(n) if n > 0 else () for n in (before, after))
        axes[-1 - place] = (*front, *axis, *back)
    return tuple(axes)


def _reduce(given: Arguments, shape: Shape) -> Labels:
    """Sums, means and the like over axes do not ask for an order along them."""
    axes = given["self"]
    dims = given.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    gone = {dim % len(axes) for dim in dims} if dims else set(range(len(axes)))
    if given.get("keepdim"):
        return tuple(fixed_axis(1) if dim in gone else axis for dim, axis in enumerate(axes))
    return tuple(axis for dim, axis in enumerate(axes) if dim not in gone)


def _matmul(given: Arguments, shape: Shape) -> Labels:
    *added, a, b = _tensors(given)
    unify(a[-1], b[-2] if len(b) > 1 else b[0])
    product = (*_broadcast(a[:-2], b[:-2]), *a[-2:-1], *b[-1:][: len(b) - 1])
    return _broadcast(product, *added) if added else product


def _convolution(given: Arguments, shape: Shape) -> Labels:
    x, weight, bias, groups = (given[key] for key in ("input", "weight", "bias", "groups"))
    for axis in (*x[2:], *weight[2:]):
        fix(axis, PLACE)
    outputs, inputs = (weight[1], weight[0]) if given["transposed"] else weight[:2]
    channels = x[1]
    if groups == 1:
        unify(channels, inputs)
    elif given["transposed"]:
        for axis in (channels, outputs, inputs):
            fix(axis, "a grouped transposed convolution")
        outputs = fixed_axis(shape[1], "a grouped transposed convolution")
    elif length_of(inputs) == 1:
        # Depthwise: each input channel is a unit of shape[1] / groups output channels.
        times = shape[1] // groups
        unify(outputs, merge(channels, fixed_axis(times)))
    else:
        # The same axis of the weight counts the inputs of every group, each with its own order.
        fix(channels, "a grouped convolution")
        fix(inputs, "a grouped convolution")
        unify(outputs, free_axis(shape[1] // groups) + _free_axes(shape[1] // groups, groups - 1))
    if bias is not None:
        unify(bias[0], outputs)
    return (x[0], outputs, *map(fixed_axis, shape[2:]))


def _free_axes(size: int, count: int) -> Axis:
    return tuple(free_axis(size)[0] for _ in range(count))


def _per_channel(given: Arguments, shape: Shape) -> Labels:
    """Batch norm: each channel by statistics of its own, over axes whose order is no matter."""
    x, *vectors = _tensors(given)
    for axes in vectors:
        unify(axes[0], x[1])
    return tuple(x)


def _group_norm(given: Arguments, shape: Shape) -> Labels:
    """Channels change places within a group of theirs; with a channel a group, freely."""
    groups, channels = given["group"], given["C"]
    if groups not in (1, channels):
        unify(_first(given)[1], _free_axes(channels // groups, groups))
    return _per_channel(given, shape)


def _index(given: Arguments, shape: Shape, *, reason: str) -> Labels:
    """Entries at places of some axes, instead of which, or ahead if they are apart, go theirs."""
    axes, indices = given["self"], given["indices"]
    taken = [dim for dim, index in enumerate(indices) if index is not None]
    for dim in taken:
        fix(axes[dim], reason)
        fix(sum(indices[dim], ()), PLACE)
    rest = tuple(axis for dim, axis in enumerate(axes) if dim not in taken)
    first = taken[0] if taken[-1] - taken[0] < len(taken) else 0
    places = shape[first : first + len(shape) - len(rest)]
    return (*rest[:first], *map(fixed_axis, places), *rest[first:])


def _roll(given: Arguments, shape: Shape) -> Labels:
    axes = _first(given)
    for dim in given["dims"] or range(len(axes)):
        fix(axes[dim], "its units are rolled")
    return axes


def _complex(given: Arguments, shape: Shape) -> Labels:
    """A last axis of real and imaginary parts goes, or comes."""
    axes = _first(given)
    fix(axes[-1] if len(axes) > len(shape) else (), PLACE)
    return (*axes, fixed_axis(2))[: len(shape)]


def _embedding(given: Arguments, shape: Shape) -> Labels:
    rows, columns = given["weight"]
    fix(rows, INPUT)
    return (*given["indices"], columns)


_RULES: dict[str, Rule] = {
    name: rule
    for rule, names in (
        (
            _pointwise,
            "copy _prelu_kernel hardswish log_sigmoid_forward masked_fill native_layer_norm "
            "_fused_rms_norm _weight_norm_interface",
        ),
        (
            _same,
            "alias detach lift_fresh lift_fresh_copy contiguous _to_copy "
            "_softmax _log_softmax _safe_softmax",
        ),
        (
            _constant,
            "zero fill zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full",
        ),
        (_view, "view _unsafe_view reshape _reshape_copy"),
        (_permute, "permute"),
        (_transpose, "t t_ transpose transpose_"),
        (_squeeze, "squeeze squeeze_ unsqueeze unsqueeze_"),
        (_expand, "expand"),
        (_repeat, "repeat"),
        (_slice, "slice"),
        (_slice_scatter, "slice_scatter"),
        (_select, "select"),
        (_split, "split split_with_sizes unsafe_split unsafe_split_with_sizes"),
        (_unbind, "unbind"),
        (_cat, "cat"),
        (_stack, "stack"),
        (_pad, "constant_pad_nd"),
        (
            _reduce,
            "mean sum prod amax amin var std var_mean std_mean logsumexp linalg_vector_norm norm",
        ),
        (_matmul, "mm bmm mv dot addmm addmv baddbmm"),
        (_convolution, "convolution"),
        (
            _per_channel,
            "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit "
            "_native_batch_norm_legit_no_training",
        ),
        (_group_norm, "native_group_norm"),
        (_embedding, "embedding"),
        (_roll, "roll"),
        (_complex, "view_as_complex view_as_real"),
    )
    for name in names.split()
}


def rule_of(node: fx.Node, name: str) -> Rule | None:
    """The rule of a node's operator, or `None`."""
    overload: Any = node.target
    rule = _RULES.get(name)
    if rule is None and torch.Tag.pointwise in overload.tags:
        rule = _pointwise
    elif rule is None and (match := _LOCAL.fullmatch(name)):
        dims = next(filter(None, match.group("dims", "up", "pad")))
        rule = partial(_local, dims=int(dims))
    elif name == "index" and {torch.bool, torch.uint8}.isdisjoint(
        source.meta["val"].dtype for source in node.all_input_nodes
    ):
        # Of a parameter, as a table of relative positions is, they are no hidden units.
        table = node.args[0].op == "placeholder"  # type: ignore[union-attr]
        rule = partial(_index, reason=INPUT if table else "its units are picked by an index")
    elif name in ("as_strided", "as_strided_") and _is_the_same_view(node):
        rule = _same
    return rule


def _is_the_same_view(node: fx.Node) -> bool:
    """Whether strides are given anew only along axes of length 1, as pooling to 1×1 does."""
    source, shape, strides = node.args[:3]
    value = source.meta["val"]  # type: ignore[union-attr]
    wide = [dim for dim, size in enumerate(value.shape) if size != 1]
    return (
        not node.kwargs
        and len(node.args) == 3
        and list(shape) == list(value.shape)  # type: ignore[arg-type]
        and all(strides[dim] == value.stride(dim) for dim in wide)  # type: ignore[index]
    )
