"""The trace of a curvature matrix without probes, where the network's graph allows it.

With Σ_c ± s_c s_cᵀ = ∂²ℓ_n/∂z² the trace of the generalised Gauss-Newton matrix is a sum of squared
norms, (1/N) Σ_n Σ_c ± ‖J_nᵀ s_{n,c}‖²: C backward passes, and of each sample's gradient only the
norm (theory.md, section 31). All signs are positive where the loss is convex in the outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.autograd.graph import GradientEdge, get_gradient_edge

from lgo_cli.curvature.piecewise_linear import what_bends
from lgo_cli.curvature.reads import Operation, described, reads
from lgo_cli.curvature.tracing import ForwardError, strange_forward, trace
from lgo_cli.gradients import gradients
from lgo_cli.progress import SILENT, Progress
from lgo_cli.results import counted
from lgo_cli.seeding import standard_normal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lgo_cli.config import OperatorName
    from lgo_cli.objective import Objective
    from lgo_cli.samples import Samples
    from lgo_cli.vectors import Block

MAX_BACKWARD_PASSES = 128
"""One for each output. For a ResNet-20 with more of them an estimate to 1 % costs less."""

NORM_TOLERANCE = 1e-2
"""To which the squared norms of some samples' gradients must agree with autograd's. A wrong rule is
off by a whole term; a rounding that carries an activation over a kink by less than this."""


@dataclass(frozen=True)
class ExactTrace:
    """A trace that no chance enters.

    Attributes:
        parts: Of each parameter's diagonal block, in the order of the layout; 0 for those that were
            not asked for.
        sizes: What their terms add up to without signs.
        reason: Why it is the matrix's.
    """

    parts: tuple[float, ...]
    sizes: tuple[float, ...]
    reason: str

    def of(self, block: Block) -> float:
        """Of a diagonal block."""
        return math.fsum(self.parts[index] for index in block.members)

    def size_of(self, block: Block) -> float:
        """What its terms add up to without signs: rounding is of that."""
        return math.fsum(self.sizes[index] for index in block.members)


def exact_trace(
    objective: Objective, operator: OperatorName, block: Block, progress: Progress = SILENT
) -> ExactTrace | str:
    """The trace of a matrix at the objective's centre, or why it has to be estimated.

    Gauss-Newton and Fisher matrices have one where known operations read all parameters of the
    block (reads.py); the Hessian where besides the outputs are piecewise linear in each of them
    (piecewise_linear.py). What was read off the graph is checked against autograd's gradients of
    single samples.

    Costs one forward pass and C backward passes that skip the weights' gradients: with 10 classes
    as much as 6 forward passes of a multilayer perceptron and 25 of a ResNet-20, checks included.

    Norms of a float32 model's gradients are summed in float64. Where all count as positive, the sum
    is as accurate as they are: 3e-8 on those two networks.

    Args:
        objective: Entered.
        operator: Which matrix.
        block: The parameters to restrict it to.
        progress: Told of each micro-batch.
    """
    norms = _norms(objective, operator, block)
    if isinstance(norms, str):
        return norms
    few = objective.samples.head(3)
    try:
        with strange_forward():
            num_passes = norms.num_columns(operator, few.head(1))
            if num_passes > MAX_BACKWARD_PASSES:
                return f"it would take {counted(num_passes, 'backward pass')}, one for each output"
            norms.repeat_shared(few)
            difference = norms.difference(few)
    except ForwardError as error:
        return norms.doubt or f"the traced model fails ({error})"
    if not difference <= NORM_TOLERANCE:
        reason = f"gradients read off the graph differ from autograd's by {difference:.1e}"
        return norms.doubt or reason
    shape = (2, len(block.full.names))
    totals = torch.zeros(shape, dtype=torch.float64, device=objective.device)
    # So that the derivatives by all layers' outputs take what a micro-batch's activations do.
    size = max(1, objective.micro_batch_size // num_passes)
    with progress.task("exact trace", len(objective.samples), "samples") as task:
        for batch in objective.samples.batches(size):
            for index, squares, signs in norms.squares(batch, operator):
                terms = squares.double()
                totals[:, index] += torch.stack([(terms * signs).sum(), terms.sum()])
            task.advance(len(batch))
    parts, sizes = (totals / len(objective.samples)).tolist()
    why = "the network is piecewise linear: tr H = tr G" if operator == "hessian" else "closed form"
    return ExactTrace(tuple(parts), tuple(sizes), f"{why}; {counted(num_passes, 'backward pass')}")


def _norms(objective: Objective, operator: OperatorName, block: Block) -> _GradientNorms | str:
    """Gradients' norms by the graph, if it proves that the trace is made of them."""
    graph = trace(objective.model)
    if isinstance(graph, str):
        return graph
    parameters: dict[int, Tensor] = {i: objective.parameters[i] for i in block.members}
    found = reads(graph, {id(p): block.full.names[index] for index, p in parameters.items()})
    if isinstance(found, str):
        return found
    bend = what_bends(graph, found) if operator == "hessian" else None
    return bend or _GradientNorms(objective, graph, found, parameters)


