"""What is checked of an objective and its operator before their numbers are believed."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lgo_cli.curvature.folding import Rewritten
from lgo_cli.curvature.kinks import nonsmooth_operations
from lgo_cli.curvature.networks import HessianOperator, NetworkOperator
from lgo_cli.curvature.operators import (
    ROUNDING_SLACK,
    WRONG_DERIVATIVE,
    most_asymmetry,
    scaled_gradient,
)
from lgo_cli.errors import InputError, NumericsError
from lgo_cli.objective import Objective
from lgo_cli.second_derivatives import no_derivative_through_checkpoint
from lgo_cli.seeding import standard_normal
from lgo_cli.vectors import Block, dot, norm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from lgo_cli.curvature.operators import Operator
    from lgo_cli.samples import Samples

DIFFERENCE_TOLERANCE = 1e-4
"""To which central differences of float64 gradients must agree with a product: their own error is
of the order of eps^{2/3} = 4e-11 on well-scaled models, and grows with the third derivative."""

SAFETY = 2.0
"""Factor on the rounding measured on some samples, as an allowance for all, and on the error that
differences show of themselves."""

MANY_UNITS = 1e3
"""Rounding in units of eps·‖H‖, 1e-4 in float32, that is doubted. Networks have 5 to 300."""

_LOST = "None of the inputs have requires_grad=True"
"""What PyTorch warns of where a reentrant checkpoint may lose its parameters."""

NO_CURVATURE = "the curvature is zero on these samples"

ROUNDING_STEPS = 3
"""Directions in which rounding is measured."""


class Difference(NamedTuple):
    """A product against central differences of the gradient; relative to the product.

    Attributes:
        gap: Least distance of a quotient from the product.
        own_error: Least distance of quotients at two steps; `None` if one step was enough.
    """

    gap: float
    own_error: float | None

    @property
    def is_rough(self) -> bool:
        """Whether the gap may be the quotients' own error."""
        return self.own_error is not None and self.gap <= SAFETY * self.own_error


@dataclass(frozen=True)
class Rounding:
    """Float32 products against float64 ones on some of the samples, and the float64 product itself.

    Attributes:
        units: ‖fl(H) − H‖ in units of eps·‖H‖, as measured of what is composed; `None` if the
            model runs in float32 only.
        finite_difference: Of the float64 product and central differences of the gradient; `None` if
            it was not looked at.
        note: Why there is none.
        gradient: ‖fl(∇L) − ∇L‖ on these samples, scaled as what is composed; `None` where it was
            not measured.
    """

    units: float | None
    finite_difference: Difference | None
    note: str | None
    gradient: float | None = None


@dataclass(frozen=True)
class Audit:
    """What was found; each a relative difference that exact arithmetic would make zero.

    Attributes:
        sample_weighting: Of the loss of a sample in another call (`Objective.coupling`).
        asymmetry: |uᵀHv − vᵀHu|.
        nonlinearity: ‖H(u + v) − Hu − Hv‖.
        finite_difference: Of a product in float64, on smooth Hessians.
        finite_difference_note: Why there is none.
        nonsmooth: Activations whose kinks autograd ignores.
        num_matvecs: Products spent.
        complaints: What is worse than rounding.
        orthogonality: Largest entry of |QQᵀ − I|, of the basis when the run was over.
    """

    sample_weighting: float | None
    asymmetry: float
    nonlinearity: float
    finite_difference: float | None
    finite_difference_note: str | None
    nonsmooth: tuple[str, ...]
    num_matvecs: int
    complaints: tuple[str, ...]
    orthogonality: float | None = None


