"""Every figure that is drawn of an analysis: its stem, the arrays it needs, who draws it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lgo_cli.figures.bands import draw_bands
from lgo_cli.figures.interpolation import draw_interpolation
from lgo_cli.figures.maps import draw_convexity, draw_error_map, draw_matrix
from lgo_cli.figures.perspective import draw_surface_3d
from lgo_cli.figures.spectrum import draw_spectrum
from lgo_cli.figures.surface import draw_contour, draw_test_contour
from lgo_cli.figures.training import draw_training

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from matplotlib.figure import Figure

    from lgo_cli.config import FigureConfig

DRAWINGS: dict[str, tuple[str, Any]] = {
    "train": ("train_loss", draw_training),
    "hessian": ("largest", draw_spectrum),
    "interp_1d": ("loss", draw_interpolation),
    "interp_matrix": ("matrix_barrier", draw_matrix),
    "contour_2d": ("loss", draw_contour),
    "contour_3d": ("loss", draw_surface_3d),
    "contour_test": ("test_loss", draw_test_contour),
    "contour_error": ("error_estimate", draw_error_map),
    "contour_convexity": ("convexity_ratio", draw_convexity),
    "contour_bands": ("profile_radius", draw_bands),
}
"""By stem: an array without which there is nothing to draw, and the function that draws it."""


def draw(
    stems: Iterable[str],
    arrays: Mapping[str, Any],
    results: Mapping[str, Any],
    figure: FigureConfig,
) -> dict[str, Figure]:
    """Draw those of a step's figures whose arrays are there.

    Args:
        stems: File names without extension.
        arrays: Of the step's `.npz`, or of `train.csv` by column.
        results: Of the step, as plain JSON values.
        figure: How they are to be.
    """
    drawn = {}
    for stem in stems:
        needed, function = DRAWINGS[stem]
        if needed in arrays:
            dotted = function in (draw_contour, draw_test_contour)
            more = {"show_cells": figure.show_cells} if dotted else {}
            drawn[stem] = function(arrays, results, figure.inches, **more)
    return drawn
