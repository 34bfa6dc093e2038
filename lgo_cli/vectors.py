"""Named parameters as one flat vector, and the geometry that needs to know which entry is whose.

Shapes: P is the number of trainable parameters, tied ones counted once and frozen ones left out, in
the order of `named_parameters()`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lgo_cli.arguments import did_you_mean
from lgo_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMALIZATION = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class ParameterLayout:
    """Where each named parameter lies in the flat vector.

    Attributes:
        names: Qualified names, in vector order.
        shapes: Shape of each parameter.
        filter_dims: The dimension that counts output filters (0 for linear, convolution and
            embedding weights, 1 for transposed convolutions), or `None` for biases and the
            parameters of normalisation layers, which have no filters.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    filter_dims: tuple[int | None, ...]

    @classmethod
    def of(cls, model: nn.Module) -> ParameterLayout:
        """Read the layout of a model's trainable parameters.

        Raises:
            UsageError: if the model has none.
        """
        filter_dims: dict[int, int | None] = {}
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                if parameter.ndim < 2 or isinstance(module, _NORMALIZATION):
                    filter_dims.setdefault(id(parameter), None)
                else:
                    filter_dims.setdefault(id(parameter), int(isinstance(module, _TRANSPOSED)))
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise UsageError("the model has no trainable parameter")
        return cls(
            names=tuple(name for name, _ in named),
            shapes=tuple(p.shape for _, p in named),
            filter_dims=tuple(filter_dims[id(p)] for _, p in named),
        )

    @property
    def sizes(self) -> list[int]:
        """Number of entries of each parameter."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def dim(self) -> int:
        """P, the number of entries of the flat vector."""
        return sum(self.sizes)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Views of a flat vector [P], one per parameter and in its shape."""
        pieces = torch.split(vector, self.sizes)
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]


@dataclass(frozen=True)
class Block:
    """Some of a layout's parameters, as a flat vector of their own.

    Attributes:
        full: The layout that it is a part of, of P entries.
        members: Indices of its parameters in `full`, ascending.
    """

    full: ParameterLayout
    members: tuple[int, ...]

    @classmethod
    def whole(cls, full: ParameterLayout) -> Block:
        """All of a layout."""
        return cls(full, tuple(range(len(full.names))))

    @classmethod
    def matching(cls, full: ParameterLayout, patterns: Sequence[str]) -> Block:
        """The parameters whose name, or whose module's name, fits one of some shell patterns.

        Raises:
            UsageError: if a pattern fits nothing.
        """
        members: set[int] = set()
        for pattern in patterns:
            fitting = {
                index
                for index, name in enumerate(full.names)
                if fnmatchcase(name, pattern) or fnmatchcase(module_of(name), pattern)
            }
            if not fitting:
                known = dict.fromkeys(map(module_of, full.names))
                raise UsageError(
                    f"--layers: no parameter is called {pattern!r}{did_you_mean(pattern, known)}",
                    hint=f"a module's or a parameter's name, or a pattern: {', '.join(known)}",
                )
            members |= fitting
        return cls(full, tuple(sorted(members)))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its parameters."""
        return tuple(self.full.names[index] for index in self.members)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return len(self.members) == len(self.full.names)

    @property
    def dim(self) -> int:
        """Entries of a vector of the block."""
        sizes = self.full.sizes
        return sum(sizes[index] for index in self.members)

    def modules(self) -> dict[str, Block]:
        """The block's own blocks, one for each module with parameters, by the module's name."""
        found: dict[str, list[int]] = {}
        for index in self.members:
            found.setdefault(module_of(self.full.names[index]), []).append(index)
        return {name: Block(self.full, tuple(members)) for name, members in found.items()}

    def split(self, vector: Tensor) -> list[Tensor]:
        """Views of a vector of the block, one per parameter and in its shape."""
        sizes, shapes = self.full.sizes, self.full.shapes
        pieces = torch.split(vector, [sizes[index] for index in self.members])
        return [
            piece.view(shapes[index]) for piece, index in zip(pieces, self.members, strict=True)
        ]

    def extract(self, vectors: Tensor) -> Tensor:
        """The block's entries of vectors [..., P]."""
        if self.is_whole:
            return vectors
        pieces = torch.split(vectors, self.full.sizes, dim=-1)
        return torch.cat([pieces[index] for index in self.members], dim=-1)

    def embed(self, vectors: Tensor) -> Tensor:
        """Vectors of the block as vectors [..., P], zero elsewhere."""
        if self.is_whole:
            return vectors
        result = vectors.new_zeros(*vectors.shape[:-1], self.full.dim)
        sizes = self.full.sizes
        targets = torch.split(result, sizes, dim=-1)
        parts = torch.split(vectors, [sizes[index] for index in self.members], dim=-1)
        for index, part in zip(self.members, parts, strict=True):
            targets[index].copy_(part)
        return result


