"""Curvature of a network's objective as operators: Hessian, Gauss-Newton and Fisher.

Notation: θ [P], outputs z = f_θ(x) [n, ..., C], N samples, J = ∂z/∂θ, all summed over
micro-batches; "..." are the axes along which a sample has several labels, usually none.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import torch
from torch import Tensor

from lgo_cli.curvature.folding import Rewritten, fold
from lgo_cli.curvature.operators import ROUNDING_UNITS, Operator
from lgo_cli.curvature.own_loss import refuse_hidden_curvature
from lgo_cli.errors import InputError
from lgo_cli.gradients import gradients, pull_back
from lgo_cli.memory import total_memory_bytes
from lgo_cli.vectors import Block, flatten

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lgo_cli.config import OperatorName
    from lgo_cli.objective import Objective
    from lgo_cli.samples import Samples

G = TypeVar("G")


class NetworkOperator(Operator, Generic[G]):
    """A curvature matrix of an objective at its centre, by automatic differentiation.

    For each micro-batch there is a graph, from which a product is one or two passes. The graphs are
    kept between products if all of them fit into a memory budget, and else built again for each
    product. Both ways do the same operations on the same micro-batches in the same order: the
    choice moves no bit.

    The loss is taken of the model's outputs in float64, whatever the model's dtype. In float32 the
    second derivative of cross entropy, p(1 − p), loses its digits where p nears one: on networks
    that fit their samples ‖fl(H) − H‖ was 6e-4·‖H‖, and is 2e-6·‖H‖ for a cast of [n, C] numbers.

    To be used inside the objective's context and while it stands at its centre. The graphs are
    freed with the operator.

    Args:
        objective: Whose curvature.
        block: The parameters to restrict the matrix to; by default all.
        memory_bytes: What the graphs may take; by default half of the total memory (the cgroup's
            limit, if lower), never of what happens to be free, so that equal runs choose equally.
        model: What to call in the model's place; by default what `fold` makes of it.

    Attributes:
        keeps_graph: Whether the graphs are kept.
        graph_bytes: What keeping all of them takes, measured on the first; `None` if it cannot be.
        memory_bytes: The budget.
        model: What is called in the model's place.
        own_derivatives: Whether rewritten convolutions serve this kind of matrix.
        curves_loss: Whether it takes the loss's second derivatives.
    """

    own_derivatives = True
    curves_loss = True

    def __init__(
        self,
        objective: Objective,
        *,
        block: Block | None = None,
        memory_bytes: int | None = None,
        model: Rewritten | None = None,
    ) -> None:
        self.block = block or Block.whole(objective.layout)
        super().__init__(self.block.dim, objective.dtype, objective.device)
        self.objective = objective
        self.parameters = [objective.parameters[index] for index in self.block.members]
        self.model = model or fold(objective, own_derivatives=self.own_derivatives)
        self._kept: list[G] = []
        self._largest_output = torch.zeros((), device=self.device, dtype=torch.float64)
        if memory_bytes is None:
            memory_bytes = total_memory_bytes(objective.device) // 2
        self.memory_bytes = memory_bytes
        batches = list(objective.micro_batches())
        with objective.differentiating():
            if self.curves_loss and objective.loss_function.function is not None:
                few = batches[0].head(4)
                outputs = objective.batch_outputs(few)
                refuse_hidden_curvature(objective.loss_function, outputs, few.labels)
            first, num_bytes = self._measured_graph(batches[0])
            self.graph_bytes = None if num_bytes is None else num_bytes * len(batches)
            self.keeps_graph = self.graph_bytes is not None and self.graph_bytes <= memory_bytes
            if self.keeps_graph:
                self._kept = [first, *(self._graph(batch) for batch in batches[1:])]

    def restricted(self, block: Block) -> Self:
        """The diagonal block of this matrix for some of its parameters, on the same graphs."""
        part = copy.copy(self)
        part.block = block
        part.dim = block.dim
        part.num_matvecs = 0
        part.parameters = [self.objective.parameters[index] for index in block.members]
        return part

    def gradient(self) -> Tensor:
        """∇L [P] at the centre, restricted to the block."""
        return self.block.extract(self.objective.loss_and_gradient()[1])

    def release(self) -> None:
        """Free the graphs; a further product builds them again."""
        self._kept.clear()
        self.keeps_graph = False

    @property
    def _expected_rounding(self) -> float:
        """Units of eps·‖H‖ for the rounding of sums and outputs.

        Grows with the model's largest output: a logit z that is rounded once is off by up to
        (eps/2)·|z|, and p(1 − p) by that much of itself. Such an error is the same in each product,
        hence a symmetric one that no asymmetry betrays: it must be allowed for beforehand. What a
        model amplifies within itself, such as a softmax over large scores, has to be measured.
        """
        return ROUNDING_UNITS + float(self._largest_output) / 2

    @property
    def plan(self) -> str:
        """Which path the products take, and why."""
        if self.graph_bytes is None:
            return "graph rebuilt for each product: torch.func in the model hides what it keeps"
        size, budget = _gib(self.graph_bytes), _gib(self.memory_bytes)
        if self.keeps_graph:
            return f"graph kept between products: {size} of a budget of {budget}"
        return (
            f"graph rebuilt for each product: keeping it takes {size}, above a budget of {budget}"
        )

    def _outputs(self, batch: Samples) -> Tensor:
        """Outputs in float64; the largest that counts is noted, without a synchronisation."""
        outputs = self.objective.batch_outputs(batch, self.model.call).double()
        largest = self.objective.loss_function.curving(outputs.detach()).abs().amax()
        self._largest_output = torch.maximum(self._largest_output, largest)
        return outputs

    def _measured_graph(self, batch: Samples) -> tuple[G, int | None]:
        """A graph, and the bytes that it keeps and no other batch's graph shares, if that shows."""
        model = self.objective.model
        given = (*model.parameters(), *model.buffers(), batch.inputs, batch.labels)
        shared = {tensor.untyped_storage().data_ptr() for tensor in given}
        known = set(shared)
        num_bytes = 0

        def count(tensor: Tensor) -> tuple[Tensor, int | None]:
            nonlocal num_bytes
            storage = tensor.untyped_storage()
            # A buffer may be written at each call, to what it was.
            version = None if storage.data_ptr() in shared else tensor._version
            if storage.data_ptr() not in known:
                known.add(storage.data_ptr())
                num_bytes += storage.nbytes()
            # The tensor itself, where it is its operation's own output, would hold that operation
            # and be held by it: a cycle that no garbage collector sees.
            return tensor.detach(), version

        try:
            with torch.autograd.graph.saved_tensors_hooks(count, _unchanged):
                graph = self._graph(batch)
        except InputError as error:
            if "saved tensor hooks" not in str(error):  # which torch.func does not take
                raise
            return self._graph(batch), None
        # The gradients that a graph puts out, which nothing saves for a derivative.
        return graph, num_bytes + self.dim * self.dtype.itemsize

    def _product(self, vector: Tensor) -> Tensor:
        pieces = self.block.split(vector.to(self.dtype))
        # In float64, so that the number of micro-batches adds no rounding.
        total = torch.zeros(self.dim, dtype=torch.float64, device=self.device)
        with self.objective.differentiating():
            for graph in self._kept or map(self._graph, self.objective.micro_batches()):
                share = self._share(graph, pieces)
                if share is not None:
                    total += flatten(share)
        return total.to(self.dtype)

    @abstractmethod
    def _graph(self, batch: Samples) -> G:
        """What a product needs of a micro-batch."""

    @abstractmethod
    def _share(self, graph: G, pieces: list[Tensor]) -> tuple[Tensor, ...] | None:
        """A micro-batch's share of the product; `None` if it is zero."""