def measure_rounding(
    objective: Objective,
    kind: type[NetworkOperator[Any]],
    model: Rewritten | None = None,
    block: Block | None = None,
    compose: Callable[[NetworkOperator[Any]], Operator] = lambda network: network,
    *,
    difference: bool,
    seed: int = 0,
) -> Rounding:
    """Measure how far float32 products are from float64 ones, on 4 to 64 of the samples.

    An error that a product repeats each time is symmetric, and a model that amplifies rounding
    within itself (a softmax over large scores) need not show it in its outputs: no other check
    finds it. Power iteration on fl(H) − H does. It starts from a sum of two unit vectors, one along
    which H is large and one random, since what float32 loses altogether, such as the tails of a
    tanh, is where no float32 product leads.

    A ReLU's input within rounding of zero may change sign with the dtype and move a product by
    percents, an error of neither. If a model with kinks shows that much, as many other samples are
    measured too, and the lesser result counts.

    Call this before an operator holds graphs of the objective. If that is not float32, only
    differences are measured.

    Args:
        objective: Entered.
        kind: Class of the operator.
        model: What products call in the model's place, in the objective's dtype.
        block: The parameters that the operator is restricted to.
        compose: Shifts or scales the network's operator; the result is measured, in units of its
            own norm. By default the operator itself.
        difference: Whether to take central differences of the network's gradient too.
        seed: The user's seed.
    """
    if objective.dtype != torch.float32 and not difference:
        return Rounding(0.0, None, None)
    # On a ResNet-20, 4 to 64 samples gave 4 to 40 units; 8 cost two float32 passes over 1,024.
    size = min(64, max(4, objective.micro_batch_size // 32))
    first, *others = islice(objective.samples.batches(size), 2)
    block = block or Block.whole(objective.layout)
    measure = partial(_rounding_on, objective, kind, model, block, compose, seed=seed)
    found = measure(first, difference=difference)
    if found.units is None or found.units <= MANY_UNITS:
        return found
    if not others or len(others[0]) == 1:  # of which there may be no batch statistics
        return found
    if not nonsmooth_operations(objective):
        return found
    again = measure(others[0], difference=False)
    if again.units is None or again.note is not None:
        return found
    lesser = min(found.gradient or 0.0, again.gradient or 0.0)
    return replace(found, units=min(found.units, again.units), gradient=lesser)


def _rounding_on(
    objective: Objective,
    kind: type[NetworkOperator[Any]],
    model: Rewritten | None,
    block: Block,
    compose: Callable[[NetworkOperator[Any]], Operator],
    samples: Samples,
    *,
    difference: bool,
    seed: int,
) -> Rounding:
    plain = Rewritten(objective.model, "as it is")

    @contextmanager
    def network_in(dtype: torch.dtype, *, checked: bool = True) -> Iterator[NetworkOperator[Any]]:
        with Objective(
            objective.model, samples, objective.loss_function, dtype=dtype, checked=checked
        ) as problem:
            called = plain if dtype == torch.float64 else model or plain
            yield kind(problem, block=block, model=called)

    def product(operator: Operator, vector: Tensor) -> Tensor:
        return operator.matvec(vector.to(operator.dtype)).double()

    def unit(vector: Tensor) -> Tensor:
        """In the objective's bits, so that both dtypes get the same vector."""
        return (vector / norm(vector)).to(objective.dtype).double()

    def gap_of(network: NetworkOperator[Any]) -> Difference | None:
        """Of a product and central differences, in a direction in which the network's H is large.

        Not in that of what is composed: scaled, it may lie where H itself is next to nothing.
        """
        image = product(network, start)
        if norm(image) == 0:
            return None
        vector = unit(image)
        expected = product(network, vector)
        network.release()  # its graphs, before parameters move
        return _central_difference(network.objective, block, vector, expected)

    start = standard_normal(block.dim, seed, "hessian", "rounding").to(objective.device)
    start /= norm(start)
    gap = note = None
    worst = 0.0
    try:
        with network_in(torch.float64, checked=False) as network:
            operator = compose(network)
            image = product(operator, start)
            if norm(image) == 0:
                return Rounding(0.0, None, NO_CURVATURE)
            large = unit(image)
            of_large = product(operator, large)
            scale = norm(of_large)
            both = large + start
            vector = unit(both)  # but for its own rounding, at most half a unit
            known = (of_large + image) / norm(both)
            gradient = scaled_gradient(network.gradient(), operator)
            if difference:
                gap = gap_of(network)
                note = NO_CURVATURE if gap is None else None
        if objective.dtype != torch.float32:
            return Rounding(0.0, gap, note)
        # Either dtype has the other's product of one vector, and gives it that of the next.
        for step in range(ROUNDING_STEPS):
            with network_in(torch.float64 if step % 2 else objective.dtype) as network:
                operator = compose(network)
                if step == 0:
                    found = scaled_gradient(network.gradient(), operator)
                    off_gradient = norm(found.double() - gradient)
                off = known - product(operator, vector)
                worst = max(worst, norm(off))
                if norm(off) == 0 or step == ROUNDING_STEPS - 1:
                    break
                vector = unit(off)
                known = product(operator, vector)
    except (InputError, NumericsError) as error:
        return Rounding(None, None, f"the model does not run in float64: {error}")
    units = SAFETY * worst / (torch.finfo(objective.dtype).eps * scale)
    return Rounding(units, gap, note, SAFETY * off_gradient)


def _central_difference(
    objective: Objective, block: Block, vector: Tensor, expected: Tensor
) -> Difference:
    """Relative distance of (∇L(θ + hv) − ∇L(θ − hv)) / 2h from a product.

    h follows ‖θ‖ alone. The truncation error, h² times the third derivative, may still be large
    (pixels of up to 255, weights that fit their samples), as may noise over h where a part of the
    model computes in float32. A miss is therefore repeated with h/10 and h/100. Either error
    changes at least tenfold with h, so that the quotients differ from each other by at least what
    the best of them differs from a right product; a wrong product is as far from all of them.
    """
    step = torch.finfo(torch.float64).eps ** (1 / 3) * max(1.0, norm(objective.theta))
    direction = block.embed(vector)
    scale = norm(expected)
    quotients: list[Tensor] = []
    gaps: list[float] = []
    for h in (step, step / 10, step / 100):
        _, above = objective.loss_and_gradient(objective.theta + h * direction)
        _, below = objective.loss_and_gradient(objective.theta - h * direction)
        quotients.append(block.extract(above - below) / (2 * h))
        gaps.append(norm(quotients[-1] - expected) / scale)
        if gaps[-1] <= DIFFERENCE_TOLERANCE:
            return Difference(gaps[-1], None)
    own_error = min(norm(one - next_) / scale for one, next_ in pairwise(quotients))
    return Difference(min(gaps), own_error)


def refuse_lost_parameters(objective: Objective) -> None:
    """See that a reentrant checkpoint around the inputs keeps no parameter from autograd.

    Where nothing that enters such a part needs a gradient, PyTorch warns, and gives its parameters
    none: their rows of a Hessian would be zero. Where inputs need one, backward() finds them.

    Args:
        objective: Entered.

    Raises:
        InputError: if a parameter is lost so.
    """
    batch, parameters = objective.samples.head(2), objective.parameters
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        loss = objective.batch_loss(batch)
    if not any(_LOST in str(each.message) for each in seen) or not batch.inputs.is_floating_point():
        return
    reached = torch.autograd.grad(loss, parameters, allow_unused=True)
    kept = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    inputs = batch.inputs.clone().requires_grad_()
    with objective.differentiating():
        loss = objective.batch_loss(replace(batch, inputs=inputs * 1))
        loss.backward()  # type: ignore[no-untyped-call]
    found = [parameter.grad is not None for parameter in parameters]
    for parameter, gradient in zip(parameters, kept, strict=True):
        parameter.grad = gradient
    if any(has and piece is None for has, piece in zip(found, reached, strict=True)):
        raise no_derivative_through_checkpoint("second derivative")


def audit(
    objective: Objective,
    operator: Operator,
    rounding: Rounding,
    nonsmooth: tuple[str, ...],
    seed: int = 0,
) -> Audit:
    """Check that the objective is a mean over samples and its operator linear and symmetric.

    Costs three products. On entering, the objective has already checked that a loss computed twice
    is equal to the bit, and whether samples see each other.

    Args:
        objective: Entered.
        operator: Its curvature.
        rounding: What `measure_rounding` found.
        nonsmooth: What `nonsmooth_operations` found.
        seed: The user's seed.
    """
    before = operator.num_matvecs
    u = standard_normal(operator.dim, seed, "hessian", "audit").to(operator.device)
    u = (u / torch.linalg.vector_norm(u)).to(operator.dtype)
    of_u = operator.matvec(u)
    scale = norm(of_u)
    v = of_u / scale if scale > 0 else u
    of_v = operator.matvec(v)
    of_sum = operator.matvec(u + v)
    reach = scale + norm(of_v)
    asymmetry = abs(dot(u, of_v) - dot(v, of_u)) / reach if reach > 0 else 0.0
    nonlinearity = (
        norm(of_sum.double() - of_u.double() - of_v.double()) / reach if reach > 0 else 0.0
    )

    slack = ROUNDING_SLACK * torch.finfo(operator.dtype).eps
    complaints = [*objective.complaints]
    if asymmetry > slack:
        wrong = f"; {WRONG_DERIVATIVE}" if asymmetry > most_asymmetry(operator) else ""
        complaints.append(f"products are not symmetric (off by {asymmetry:.1e}){wrong}")
    if nonlinearity > slack:
        complaints.append(f"products are not linear (off by {nonlinearity:.1e})")
    difference, note = rounding.finite_difference, None
    if difference is None or difference.is_rough:
        note = _no_difference(rounding, nonsmooth)
    elif difference.gap > DIFFERENCE_TOLERANCE:
        complaints.append(
            f"a product differs from central differences of the gradient by {difference.gap:.1e}"
        )
    return Audit(
        sample_weighting=objective.coupling,
        asymmetry=asymmetry,
        nonlinearity=nonlinearity,
        finite_difference=difference.gap if difference and note is None else None,
        finite_difference_note=note,
        nonsmooth=nonsmooth,
        num_matvecs=operator.num_matvecs - before,
        complaints=tuple(complaints),
    )


def takes_differences(kind: type[NetworkOperator[Any]], nonsmooth: tuple[str, ...]) -> bool:
    """Whether central differences of the gradient are a twin: on smooth Hessians."""
    return kind is HessianOperator and not nonsmooth


def _no_difference(rounding: Rounding, nonsmooth: tuple[str, ...]) -> str:
    difference = rounding.finite_difference
    if difference is not None:
        return (
            f"differences at two steps are {difference.own_error:.1e} apart: a part of the model "
            "computes in float32, or its third derivative is large"
        )
    if nonsmooth:
        return f"differences across the kinks of {', '.join(nonsmooth)} mean nothing"
    return rounding.note or "the operator is no second derivative"
