"""What a filter is, parameter by parameter: the one policy of random directions.

A filter is what produces one output of a layer (Li et al. 2018, section 4). Which parameters move
and what their filters are is read from the class and the attribute that hold them where they are
PyTorch's own, and from the shape where they are a user's.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lgo_cli.config import Normalization

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMALIZATION = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_WEIGHTS: tuple[tuple[tuple[type[nn.Module], ...], str, str], ...] = (
    ((nn.modules.conv._ConvNd,), "weight", "output channel"),
    ((nn.Linear, nn.Bilinear), "weight", "output"),
    ((nn.Embedding, nn.EmbeddingBag), "weight", "token"),
    # Rows are the units of one gate after the other.
    ((nn.RNNBase, nn.RNNCellBase), "weight_[ih]h*", "unit of a gate"),
    ((nn.RNNBase,), "weight_hr*", "output"),
    ((nn.MultiheadAttention,), "*_proj_weight", "query, key or value"),
)
"""Where PyTorch's own layers keep weights, and what a filter of each makes."""


@dataclass(frozen=True)
class Role:
    """How a parameter falls into filters.

    Attributes:
        unit: What each of its filters belongs to; or, if it has none, why.
        dim: The dimension that counts filters, or `None` if it has none.
        groups: In how many groups its leading dimension falls, each with filters of its own.
    """

    unit: str
    dim: int | None = None
    groups: int = 1

    def grouped(self, tensor: Tensor) -> Tensor:
        """A view [groups, n₀/groups, ...] of a parameter-shaped tensor [n₀, ...]."""
        shape = tensor.shape
        return tensor.view(self.groups, shape[0] // self.groups, *shape[1:])

    def norms(self, tensor: Tensor, normalization: Normalization) -> Tensor:
        """Norms of the filters, or of the layer, in float64; broadcasts against `grouped`."""
        view = self.grouped(tensor)
        keep = (0, (self.dim or 0) + 1) if normalization == "filter" else ()
        within = [dim for dim in range(view.ndim) if dim not in keep]
        norms: Tensor = torch.linalg.vector_norm(
            view, dim=within, keepdim=True, dtype=torch.float64
        )
        return norms

    def held(self, normalization: Normalization) -> str | None:
        """Why a random direction leaves such a parameter where it is; `None` if it moves."""
        return self.unit if self.dim is None and normalization != "none" else None

    def treatment(self, shape: torch.Size, normalization: Normalization) -> str:
        """What a random direction does to a parameter of a shape, in words."""
        if normalization == "none":
            return "moves, on the scale of all parameters together"
        if self.dim is None:
            return f"held: {self.unit}"
        if normalization == "layer":
            return "moves, on the scale of the whole tensor"
        groups = f" in each of {self.groups} groups" if self.groups > 1 else ""
        return f"{shape[self.dim]} filters along dim {self.dim}{groups}, one per {self.unit}"


def roles_of(model: nn.Module) -> dict[int, Role]:
    """The role of each of a model's parameters, by its id.

    A tied parameter has the role of the first module that holds it.
    """
    roles: dict[int, Role] = {}
    for module, attribute, parameter in _owned(model):
        roles.setdefault(id(parameter), _role(module, attribute, parameter.shape))
    return roles


def _owned(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Each parameter with the module that uses it and the attribute it is used as.

    Of the factors that a parametrisation makes a weight of, the largest counts as the weight (the
    direction in weight normalisation); the others are left to their shape.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            yield module, name, parameter
        if is_parametrized(module):
            assert isinstance(module.parametrizations, nn.ModuleDict)
            for name, factors in module.parametrizations.items():
                own = list(factors.parameters(recurse=False))
                largest = max((factor.numel() for factor in own), default=0)
                for factor in own:
                    if factor.numel() == largest:
                        yield module, name, factor


def _role(module: nn.Module, attribute: str, shape: torch.Size) -> Role:
    if isinstance(module, _NORMALIZATION):
        return Role("of a normalisation layer")
    if fnmatchcase(attribute, "bias*"):
        return Role("bias")
    if len(shape) < 2:
        return Role("vector")
    for classes, pattern, unit in _WEIGHTS:
        if isinstance(module, classes) and fnmatchcase(attribute, pattern):
            if isinstance(module, _TRANSPOSED):
                # [in, out/groups, ...]: an output of a group is made by the group's inputs alone.
                return Role(unit, 1, module.groups)
            return Role(unit, 0)
    return _role_by_shape(shape)


def _role_by_shape(shape: torch.Size) -> Role:
    """A matrix has its rows for filters; what is a vector but for sizes of one has none.

    Such are the scales and shifts of channels [C, 1, 1] or [n, 1], and tokens [1, 1, E]. Leading
    sizes of one count nothing: a positional embedding [1, T, E] has a row for each position.
    """
    if len(shape) == 2:
        return Role("vector") if shape[1] == 1 < shape[0] else Role("row", 0)
    long = [dim for dim, size in enumerate(shape) if size > 1]
    return Role("row", long[0]) if len(long) > 1 else Role("vector")