def _unchanged(saved: tuple[Tensor, int | None]) -> Tensor:
    """What a graph saved, if it is what it was: autograd does not look where hooks save."""
    tensor, version = saved
    if version not in (None, tensor._version):
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace "
            f"operation: it is at version {tensor._version}, not {version}"
        )
    return tensor


class HessianOperator(NetworkOperator[dict[int, Tensor]]):
    """The Hessian ∇²L by double backward (Pearlmutter 1994).

    Hv = ∇(gᵀv), with g = ∇L built once as a differentiable graph for each micro-batch. A product
    then costs about 3 forward passes of a multilayer perceptron and 3.5 to 5 of a ResNet-20 with
    the graphs kept.
    """

    def gradient(self) -> Tensor:
        """∇L [P] at the centre, restricted to the block; read off the graphs if they are kept."""
        total = torch.zeros(self.dim, dtype=torch.float64, device=self.device)
        with self.objective.differentiating():
            for graph in self._kept or map(self._graph, self.objective.micro_batches()):
                total += flatten(graph[index].detach() for index in self.block.members)
        return total.to(self.dtype)

    def _graph(self, batch: Samples) -> dict[int, Tensor]:
        """The batch's share of the gradient, which can be differentiated again, by parameter."""
        losses = self.objective.loss_function(self._outputs(batch), batch.labels)
        share = losses.sum() / len(self.objective.samples)
        gradient = gradients(share, self.parameters, create_graph=True)
        return dict(zip(self.block.members, gradient, strict=True))

    def _share(self, graph: dict[int, Tensor], pieces: list[Tensor]) -> tuple[Tensor, ...] | None:
        # A parameter in which the loss is linear has a constant gradient: its row is zero.
        curved = [
            (graph[index], piece)
            for index, piece in zip(self.block.members, pieces, strict=True)
            if graph[index].requires_grad
        ]
        if not curved:
            return None
        gradients, cotangents = zip(*curved, strict=True)
        return pull_back(gradients, self.parameters, cotangents, retain_graph=self.keeps_graph)