class _GradientNorms(fx.Interpreter):
    """Squared norms of single samples' gradients, by parameter, from one run of a traced model.

    Args:
        objective: Entered.
        graph: The model's.
        operations: Where it reads the parameters.
        parameters: Those that are asked for, by their index in the layout.

    Attributes:
        doubt: Why, should the norms be wrong or not be found; `None` if nothing is to suspect.
    """

    def __init__(
        self,
        objective: Objective,
        graph: fx.GraphModule,
        operations: dict[fx.Node, Operation],
        parameters: dict[int, Tensor],
    ) -> None:
        super().__init__(graph)
        self.objective = objective
        self.operations = operations
        self.parameters = parameters
        self.indices = {id(parameter): index for index, parameter in parameters.items()}
        self.inputs: dict[fx.Node, Tensor] = {}
        self.outputs: dict[fx.Node, GradientEdge] = {}
        self.lengths: dict[fx.Node, tuple[int, ...]] = {}
        self.shared: set[fx.Node] = set()
        self.doubt: str | None = None
        self.num_samples = 0

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and note what an operation that reads parameters takes and gives.

        Its output is kept as a place in autograd's graph: the tensor may be changed afterwards.
        """
        result = super().run_node(n)
        if n in self.operations:
            inputs = self.env[self.operations[n].inputs]
            if n in self.shared:
                # An axis of length 1 stands for the samples, as in what is added to theirs.
                skip = int(inputs.shape[:1] == result.shape[:1] == (1,))
                inputs, result = (
                    tensor.expand(self.num_samples, *tensor.shape[skip:])
                    for tensor in (inputs, result)
                )
            self.inputs[n] = inputs.detach()
            self.outputs[n] = get_gradient_edge(result)
            self.lengths[n] = tuple(result.shape[:1])
        return result

    def repeat_shared(self, batch: Samples) -> None:
        """Repeat for each sample what is read once for all, such as an embedding of positions.

        That is what is as long for one sample as for several. Each sample's gradient is then what
        reaches its own copy; where that is not so, the norms are not autograd's.
        """
        lengths = self._lengths(batch)
        while len(batch) > 1:
            alone = self._lengths(batch.head(1))
            same = next((node for node in lengths if lengths[node] == alone[node]), None)
            if same is None:
                break
            self.shared.add(same)
            self._suspect(same)
            lengths = self._lengths(batch)  # those behind it may have become longer
        for node, length in lengths.items():
            if length != (len(batch),):
                self._suspect(node)

    def _suspect(self, node: fx.Node) -> None:
        place = described(node, self.submodules)
        reason = f"the first axis of what {place} puts out is not that of samples"
        self.doubt = self.doubt or reason

    def _lengths(self, batch: Samples) -> dict[fx.Node, tuple[int, ...]]:
        """Of the first axis of what each operation puts out, if it has one."""
        self._run(batch)
        return dict(self.lengths)

    def num_columns(self, operator: OperatorName, batch: Samples) -> int:
        """Columns of a factor of each sample's matrix."""
        return 1 if operator == "empirical-fisher" else self._run(batch)[0].numel()

    def squares(
        self, batch: Samples, operator: OperatorName
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For each parameter that the outputs see, its index, ‖∂(s_cᵀz)/∂w‖² and signs [C, n]."""
        outputs = self._run(batch)
        columns, signs = self._factor(operator, outputs, batch)
        for index, squares in self._pulled_back(outputs, columns):
            yield index, squares, signs

    def difference(self, batch: Samples) -> float:
        """Largest relative difference of a parameter's norm for one sample from autograd's.

        Of the derivative along a random direction of the outputs. The model itself is given one
        sample at a time, so that none can see another.
        """
        objective, parameters = self.objective, list(self.parameters.values())
        outputs = self._run(batch)
        direction = standard_normal(outputs[0].numel(), 0, "hessian", "exact trace")
        direction = direction.view(outputs.shape[1:]).to(outputs.device)
        shape = (len(objective.parameters), len(batch))
        # On the device: one synchronisation at the end.
        expected = torch.zeros(shape, dtype=torch.float64, device=outputs.device)
        for place, sample in enumerate(batch.batches(1)):
            alone = objective.batch_outputs(sample).double()
            each = gradients((alone * direction).sum(), parameters)
            for index, gradient in zip(self.parameters, each, strict=True):
                expected[index, place] = gradient.double().square().sum()
        found = torch.zeros_like(expected)
        for index, squares in self._pulled_back(outputs, [direction.expand_as(outputs)]):
            if squares.shape != (1, len(batch)):
                return math.inf  # the first axis of a layer is not the samples'
            found[index] = squares[0].double()
        scale = torch.maximum(expected, 1e-6 * expected.sum(0)).clamp_min(1e-300)
        return float(((found - expected).abs() / scale).amax())

    def _run(self, batch: Samples) -> Tensor:
        self.num_samples = len(batch)
        return self.objective.batch_outputs(batch, self.run).double()

    def _factor(
        self, operator: OperatorName, outputs: Tensor, batch: Samples
    ) -> tuple[list[Tensor], Tensor]:
        """Columns, like the outputs [n, ..., C], of each sample's ∂²ℓ/∂z², and their signs.

        The gradient alone for the empirical Fisher matrix.
        """
        loss = self.objective.loss_function
        if operator == "empirical-fisher":
            z = outputs.detach().requires_grad_()
            return list(torch.autograd.grad(loss(z, batch.labels).sum(), z)), z.new_ones(1, 1)
        return loss.curvature_factor(outputs, batch.labels, own_labels=operator == "fisher")

    def _pulled_back(self, outputs: Tensor, columns: list[Tensor]) -> Iterator[tuple[int, Tensor]]:
        edges = list(self.outputs.values())
        pulled = [
            torch.autograd.grad(
                (outputs * column).sum(), edges, retain_graph=True, allow_unused=True
            )
            for column in columns
        ]
        for (node, known), deltas in zip(
            self.operations.items(), zip(*pulled, strict=True), strict=True
        ):
            if deltas[0] is None:
                continue  # the outputs do not see it
            delta = torch.stack(deltas)
            for parameter in (known.weight, known.bias):
                index = self.indices.get(id(parameter))
                if parameter is not None and index is not None:
                    yield index, known.squares(parameter, self.inputs[node], delta)
