"""Axes of tensors as rows of units, and what it means that two axes are permuted together.

An axis is a sequence of segments. A segment is a block of units, each of them `inner` consecutive
entries long: one for the channels of a convolution, H·W for the same channels after flattening.
Units of one block are permuted among themselves, wherever the block appears. Blocks are refined
while more is learnt: two become one, one is cut in two, its units turn out to be coarser, or they
are fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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
    """

    size: int
    fixed: str | None = None
    parts: tuple[Segment, ...] | None = None


class Segment(NamedTuple):
    """A block on an axis, `inner` entries to a unit."""

    block: Block
    inner: int = 1

    @property
    def length(self) -> int:
        """Entries."""
        return self.block.size * self.inner


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
        if block.parts is None:
            result.append(Segment(block, inner))
        else:
            block.parts = resolve(block.parts)
            result += [Segment(part, size * inner) for part, size in block.parts]
    return tuple(result)


def is_fixed(axis: Axis) -> bool:
    """Whether no entry may move."""
    return all(segment.block.fixed is not None for segment in resolve(axis))


def reason_of(axis: Axis) -> str:
    """Why an axis is fixed: what is least natural about it."""
    reasons = [segment.block.fixed or PLACE for segment in resolve(axis)]
    return next((reason for reason in reasons if reason not in NATURAL), reasons[0])


def fix(axis: Axis, reason: str) -> None:
    """Let no entry of the axis move; what is fixed already keeps its reason."""
    for block, _ in resolve(axis):
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
        rest = long.length - short.length
        if x == y:
            continue
        if short.block.fixed is None and long.block.fixed is None:
            if rest:
                _cut(long, short.length)
            else:
                _bind(x, y)
            return False
        if long.block.fixed is None:
            _cut(long, short.length) if rest else fix((long,), short.block.fixed or PLACE)
            return False
        fix((short,), long.block.fixed)
        if rest:
            (xs if long is x else ys).insert(0, Segment(Block(rest, long.block.fixed)))
    return True


def _bind(x: Segment, y: Segment) -> None:
    """Make one of two different free segments of one length the other."""
    fine, coarse = sorted((x, y), key=lambda segment: segment.inner)
    ratio, remainder = divmod(coarse.inner, fine.inner)
    if remainder:
        fix((x, y), _MISALIGNED)
    else:
        fine.block.parts = (Segment(coarse.block, ratio),)


def _cut(segment: Segment, position: int) -> None:
    """Cut a free block in two: units of one side no longer change places with the other's."""
    units, remainder = divmod(position, segment.inner)
    if remainder:
        fix((segment,), _MISALIGNED)
    else:
        block = segment.block
        block.parts = (Segment(Block(units)), Segment(Block(block.size - units)))


def split(axis: Axis, position: int) -> tuple[Axis, Axis]:
    """The first `position` entries of an axis, and the others."""
    segments = resolve(axis)
    before = 0
    for index, segment in enumerate(segments):
        if position <= before:
            return segments[:index], segments[index:]
        if position < before + segment.length:
            if segment.block.fixed is None:
                _cut(segment, position - before)
                return split(axis, position)
            left = fixed_axis(position - before, segment.block.fixed)
            right = fixed_axis(before + segment.length - position, segment.block.fixed)
            return segments[:index] + left, right + segments[index + 1 :]
        before += segment.length
    return segments, ()


def merge(outer: Axis, inner: Axis) -> Axis:
    """Two neighbouring axes as one, as flattening makes them."""
    if length_of(outer) == 1:
        return inner
    if is_fixed(inner) and is_fixed(outer):
        return fixed_axis(length_of(outer) * length_of(inner), reason_of(outer + inner))
    if is_fixed(outer):
        return resolve(inner) * length_of(outer)
    fix(inner, "two axes of hidden units are flattened into one")
    return tuple(Segment(block, size * length_of(inner)) for block, size in resolve(outer))


def unmerge(axis: Axis, outer: int, inner: int) -> tuple[Axis, Axis]:
    """One axis as two of `outer` and `inner` entries, as a view makes them."""
    if outer == 1 or inner == 1:
        unit = fixed_axis(1)
        return (unit, axis) if outer == 1 else (axis, unit)
    segments = resolve(axis)
    if not is_fixed(axis):
        # Each unit is whole rows: the rows move.
        if all((s.length if s.block.fixed else s.inner) % inner == 0 for s in segments):
            rows = [
                fixed_axis(s.length // inner, s.block.fixed)[0]
                if s.block.fixed
                else Segment(s.block, s.inner // inner)
                for s in segments
            ]
            return tuple(rows), fixed_axis(inner)
        # All rows are permuted alike: the columns move.
        rows_of = _rows(segments, inner)
        if rows_of and all(row == rows_of[0] for row in rows_of):
            return fixed_axis(outer), rows_of[0]
        fix(axis, "a view splits its units")
    return fixed_axis(outer, reason_of(axis)), fixed_axis(inner, reason_of(axis))


def _rows(segments: Axis, length: int) -> list[Axis]:
    """Cut an axis after each `length` entries; empty if a segment stands in the way."""
    rows: list[Axis] = [()]
    for segment in segments:
        if length_of(rows[-1]) == length:
            rows.append(())
        rows[-1] += (segment,)
        if length_of(rows[-1]) > length:
            return []
    return rows