class _Linearized:
    """One micro-batch's outputs z [n, ..., C], and Jᵀu as a graph that is linear in u, like z."""

    def __init__(
        self,
        outputs: Tensor,
        labels: Tensor,
        members: tuple[int, ...],
        parameters: Sequence[Tensor],
    ) -> None:
        self.outputs = outputs
        self.labels = labels
        self.cotangent = torch.zeros_like(outputs, requires_grad=True)
        pulled = pull_back([outputs], parameters, [self.cotangent], create_graph=True)
        self.pulled = dict(zip(members, pulled, strict=True))


class GaussNewtonOperator(NetworkOperator[_Linearized]):
    """The generalised Gauss-Newton matrix (1/N) Σ Jᵀ (∂²ℓ/∂z²) J (Schraudolph 2002).

    ∂²ℓ/∂z² is in closed form: (Σt)(diag(p) − ppᵀ) for cross entropy, with Σt = 1 for class labels,
    smoothed or not, and but for their rounding for soft ones; diag(σ(z)σ(−z)) for the binary one;
    the identity for squared error; all in float64. Of a sample with T labels it is the mean over
    them. It is the Hessian without the term of the model's own second derivatives, and positive
    semidefinite. Of a loss of one's own it is that loss's, by autograd, and semidefinite where that
    is convex in the outputs.

    Jv is the derivative of (Jᵀu)ᵀv by u, a second backward pass: no forward mode is needed.
    """

    own_derivatives = False  # they would compute what a product of this kind never asks for
    own_labels = False

    def _graph(self, batch: Samples) -> _Linearized:
        outputs = self._outputs(batch)
        return _Linearized(outputs, batch.labels, self.block.members, self.parameters)

    def _curve(self, graph: _Linearized, tangent: Tensor) -> Tensor:
        """(∂²ℓ/∂z²)·(Jv) [n, ..., C]."""
        return self.objective.loss_function.curve(
            graph.outputs.detach(), graph.labels, tangent, own_labels=self.own_labels
        )

    def _share(self, graph: _Linearized, pieces: list[Tensor]) -> tuple[Tensor, ...] | None:
        reached = [
            (graph.pulled[index], piece)
            for index, piece in zip(self.block.members, pieces, strict=True)
            if graph.pulled[index].requires_grad
        ]
        if not reached:
            return None
        pulled, cotangents = zip(*reached, strict=True)
        (tangent,) = pull_back(pulled, [graph.cotangent], cotangents, retain_graph=True)
        curved = self._curve(graph, tangent) / len(self.objective.samples)
        return pull_back([graph.outputs], self.parameters, [curved], retain_graph=self.keeps_graph)


class FisherOperator(GaussNewtonOperator):
    """The Fisher matrix of the model's own labels, E_{y∼p} of (∇ log p(y))(∇ log p(y))ᵀ.

    It is the Gauss-Newton matrix, exactly: cross entropy is the negative log-likelihood of a
    categorical, the binary one that of independent Bernoullis, ½‖z − t‖² of a Gaussian of unit
    variance, and for an exponential family in its natural parameters the two agree (Martens 2020,
    section 9.2). The data's labels have no part in it, nor what they sum to. Of a sample with
    several labels, drawn independently of each other given its inputs, it is that of one label, the
    mean over them. A loss of one's own is the likelihood of nothing that lgo knows.
    """

    own_labels = True


class EmpiricalFisherOperator(GaussNewtonOperator):
    """(1/N) Σ g_n g_nᵀ with g_n the gradient of sample n's own loss, never held as a matrix [N, P].

    A sample with several labels has one loss, the mean over them.

    The same products as a Gauss-Newton matrix, of the losses in place of the outputs.
    """

    curves_loss = False

    def _graph(self, batch: Samples) -> _Linearized:
        losses = self.objective.loss_function(self._outputs(batch), batch.labels)
        return _Linearized(losses, batch.labels, self.block.members, self.parameters)

    def _curve(self, graph: _Linearized, tangent: Tensor) -> Tensor:
        del graph
        return tangent


OPERATORS: dict[OperatorName, type[HessianOperator | GaussNewtonOperator]] = {
    "hessian": HessianOperator,
    "ggn": GaussNewtonOperator,
    "fisher": FisherOperator,
    "empirical-fisher": EmpiricalFisherOperator,
}


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.3g} GiB"
