"""Axes of tensors as rows of units, and what it means that two axes are permuted together.

An axis is a sequence of segments. A segment is a block of units, and each of them is an entry, as
the channels of a convolution are, or an axis itself, which is permuted alike in all of them: H·W
entries that keep their places in the same channels after flattening, channels in heads of
attention. Units of one block are permuted among themselves, wherever the block appears. Blocks are
refined while more is learnt: two become one, one is cut in two or turns out to be rows of columns,
or they are fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

INPUT, OUTPUT, PLACE = "an input", "an output", "a position"
NATURAL = frozenset({INPUT, OUTPUT, PLACE})
"""Why an axis is fixed that nobody would take for hidden units."""

_MISALIGNED = "its units do not line up with another axis's"


@dataclass(eq=False)
class Block:
    """Units that are permuted among themselves.

    Attributes:
        size: Number of units.
        fixed: Why they keep their places, if they do.
        parts: What the block turned out to be, as an axis of `size` entries.
        group: Its number among those that a network's symmetries permute, once they are known.
    """

    size: int
    fixed: str | None = None
    parts: tuple[Segment, ...] | None = None
    group: int | None = None


class Segment(NamedTuple):
    """A block on an axis, and the axis that each of its units is, empty if it is one entry."""

    block: Block
    inner: tuple[Segment, ...] = ()

    @property
    def unit(self) -> int:
        """Entries of a unit."""
        return length_of(self.inner) or 1

    @property
    def length(self) -> int:
        """Entries."""
        return self.block.size * self.unit


Axis = tuple[Segment, ...]


def fixed_axis(length: int, reason: str = PLACE) -> Axis:
    """An axis whose entries keep their places."""
    return (Segment(Block(length, reason)),)


def free_axis(length: int) -> Axis:
    """An axis along which any permutation is allowed, since all its entries are alike, say."""
    return (Segment(Block(length)),)


def length_of(axis: Axis) -> int:
    """Entries of an axis."""
    return sum(segment.length for segment in axis)


def resolve(axis: Axis) -> Axis:
    """The axis in blocks that have no parts."""
    result: list[Segment] = []
    for block, inner in axis:
        units = resolve(inner) if length_of(inner) > 1 else ()
        if block.parts is not None:
            block.parts = resolve(block.parts)
            result += resolve(merge(block.parts, units)) if units else block.parts
        elif block.size == 1 and units:
            result += units
        else:
            result.append(Segment(block, units))
    return tuple(result)


def blocks_of(axis: Axis) -> Iterator[Block]:
    """The blocks of an axis, each before those within its units."""
    for block, inner in resolve(axis):
        yield block
        yield from blocks_of(inner)


def groups_of(axis: Axis) -> set[int]:
    """The groups that are permuted along an axis."""
    return {block.group for block in blocks_of(axis) if block.group is not None}


def is_fixed(axis: Axis) -> bool:
    """Whether no entry may move."""
    return all(block.fixed is not None for block in blocks_of(axis))


def reason_of(axis: Axis) -> str:
    """Why an axis is fixed: what is least natural about it."""
    reasons = [block.fixed or PLACE for block in blocks_of(axis)]
    return next((reason for reason in reasons if reason not in NATURAL), reasons[0])


def fix(axis: Axis, reason: str) -> None:
    """Let no entry of the axis move; what is fixed already keeps its reason."""
    for block in blocks_of(axis):
        block.fixed = block.fixed or reason


def unify(x: Axis, y: Axis) -> None:
    """Demand that two axes of one length are permuted alike."""
    if length_of(x) != length_of(y):
        raise AssertionError("axes of two lengths cannot be permuted alike")
    while not _unified(list(resolve(x)), list(resolve(y))):
        pass


def _unified(xs: list[Segment], ys: list[Segment]) -> bool:
    """Compare from the front; refine the first blocks that differ, which calls for a retry."""
    while xs:
        x, y = xs.pop(0), ys.pop(0)
        short, long = sorted((x, y), key=lambda segment: segment.length)
        coarse, fine = sorted((x.block, y.block), key=lambda block: block.size)
        rest = long.length - short.length
        if x == y:
            continue
        if is_fixed((long,)):
            reason = reason_of((long,))
            fix((short,), reason)
            if rest:
                (xs if long is x else ys).insert(0, Segment(Block(rest, reason)))
        elif is_fixed((short,)) and not rest:
            fix((long,), reason_of((short,)))
        elif rest or fine.size % coarse.size:
            _cut_apart(short, long)
            return False
        elif fine.size > coarse.size:
            _make_rows(fine, coarse.size)
            return False
        elif x.block is not y.block and None in (x.block.fixed, y.block.fixed):
            _bind(x.block, y.block)
            return False
        elif not _unified(list(x.inner), list(y.inner)):
            return False
    return True


def _bind(x: Block, y: Block) -> None:
    """Make one of two blocks of one size the other, of which one at least is free."""
    still, free = (x, y) if y.fixed is None else (y, x)
    free.parts = (Segment(still),)


def _make_rows(block: Block, rows: int) -> None:
    """Let whole rows of a block's units move alone, and their columns, alike in all of them."""
    columns = Block(block.size // rows, block.fixed)
    block.parts = (Segment(Block(rows, block.fixed), (Segment(columns),)),)


def _cut_apart(short: Segment, long: Segment) -> None:
    """Cut one of two segments whose units begin or end at different entries."""
    alike = next((s for s in (long, short) if s.block.fixed and not is_fixed(s.inner)), None)
    if short.length < long.length and not (alike and short.length % long.unit):
        _cut(long, short.length)
    elif alike:
        _cut(alike, alike.unit)
    else:
        for segment in (short, long):
            segment.block.fixed = _MISALIGNED


def _cut(segment: Segment, position: int) -> None:
    """Cut a block in two: units of one side no longer change places with the other's."""
    block = segment.block
    units, remainder = divmod(position, segment.unit)
    if remainder and block.fixed is None:
        block.fixed = _MISALIGNED
    else:
        sizes = (units, 1, block.size - units - 1) if remainder else (units, block.size - units)
        block.parts = tuple(Segment(Block(size, block.fixed)) for size in sizes if size)


def split(axis: Axis, position: int) -> tuple[Axis, Axis]:
    """The first `position` entries of an axis, and the others."""
    segments = resolve(axis)
    before = 0
    for index, segment in enumerate(segments):
        if position <= before:
            return segments[:index], segments[index:]
        if position < before + segment.length:
            if not is_fixed((segment,)):
                _cut(segment, position - before)
                return split(axis, position)
            reason = reason_of((segment,))
            left = fixed_axis(position - before, reason)
            right = fixed_axis(before + segment.length - position, reason)
            return segments[:index] + left, right + segments[index + 1 :]
        before += segment.length
    return segments, ()


def merge(outer: Axis, inner: Axis) -> Axis:
    """Two neighbouring axes as one, as flattening makes them."""
    return tuple(Segment(block, merge(units, inner) if units else inner) for block, units in outer)


def unmerge(axis: Axis, outer: int, inner: int) -> tuple[Axis, Axis]:
    """One axis as two of `outer` and `inner` entries, as a view makes them.

    What is left are permutations of whole rows, and of columns alike in all rows.
    """
    if outer == 1 or inner == 1:
        unit = fixed_axis(1)
        return (unit, axis) if outer == 1 else (axis, unit)
    rows: list[Segment] = []
    columns = free_axis(inner)
    while axis:
        first, *others = resolve(axis)
        if first.length <= inner:
            row, (column, axis) = fixed_axis(1), split(axis, inner)
        elif first.length % inner:
            axis = sum(split(axis, first.length // inner * inner), ())
            continue
        else:
            (row, column), axis = _unmerged(first, inner), tuple(others)
        rows += row
        unify(columns, column)
    return tuple(rows), columns


def _unmerged(segment: Segment, inner: int) -> tuple[Axis, Axis]:
    """One segment as two axes, of several rows and of `inner` entries."""
    block, units = segment
    rows = segment.length // inner
    if segment.unit % inner == 0:
        row, column = unmerge(units, segment.unit // inner, inner)
        return (Segment(block, row),), column
    if is_fixed((segment,)):
        reason = reason_of((segment,))
        return fixed_axis(rows, reason), fixed_axis(inner, reason)
    if block.size % rows == 0:
        _make_rows(block, rows)
    elif block.fixed is None:
        block.fixed = "a view splits its units"
    else:
        _cut(segment, segment.unit)
    return unmerge((segment,), rows, inner)
