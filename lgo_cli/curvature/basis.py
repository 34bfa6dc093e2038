"""An orthonormal basis of long vectors, in memory or on disk."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lgo_cli.errors import MachineError

if TYPE_CHECKING:
    from pathlib import Path

BLOCK_ROWS = 32
_CHUNK_COLUMNS = 2**16


class Basis:
    """Orthonormal rows [m, P], held in blocks that are allocated as they fill.

    Args:
        dim: P.
        dtype: Of the rows.
        device: Where they are, and where arithmetic with them is done.
        directory: If given, blocks are files there, mapped into memory and without a name, so that
            nothing remains of them whatever happens.
    """

    def __init__(
        self,
        dim: int,
        dtype: torch.dtype,
        device: torch.device,
        directory: Path | None = None,
    ) -> None:
        self.dim = dim
        self.dtype = dtype
        self.device = torch.device("cpu") if directory is not None else device
        self.directory = directory
        self._blocks: list[Tensor] = []
        self._num_rows = 0

    def __len__(self) -> int:
        return self._num_rows

    @property
    def newest(self) -> Tensor:
        """The last row [P]."""
        index, row = divmod(self._num_rows - 1, BLOCK_ROWS)
        return self._blocks[index][row]

    def rows(self, num_rows: int | None = None) -> list[Tensor]:
        """The first rows, by default all, as blocks [≤ 32, P]."""
        full, rest = divmod(self._num_rows if num_rows is None else num_rows, BLOCK_ROWS)
        return [*self._blocks[:full], *([self._blocks[full][:rest]] if rest else [])]

    def append(self, vector: Tensor) -> None:
        """Add a vector [P], scaled to unit norm; it is orthogonal to the rows already.

        Raises:
            MachineError: if the disk is full.
        """
        index, row = divmod(self._num_rows, BLOCK_ROWS)
        if index == len(self._blocks):
            self._blocks.append(self._new_block(min(BLOCK_ROWS, self.dim - self._num_rows)))
        norm = torch.linalg.vector_norm(vector, dtype=torch.float64)
        torch.div(vector, norm.to(vector.dtype), out=self._blocks[index][row])
        self._num_rows += 1

    def drop_newest(self) -> None:
        """Forget the last row."""
        self._num_rows -= 1

    def project_out(
        self, vector: Tensor, num_rows: int | None = None, *, last: int | None = None
    ) -> Tensor:
        """Subtract from `vector`, in place, its part in some rows, by default in all.

        Args:
            vector: [P].
            num_rows: In the first rows only.
            last: Of these, in the last only.

        Returns:
            The coefficients [m], float64.
        """
        rows = self.rows(num_rows)
        if last is not None:
            rows = [row for block in rows[-last:] for row in torch.split(block, 1)][-last:]
        coefficients = [_product(block, vector).to(vector.dtype) for block in rows]
        for block, part in zip(rows, coefficients, strict=True):
            vector.addmv_(block.T, part, alpha=-1)
        return torch.cat(coefficients).double()

    def combine(self, weights: np.ndarray) -> Tensor:
        """Combinations [k, P] of the first rows, by weights [k, m]."""
        factors = self._factors(weights)
        result = torch.zeros(len(weights), self.dim, dtype=self.dtype, device=self.device)
        for index, block in enumerate(self.rows(weights.shape[1])):
            start = index * BLOCK_ROWS
            result.addmm_(factors[:, start : start + len(block)], block)
        return result

    def replace(self, weights: np.ndarray) -> None:
        """Replace the rows by combinations [k, m] of them, in place, k ≤ m.

        Some columns at a time, so that they need no second basis.
        """
        factors, rows = self._factors(weights), self.rows(weights.shape[1])
        for start in range(0, self.dim, _CHUNK_COLUMNS):
            columns = slice(start, start + _CHUNK_COLUMNS)
            combined = factors @ torch.cat([block[:, columns] for block in rows])
            for index in range(0, len(weights), BLOCK_ROWS):
                part = combined[index : index + BLOCK_ROWS]
                self._blocks[index // BLOCK_ROWS][: len(part), columns] = part
        self._num_rows = len(weights)

    def orthogonality(self) -> float:
        """Largest entry of |QQᵀ − I|."""
        rows = self.rows()
        worst = torch.zeros((), dtype=torch.float64, device=self.device)
        for i, block in enumerate(rows):
            for j, other in enumerate(rows[: i + 1]):
                gram = _product(block, other.T)
                if i == j:
                    gram.diagonal().sub_(1)
                worst = torch.maximum(worst, gram.abs().amax())
        return float(worst)

    def _factors(self, weights: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(weights)).to(self.device, self.dtype)

    def _new_block(self, num_rows: int) -> Tensor:
        if self.directory is None:
            return torch.empty(num_rows, self.dim, dtype=self.dtype, device=self.device)
        num_bytes = num_rows * self.dim * self.dtype.itemsize
        try:
            with tempfile.TemporaryFile(dir=self.directory) as handle:
                if hasattr(os, "posix_fallocate"):
                    # Now, since a mapped page that finds no room later kills the process.
                    os.posix_fallocate(handle.fileno(), 0, num_bytes)
                else:  # macOS, Windows
                    handle.truncate(num_bytes)
                block = np.memmap(handle, mode="r+", shape=(num_bytes,), dtype=np.uint8)
        except OSError as error:
            raise MachineError(
                f"no room for {num_bytes / 2**20:.0f} MiB of the basis in {self.directory}: "
                f"{error.strerror}",
                hint="a smaller --max-basis, or --out on a larger disk",
            ) from error
        return torch.from_numpy(block).view(self.dtype).view(num_rows, self.dim)


def _product(rows: Tensor, vectors: Tensor) -> Tensor:
    """Rows [m, P] times a vector [P] or some [P, k], in float64.

    Sums of ten million products in float32 are off by 6e-4, and by 2e-7 where those of some columns
    at a time are added up in float64.
    """
    columns = torch.split(rows, _CHUNK_COLUMNS, dim=1)
    pieces = zip(columns, torch.split(vectors, _CHUNK_COLUMNS), strict=True)
    return torch.stack([part @ piece for part, piece in pieces]).double().sum(dim=0)
