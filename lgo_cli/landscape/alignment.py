"""Permute one network's hidden units to lie as close to another's as can be found.

Weight matching of Ainsworth, Hayase & Srinivasa 2022, algorithm 1: group by group of units, the
permutation that maximises ⟨A, P(B)⟩ over all weights that have the group on an axis, the other
groups held still, is a linear assignment problem (theory.md, section 26).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from lgo_cli.curvature.tracing import ForwardError, strange_forward
from lgo_cli.errors import NumericsError, dtype_name
from lgo_cli.landscape.assignment import assign
from lgo_cli.landscape.blocks import Segment, groups_of
from lgo_cli.landscape.permutations import (
    UNREACHED,
    State,
    find_symmetries,
    run_as_itself,
    tensors_of,
)
from lgo_cli.outputs import model_failures
from lgo_cli.progress import SILENT
from lgo_cli.results import counted, some
from lgo_cli.seeding import generator

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lgo_cli.landscape.blocks import Axis
    from lgo_cli.landscape.permutations import Symmetries
    from lgo_cli.progress import Progress, Task

Order = list[Tensor]

GAIN_TOLERANCE = 1e-12
"""Least gain of a step, relative to ‖A‖·‖B‖: float64 sums over millions of weights are good to
1e-14, and a step that gains nothing would be taken back and forth."""

PROOF_SAMPLES = 16
"""Samples on which the permuted network is compared with the original. A wrong permutation shows on
one; in float64, where rounding cannot be taken for it, convolutions are slow."""


@dataclass(frozen=True)
class Alignment:
    """Network B with its units in the order that brings it close to A.

    Attributes:
        state: B's state_dict, permuted; it computes what B computes.
        num_units: Units that may be permuted among others.
        num_moved: Units that are not where they were.
        num_iterations: Sweeps of the better of two ascents, until nothing changed.
        distance_before: ‖θ_A − θ_B‖.
        distance_after: ‖θ_A − P(θ_B)‖, never more.
        output_difference: Largest difference between the outputs of B and of B permuted, relative
            to the largest output.
        output_tolerance: What it had to stay below.
        output_dtype: Of the arithmetic in which outputs were compared.
        not_permuted: Parameters with hidden axes that could not be permuted, and why.
        warnings: What a reader must know: why the outputs were not compared in float64, and what
            was not permuted although it may be where other samples go.
    """

    state: State
    num_units: int
    num_moved: int
    num_iterations: int
    distance_before: float
    distance_after: float
    output_difference: float
    output_tolerance: float
    output_dtype: str
    not_permuted: Mapping[str, str]
    warnings: tuple[str, ...]


def align(
    model: nn.Module,
    state_a: Mapping[str, Tensor],
    state_b: Mapping[str, Tensor],
    inputs: Tensor,
    *,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Alignment:
    """Match the hidden units of network B to those of network A.

    Args:
        model: The structure of both; left as it was.
        state_a: A state_dict that fits it.
        state_b: Another.
        inputs: Samples [n, *input_shape] on the model's device. Two are traced; on the first
            `PROOF_SAMPLES` the permuted network is compared with the original.
        seed: Of the order in which groups are visited.
        progress: Told of each group that was matched.

    Raises:
        InputError: if the model cannot be traced.
        NumericsError: if the permuted network should not compute the same function, or if the
            outputs are not finite.
    """
    both = [tensors_of(model, state) for state in (state_a, state_b)]
    # Such as the slopes of heads: a path that has them in A's order has not P(B) at its end.
    still = {
        name
        for name, _ in model.named_buffers()
        if torch.equal(value := both[0][name], both[1][name]) and len(value.flatten()) > 1
        if bool((value != value.flatten()[0]).any())
    }
    symmetries = find_symmetries(model, inputs, still)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    weights_a, weights_b = (
        {name: tensors[name].double().cpu() for name in trainable} for tensors in both
    )
    identity = [torch.arange(group.size) for group in symmetries.groups]
    with progress.task("alignment", None, "groups of units") as task:
        matching = _Matching(symmetries, weights_a, weights_b, task)
        ascents = [matching.ascend(start, seed) for start in (identity, matching.forward())]
    order, objective = max(ascents, key=lambda ascent: ascent[1][-1])
    state = symmetries.permute_state(state_b, order)
    difference, dtype, refused = _output_difference(model, state_b, state, inputs)
    tolerance = float(torch.finfo(dtype).eps) ** 0.5
    if not difference <= tolerance:
        raise NumericsError(
            f"the aligned network's outputs differ from the original's by {difference:.1e} "
            f"relative to the largest, more than rounding ({tolerance:.1e})",
            hint="leave out --align, and report the model: its symmetries were misread",
        )
    output_dtype = dtype_name(dtype)
    warnings = []
    if refused:
        warnings.append(
            f"the aligned network was compared with the original in {output_dtype} and to "
            f"{tolerance:.1e} alone, since the model does not run in float64: {refused}"
        )
    unreached = [name for name, why in symmetries.not_permuted.items() if why == UNREACHED]
    if unreached:
        warnings.append(
            f"--align leaves the units of {counted(len(unreached), 'parameter')} where they are, "
            "on which the two traced samples' outputs do not depend, while others' may: "
            f"{some(unreached)}"
        )
    return Alignment(
        state=state,
        num_units=sum(group.size for group in symmetries.groups),
        num_moved=sum(int((new != old).sum()) for new, old in zip(order, identity, strict=True)),
        num_iterations=len(objective) - 1,
        distance_before=matching.distance(identity),
        distance_after=matching.distance(order),
        output_difference=difference,
        output_tolerance=tolerance,
        output_dtype=output_dtype,
        not_permuted=symmetries.not_permuted,
        warnings=tuple(warnings),
    )


class _Occurrence(NamedTuple):
    """A stretch of a parameter's axis that holds a group's units.

    `around` are the groups in whose units it lies, `beside` these, those within its own units and
    those on the parameter's other axes, among which may be the same.
    """

    name: str
    dim: int
    start: int
    inner: int
    around: frozenset[int]
    beside: frozenset[int]


def _stretches(
    axis: Axis, start: int = 0, around: frozenset[int] = frozenset()
) -> Iterator[tuple[int, int, int, frozenset[int], set[int]]]:
    """Of each stretch: its group, start and length of a unit, and groups around and within it."""
    for segment in axis:
        own, within = groups_of((Segment(segment.block),)), groups_of(segment.inner)
        for group in own:
            yield group, start, segment.unit, around, within
        for place in range(start, start + segment.length, segment.unit) if within else ():
            yield from _stretches(segment.inner, place, around | own)
        start += segment.length


class _Matching:
    """⟨A, P(B)⟩ as a function of each group's permutation."""

    def __init__(
        self,
        symmetries: Symmetries,
        weights_a: Mapping[str, Tensor],
        weights_b: Mapping[str, Tensor],
        task: Task,
    ) -> None:
        self.symmetries = symmetries
        self.task = task
        self.a = weights_a
        self.b = weights_b
        self.occurrences: list[list[_Occurrence]] = [[] for _ in symmetries.groups]
        for name in weights_a:
            on = [groups_of(axis) for axis in symmetries.axes[name]]
            for dim, axis in enumerate(symmetries.axes[name]):
                others = set[int]().union(*on[:dim], *on[dim + 1 :])
                for group, start, inner, around, within in _stretches(axis):
                    beside = around | within | others
                    found = _Occurrence(name, dim, start, inner, around, beside)
                    self.occurrences[group].append(found)
        norms = [
            sum(float(value.square().sum()) for value in weights.values()) ** 0.5
            for weights in (weights_a, weights_b)
        ]
        self.least_gain = GAIN_TOLERANCE * norms[0] * norms[1]

    def inner_product(self, order: Order, names: Iterable[str] | None = None) -> float:
        """⟨A, P(B)⟩ over all parameters, or some."""
        return sum(
            float((self.a[name] * self.symmetries.permute(name, self.b[name], order)).sum())
            for name in (self.a if names is None else names)
        )

    def distance(self, order: Order) -> float:
        """‖A − P(B)‖."""
        squares = (
            float((a - self.symmetries.permute(name, self.b[name], order)).square().sum())
            for name, a in self.a.items()
        )
        return float(sum(squares) ** 0.5)

    def gains(
        self,
        group: int,
        order: Order,
        occurrences: Iterable[_Occurrence],
        waiting: Iterable[int] = (),
    ) -> Tensor:
        """What each place [size] gains by each unit of B [size], the other groups held still.

        Beside groups that are `waiting` to be matched, a unit's entries are compared in ascending
        order, which is the same whatever the order of those.
        """
        size = self.symmetries.groups[group].size
        total = torch.zeros(size, size, dtype=torch.float64)
        for (name, dim), found in itertools.groupby(occurrences, lambda o: (o.name, o.dim)):
            b = self.symmetries.permute(name, self.b[name], order, held=(dim, group))
            for occurrence in found:
                start, length = occurrence.start, size * occurrence.inner
                units = [
                    value.movedim(dim, 0).narrow(0, start, length).reshape(size, -1)
                    for value in (self.a[name], b)
                ]
                if occurrence.beside & set(waiting):
                    units = [value.sort(1)[0] for value in units]
                total.addmm_(units[0], units[1].T)
        return total

    def forward(self) -> Order:
        """Match group after group, each by the weights whose other axes are matched already.

        On a network and a permuted copy of it each group is matched on equal terms, and the
        permutation is found exactly, which a start from the identity does not promise. Where all
        that are left wait for each other, as heads of attention and the channels within them do,
        the first is matched by its units' entries in ascending order, around the others first.
        """
        order = [torch.arange(group.size) for group in self.symmetries.groups]
        waiting = set(range(len(order)))
        while waiting:
            ready, outer = (
                {
                    group: [o for o in self.occurrences[group] if not getattr(o, where) & waiting]
                    for group in waiting
                }
                for where in ("beside", "around")
            )
            # Vectors, such as biases, are always ready, but tell units apart the least.
            telling = {g for g in waiting if any(self.a[o.name].ndim > 1 for o in ready[g])}
            group = max(waiting, key=lambda g: (g in telling, len(outer[g]) > 0, -g))
            known = (ready if group in telling else outer)[group]
            order[group] = _best(self.gains(group, order, known, waiting))
            waiting.remove(group)
            self.task.advance()
        return order

    def ascend(self, start: Order, seed: int) -> tuple[Order, list[float]]:
        """Algorithm 1: sweeps over the groups in random order, until nothing changes.

        A group is visited again only if one beside it, in some weight, has changed since.

        A group on two axes of one weight makes the objective quadratic in its permutation, and the
        assignment maximises the tangent; such a step is taken only where it gains, and where it
        does not, units are exchanged, until no exchange of two gains.

        Returns:
            The permutations, and the objective at the start and after each sweep.
        """
        order = list(start)
        objective = [self.inner_product(order)]
        stale = set(range(len(order)))
        while stale:
            draw = generator(seed, "align", "order", len(objective))
            for group in torch.randperm(len(order), generator=draw).tolist():
                if group not in stale:
                    continue
                stale.remove(group)
                self.task.advance()
                names = self.symmetries.groups[group].parameters
                for step in self._steps(group, order):
                    if torch.equal(step, order[group]):
                        continue
                    moved = [*order[:group], step, *order[group + 1 :]]
                    gain = self.inner_product(moved, names) - self.inner_product(order, names)
                    if gain > self.least_gain:
                        order = moved
                        stale |= self._neighbours(group)
                        break
            objective.append(self.inner_product(order))
        return order, objective

    def _steps(self, group: int, order: Order) -> Iterator[Tensor]:
        """Orders of a group that may be better, the next where those before did not gain."""
        gains = self.gains(group, order, self.occurrences[group])
        yield _best(gains)
        if group not in self._neighbours(group):
            return  # the assignment was the best there is
        here = order[group]
        gains = self._exchanges(group, order, gains[:, here])
        best = gains.argmax(1)
        # Each other's best, all at once; what they gain together is not known.
        mutual = (best[best] == torch.arange(len(best))) & (gains.amax(1) > 0)
        yield torch.where(mutual, here[best], here)
        first, second = divmod(int(gains.argmax()), len(best))
        exchanged = here.clone()
        exchanged[[first, second]] = here[[second, first]]
        yield exchanged

    def _exchanges(self, group: int, order: Order, gains: Tensor) -> Tensor:
        """What the exchange of each two units gains [size, size].

        That of i and j is P = I + Δ, Δ = −(e_i − e_j)(e_i − e_j)ᵀ: beside the tangent's part, a
        weight with the group on two axes gains ⟨A, ΔBΔ⟩.

        Args:
            group: Which.
            order: As it is.
            gains: Of the tangent: each place [size] by the unit that each place [size] has.
        """
        size = len(gains)
        total = gains + gains.T - gains.diagonal() - gains.diagonal()[:, None]
        for first, second in itertools.combinations(self.occurrences[group], 2):
            if first.name != second.name or first.dim == second.dim:
                continue
            product = torch.ones(())
            permuted = self.symmetries.permute(first.name, self.b[first.name], order)
            for weight in (self.a[first.name], permuted):
                units = weight.movedim((first.dim, second.dim), (0, 1))
                units = units.narrow(0, first.start, size * first.inner)
                units = units.narrow(1, second.start, size * second.inner)
                units = units.reshape(size, first.inner, size, second.inner, -1)
                units = units.transpose(1, 2).reshape(size, size, -1)
                own = units.diagonal().T
                product = product * (own + own[:, None] - units - units.transpose(0, 1))
            total += product.sum(-1)
        return total

    def _neighbours(self, group: int) -> set[int]:
        """Groups beside this one in some weight, among which may be the same."""
        return set[int]().union(*(occurrence.beside for occurrence in self.occurrences[group]))


