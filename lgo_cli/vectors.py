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
from lgo_cli.filters import Role, roles_of
from lgo_cli.results import Movement

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lgo_cli.config import Normalization


@dataclass(frozen=True)
class ParameterLayout:
    """Where each named parameter lies in the flat vector.

    Attributes:
        names: Qualified names, in vector order.
        shapes: Shape of each parameter.
        roles: How each falls into filters, if it does.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    roles: tuple[Role, ...]

    @classmethod
    def of(cls, model: nn.Module) -> ParameterLayout:
        """Read the layout of a model's trainable parameters.

        Raises:
            UsageError: if the model has none.
        """
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not any(parameter.numel() for _, parameter in named):
            raise UsageError("the model has no trainable parameter")
        roles = roles_of(model)
        return cls(
            names=tuple(name for name, _ in named),
            shapes=tuple(p.shape for _, p in named),
            roles=tuple(roles[id(p)] for _, p in named),
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
                    f"--layers: no trainable parameter is called {pattern!r}"
                    f"{did_you_mean(pattern, known)}",
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
        """The block's own blocks that are not empty, one for each module, by its name."""
        found: dict[str, list[int]] = {}
        for index in self.members:
            found.setdefault(module_of(self.full.names[index]), []).append(index)
        blocks = {name: Block(self.full, tuple(members)) for name, members in found.items()}
        return {name: block for name, block in blocks.items() if block.dim}

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


def movements(layout: ParameterLayout, normalization: Normalization) -> list[Movement]:
    """The policy spelled out for each trainable parameter, in vector order."""
    return [
        Movement(
            name=name,
            shape=tuple(shape),
            treatment=role.treatment(shape, normalization),
            held=role.held(normalization),
        )
        for name, shape, role in zip(layout.names, layout.shapes, layout.roles, strict=True)
    ]


def normalize(
    direction: Tensor, theta: Tensor, layout: ParameterLayout, normalization: Normalization
) -> Tensor:
    """Scale a drawn direction to the parameters that it is to move.

    `filter`: d_j <- d_j ‖θ_j‖ / ‖d_j‖ for each filter j (Li et al. 2018, section 4; theory.md,
    sections 5 and 24). `layer`: the same with whole parameter tensors. In both, biases and the
    parameters of normalisation layers get zero: the perturbation moves weights only; what is zero
    in `theta` stays where it is. `none`: one factor for all entries, so that ‖d‖ = ‖θ‖; everything
    moves, biases and normalisation layers too, and a Gaussian direction stays isotropic.

    Args:
        direction: Flat vector [P].
        theta: Parameters [P] that set the scale.
        layout: Which entries form a filter.
        normalization: Which of the three.

    Returns:
        A new flat vector [P] in the dtype of `direction`.
    """
    if normalization == "none":
        length = norm(direction)
        return direction * (norm(theta) / length if length > 0 else 0.0)
    scaled = []
    for d, w, role in zip(layout.split(direction), layout.split(theta), layout.roles, strict=True):
        if role.dim is None:
            scaled.append(torch.zeros_like(d))
            continue
        norm_d, norm_w = (role.norms(tensor, normalization) for tensor in (d, w))
        # A drawn filter is zero with probability 0, but a given one (a gradient) may be.
        ratio = torch.where(norm_d > 0, norm_w / norm_d, torch.zeros_like(norm_d))
        scaled.append((role.grouped(d.double()) * ratio).to(d.dtype).view(d.shape))
    return flatten(scaled)


def root_mean_square(
    theta: Tensor, layout: ParameterLayout, normalization: Normalization
) -> Tensor:
    """The diagonal s [P], float64, with E ddᵀ = diag(s²) over normalised Gaussian directions d.

    Each part of d is uniform on a sphere of radius ‖θ_j‖ in n_j dimensions, and parts are
    independent, hence s = ‖θ_j‖/√n_j on filter (or layer) j, 0 on what is held, and with `none`
    ‖θ‖/√P everywhere (theory.md, section 24).
    """
    if normalization == "none":
        return torch.full_like(theta, norm(theta) / math.sqrt(len(theta)), dtype=torch.float64)
    pieces = []
    for w, role in zip(layout.split(theta), layout.roles, strict=True):
        if role.dim is None:
            pieces.append(torch.zeros_like(w, dtype=torch.float64))
            continue
        norms = role.norms(w, normalization)
        size = w.numel() // norms.numel()
        pieces.append((norms / math.sqrt(size)).expand_as(role.grouped(w)))
    return flatten(pieces)


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


def fix_sign_(vectors: Tensor) -> Tensor:
    """Turn vectors [..., P] round in place so that the entry of largest magnitude is positive."""
    high, low = vectors.max(dim=-1, keepdim=True), vectors.min(dim=-1, keepdim=True)
    tied = high.values == -low.values  # then the first of the two decides
    positive = torch.where(tied, high.indices <= low.indices, high.values > -low.values)
    return vectors.mul_(positive.to(vectors.dtype).mul_(2).sub_(1))


def combine(origin: Tensor, terms: Sequence[tuple[float, Tensor]], out: Tensor) -> Tensor:
    """Write origin + Σ c·d into `out`, each point from the origin and never by steps.

    Args:
        origin: A flat vector, or any tensor.
        terms: Pairs of a coordinate and a tensor of that shape.
        out: To write to; not `origin`.
    """
    if not terms:
        return out.copy_(origin)
    (first, direction), *rest = terms
    torch.add(origin, direction, alpha=first, out=out)
    for coordinate, direction in rest:
        out.add_(direction, alpha=coordinate)
    return out
