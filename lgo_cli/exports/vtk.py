"""VTK image data, as ParaView reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy import ndarray as Array

from lgo_cli.exports.tables import CONVEXITY

if TYPE_CHECKING:
    from collections.abc import Mapping

NUMBERS_PER_LINE = 6


def vti_files(
    command: str, arrays: Mapping[str, Any], results: Mapping[str, Any]
) -> dict[str, bytes]:
    """A surface as `.vti`: a uniform grid of nx × ny × 1 points, x running fastest.

    In ParaView: Warp By Scalar by `loss` or `log10_loss`. What is not finite is NaN, which ParaView
    leaves blank; VTK's text form has no infinity. Where the coordinates' last bits stray from
    origin + spacing · index, the arrays `x` and `y` have them exactly.

    Args:
        command: Only `contour` has a surface.
        arrays: Of `contour.npz`.
        results: Of `lgo contour`.
    """
    del results
    if command != "contour":
        return {}
    files = {"contour.vti": _image(arrays["x"], arrays["y"], _surface(arrays))}
    if "convexity_x" in arrays:
        values = {name: arrays[key] for name, key in CONVEXITY.items()}
        coordinates = arrays["convexity_x"], arrays["convexity_y"]
        files["contour_convexity.vti"] = _image(*coordinates, values)
    return files


def _surface(arrays: Mapping[str, Any]) -> dict[str, Array]:
    loss = np.asarray(arrays["loss"], dtype=float)
    X, Y = np.meshgrid(arrays["x"], arrays["y"])
    positive = np.where(loss > 0, loss, np.nan)
    values = {"loss": loss, "log10_loss": np.log10(positive), "x": X, "y": Y}
    names = ("accuracy", "standard_error", "measured", "error_estimate")
    more = (*names, "test_loss", *(f"test_{name}" for name in names))
    return values | {name: arrays[name] for name in more if name in arrays}


def _image(x: Array, y: Array, values: Mapping[str, Array]) -> bytes:
    """The XML of arrays [ny, nx], the first of which is the one that is shown."""
    nx, ny = len(x), len(y)
    extent = f"0 {nx - 1} 0 {ny - 1} 0 0"
    origin = f"{float(x[0])!r} {float(y[0])!r} 0.0"
    dx, dy = (float(c[-1] - c[0]) / (len(c) - 1) for c in (x, y))
    lines = [
        '<?xml version="1.0"?>',
        '<VTKFile type="ImageData" version="1.0" byte_order="LittleEndian">',
        f'<ImageData WholeExtent="{extent}" Origin="{origin}" Spacing="{dx!r} {dy!r} 1.0">',
        f'<Piece Extent="{extent}">',
        f"<PointData Scalars={quoteattr(next(iter(values)))}>",
    ]
    for name, array in values.items():
        lines += _data_array(name, array)
    lines += ["</PointData>", "</Piece>", "</ImageData>", "</VTKFile>", ""]
    return "\n".join(lines).encode()


def _data_array(name: str, array: Array) -> list[str]:
    if array.dtype == bool:
        kind, texts = "UInt8", [str(int(value)) for value in array.ravel()]
    else:
        kind = "Float64"
        flat = array.ravel().astype(float)
        texts = [repr(float(value)) if np.isfinite(value) else "NaN" for value in flat]
    rows = [
        " ".join(texts[start : start + NUMBERS_PER_LINE])
        for start in range(0, len(texts), NUMBERS_PER_LINE)
    ]
    head = f'<DataArray type="{kind}" Name={quoteattr(name)} format="ascii">'
    return [head, *rows, "</DataArray>"]
