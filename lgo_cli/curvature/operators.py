"""Symmetric linear maps that are known only by their products with vectors."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lgo_cli.vectors import flatten

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lgo_cli.objective import Objective, Samples


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

    @abstractmethod
    def _product(self, vector: Tensor) -> Tensor: ...


class DenseOperator(Operator):
    """A symmetric matrix [P, P], so that estimators can be tested without a network."""

    def __init__(self, matrix: Tensor) -> None:
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

    To be used inside the objective's context and while it stands at its centre.

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
        if memory_bytes is None:
            memory_bytes = total_memory_bytes(objective.device) // 2
        batches = list(objective.micro_batches())
        first, num_bytes = self._measured_gradient(batches[0])
        self.keeps_graph = num_bytes * len(batches) <= memory_bytes
        if self.keeps_graph:
            self._gradients = [first, *(self._gradient(batch) for batch in batches[1:])]

    def _gradient(self, batch: Samples) -> Sequence[Tensor]:
        """The batch's share of the gradient, as a graph that can be differentiated again."""
        share = self.objective.batch_loss(batch)
        return torch.autograd.grad(
            share, self.objective.parameters, create_graph=True, materialize_grads=True
        )

    def _measured_gradient(self, batch: Samples) -> tuple[Sequence[Tensor], int]:
        """The same, and the bytes that its graph keeps beside the parameters and the samples."""
        known = {parameter.untyped_storage().data_ptr() for parameter in self.objective.parameters}
        known.add(batch.inputs.untyped_storage().data_ptr())
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
        total = torch.zeros(self.dim, dtype=self.dtype, device=self.device)
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
        return total


def total_memory_bytes(device: torch.device) -> int:
    """Memory of the device, for a CPU that of the machine or of its cgroup if that is less."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return total if text == "max" else min(total, int(text))
