"""Figures as files, equal bytes for equal figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

from lgo_cli.figures.style import house_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    "svg": {"Date": None, "Creator": None},
}


def save_figure(figure: Figure, handle: BinaryIO, format: str, dpi: int) -> None:
    """Write a figure without dates and versions.

    Args:
        figure: Drawn in the house style.
        handle: Open for writing bytes.
        format: `png`, `pdf` or `svg`.
        dpi: Pixels per inch, of a `png` and of a surface in perspective.
    """
    with house_style():
        figure.savefig(handle, format=format, dpi=dpi, metadata=_METADATA[format])
