"""Symmetric linear maps that are known only by their products with vectors."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lgo_cli.vectors import flatten

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from lgo_cli.objective import Objective, Samples


ROUNDING_UNITS = 16.0
"""Rounding of a product, in units of eps·‖H‖, that any operator is allowed. A product is a chain of
a few sums, each off by a few eps of its result when summed in blocks: on networks in float32 whose
logits are small, ‖fl(H) − H‖ is 1 to 3 units (tests/test_operators.py)."""


CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Where versions 2 and 1 of control groups keep a container's limit."""


class Operator(ABC):
    """A symmetric linear map on vectors [P].

    Attributes:
        dim: P.
        dtype: Of vectors and products.
        device: Where they are.
        num_matvecs: Products computed so far, the unit of cost.
    """

    def __init__(self, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self.dim = dim
        self.dtype = dtype
        self.device = device
        self.num_matvecs = 0

    def matvec(self, vector: Tensor) -> Tensor:
        """The product with a vector [P], a new vector [P]."""
        self.num_matvecs += 1
        return self._product(vector)

    @property
    def rounding(self) -> float:
        """‖fl(Hv) − Hv‖ to allow for unit v, in units of eps·‖H‖, eps of `dtype`.

        To be asked after a product, when the operator has seen its numbers.
        """
        return ROUNDING_UNITS

    @abstractmethod
    def _product(self, vector: Tensor) -> Tensor: ...


class DenseOperator(Operator):
    """A symmetric matrix [P, P], so that estimators can be tested without a network.

    Raises:
        ValueError: if the matrix is not square.
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"an operator needs a square matrix, not {tuple(matrix.shape)}")
        super().__init__(matrix.shape[0], matrix.dtype, matrix.device)
        self.matrix = matrix

    def _product(self, vector: Tensor) -> Tensor:
        return self.matrix @ vector


class HessianOperator(Operator):
    """The Hessian ∇²L at an objective's centre, by double backward (Pearlmutter 1994).

    Hv = ∇(gᵀv), with g = ∇L built once as a differentiable graph for each micro-batch. The graphs
    are kept between products if all of them fit into half of the machine's memory; otherwise they
    are built again for each product. Both ways do the same operations on the same micro-batches in
    the same order: the choice moves no bit. A product then costs about 3 forward passes of a
    multilayer perceptron with the graphs kept, 5 without.

    The loss is taken of the model's outputs in float64, whatever the model's dtype. In float32 the
    second derivative of cross entropy, p(1 − p), loses its digits where p nears one: on networks
    that fit their samples ‖fl(H) − H‖ was 6e-4·‖H‖, and is 2e-6·‖H‖ for a cast of [n, C] numbers.

    To be used inside the objective's context and while it stands at its centre. The graphs are
    freed with the operator.

    Args:
        objective: Whose Hessian.
        memory_bytes: What the graphs may take; by default half of the total memory (the cgroup's
            limit, if lower), never of what happens to be free, so that equal runs choose equally.

    Attributes:
        keeps_graph: Whether the graphs are kept.
    """

    def __init__(self, objective: Objective, memory_bytes: int | None = None) -> None:
        super().__init__(objective.dim, objective.dtype, objective.device)
        self.objective = objective
        self._gradients: list[Sequence[Tensor]] = []
        self._largest_output = torch.zeros((), device=self.device, dtype=torch.float64)
        if memory_bytes is None:
            memory_bytes = total_memory_bytes(objective.device) // 2
        batches = list(objective.micro_batches())
        first, num_bytes = self._measured_gradient(batches[0])
        self.keeps_graph = num_bytes * len(batches) <= memory_bytes
        if self.keeps_graph:
            self._gradients = [first, *(self._gradient(batch) for batch in batches[1:])]

    @property
    def rounding(self) -> float:
        """Units of eps·‖H‖ allowed for a product; grows with the model's largest output.

        A logit z that is rounded once is off by up to (eps/2)·|z|, and p(1 − p) by that much of
        itself. Such an error is the same in each product, hence a symmetric one that no asymmetry
        betrays: it must be allowed for beforehand.

        What a model amplifies within itself is not seen. Of 40 small networks, fitted or not, the
        allowance held on all but two: a softmax over large attention scores, where an eigenvalue
        was off by 3.6 times its bound, 1e-5·‖H‖. For such a model take float64.
        """
        return ROUNDING_UNITS + float(self._largest_output) / 2

    @contextmanager
    def _float64_outputs(self) -> Iterator[None]:
        """Cast the model's outputs to float64, and note the largest, without a synchronisation."""

        def cast(module: nn.Module, inputs: object, outputs: Tensor) -> Tensor:
            del module, inputs
            largest = outputs.detach().abs().amax().double()
            self._largest_output = torch.maximum(self._largest_output, largest)
            return outputs.double()

        handle = self.objective.model.register_forward_hook(cast)
        try:
            yield
        finally:
            handle.remove()

    def _gradient(self, batch: Samples) -> Sequence[Tensor]:
        """The batch's share of the gradient, as a graph that can be differentiated again."""
        with self._float64_outputs():
            share = self.objective.batch_loss(batch)
        return torch.autograd.grad(
            share, self.objective.parameters, create_graph=True, materialize_grads=True
        )

    def _measured_gradient(self, batch: Samples) -> tuple[Sequence[Tensor], int]:
        """The same, and the bytes that its graph keeps and no other batch's graph shares."""
        model = self.objective.model
        shared = [*model.parameters(), *model.buffers(), batch.inputs, batch.labels]
        known = {tensor.untyped_storage().data_ptr() for tensor in shared}
        num_bytes = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal num_bytes
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                known.add(storage.data_ptr())
                num_bytes += storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            return self._gradient(batch), num_bytes

    def _product(self, vector: Tensor) -> Tensor:
        pieces = self.objective.layout.split(vector.to(self.dtype))
        # In float64, so that the number of micro-batches adds no rounding.
        total = torch.zeros(self.dim, dtype=torch.float64, device=self.device)
        for gradient in self._gradients or map(self._gradient, self.objective.micro_batches()):
            # A parameter in which the loss is linear has a constant gradient: its row is zero.
            curved = [(g, v) for g, v in zip(gradient, pieces, strict=True) if g.requires_grad]
            if not curved:
                continue
            total += flatten(
                torch.autograd.grad(
                    [g for g, _ in curved],
                    self.objective.parameters,
                    grad_outputs=[v for _, v in curved],
                    retain_graph=self.keeps_graph,
                    materialize_grads=True,
                )
            )
        return total.to(self.dtype)


def total_memory_bytes(device: torch.device) -> int:
    """Memory of the device, for a CPU that of the machine or of its cgroup if that is less."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in CGROUP_LIMITS:
        text = limit.read_text().strip() if limit.is_file() else "max"
        total = total if text == "max" else min(total, int(text))
    return total