def module_of(parameter: str) -> str:
    """Name of the module that a parameter belongs to; its own, for one of the model itself."""
    return parameter.rpartition(".")[0] or parameter


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Concatenate tensors into one new flat vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def filter_normalize(direction: Tensor, theta: Tensor, layout: ParameterLayout) -> Tensor:
    """Scale each filter of `direction` to the norm of the same filter of `theta`.

    d_ij <- d_ij ‖θ_ij‖ / ‖d_ij‖ for filter j of layer i (Li et al. 2018, section 4; theory.md,
    section 5). Biases and the parameters of normalisation layers get zero:
    the perturbation moves weights only. A filter that is zero in `theta` stays where it is.

    Args:
        direction: Flat vector [P].
        theta: Parameters [P] that set the scale.
        layout: Which entries form a filter.

    Returns:
        A new flat vector [P] in the dtype of `direction`.
    """
    scaled = []
    pieces = zip(layout.split(direction), layout.split(theta), layout.filter_dims, strict=True)
    for d, w, filter_dim in pieces:
        if filter_dim is None:
            scaled.append(torch.zeros_like(d))
            continue
        within = [dim for dim in range(d.ndim) if dim != filter_dim]
        norm_d = torch.linalg.vector_norm(d.double(), dim=within, keepdim=True)
        norm_w = torch.linalg.vector_norm(w.double(), dim=within, keepdim=True)
        # A drawn filter is zero with probability 0, but a given one (a gradient) may be.
        ratio = torch.where(norm_d > 0, norm_w / norm_d, torch.zeros_like(norm_d))
        scaled.append((d.double() * ratio).to(d.dtype))
    return flatten(scaled)


def dot(a: Tensor, b: Tensor) -> float:
    """Inner product of two flat vectors, accumulated in float64."""
    return float(torch.dot(a.double(), b.double()))


def norm(a: Tensor) -> float:
    """Euclidean norm of a flat vector, accumulated in float64."""
    return float(torch.linalg.vector_norm(a, dtype=torch.float64))


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two flat vectors; 0 if one of them is zero."""
    scale = norm(a) * norm(b)
    return dot(a, b) / scale if scale > 0 else 0.0


def fix_sign(vectors: Tensor) -> Tensor:
    """Return vectors [..., P] or their negatives: the entry of largest magnitude is positive."""
    largest = vectors.gather(-1, vectors.abs().argmax(dim=-1, keepdim=True))
    return torch.where(largest >= 0, vectors, -vectors)


def combine(origin: Tensor, terms: Sequence[tuple[float, Tensor]], out: Tensor) -> Tensor:
    """Write origin + Σ c·d into `out`, each point from the origin and never by steps.

    Args:
        origin: Flat vector [P].
        terms: Pairs of a coordinate and a flat vector [P].
        out: Flat vector [P] to write to; not `origin`.
    """
    if not terms:
        return out.copy_(origin)
    (first, direction), *rest = terms
    torch.add(origin, direction, alpha=first, out=out)
    for coordinate, direction in rest:
        out.add_(direction, alpha=coordinate)
    return out