def _best(gains: Tensor) -> Tensor:
    return torch.from_numpy(assign(-gains.numpy())[0])


def _output_difference(
    model: nn.Module, state: Mapping[str, Tensor], permuted: Mapping[str, Tensor], inputs: Tensor
) -> tuple[float, torch.dtype, str]:
    """Largest difference of outputs relative to the largest output, and the dtype it was taken in.

    In float64, where rounding is farthest from what a wrong permutation does; in the model's own
    where it insists on that, and then the third result says what it refused float64 with.
    """
    try:
        with strange_forward():
            return _compared(model, state, permuted, inputs, torch.float64), torch.float64, ""
    except ForwardError as error:
        reason = str(error)
    dtype = next(model.parameters()).dtype
    with model_failures("the model fails"):
        return _compared(model, state, permuted, inputs, dtype), dtype, reason


def _compared(
    model: nn.Module,
    state: Mapping[str, Tensor],
    permuted: Mapping[str, Tensor],
    inputs: Tensor,
    dtype: torch.dtype,
) -> float:
    def cast(value: Tensor) -> Tensor:
        return value.to(dtype) if value.is_floating_point() else value

    both = [
        {name: cast(value) for name, value in tensors_of(model, values).items()}
        for values in (state, permuted)
    ]
    inputs = cast(inputs[:PROOF_SAMPLES])
    original, moved = (run_as_itself(model, tensors, inputs).double() for tensors in both)
    # Outputs of -inf, as of masked classes, are equal, and no scale.
    difference = float(torch.where(original == moved, 0.0, (original - moved).abs()).max())
    largest = float(torch.where(original.isinf(), 0.0, original.abs()).max())
    return difference / largest if largest > 0 else difference
