"""Directions from files: as they are, or refused."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Lgo
from image_network import network, unit
from torch import Tensor

from lgo_cli import checkpoint
from lgo_cli.errors import InputError, UsageError
from lgo_cli.runs.directions import has_bends, read_curve, read_directions
from lgo_cli.vectors import ParameterLayout, flatten


def _layout() -> ParameterLayout:
    return ParameterLayout.of(network())


def test_both_kinds_of_files_hold_the_bits(tmp_path: Path) -> None:
    layout = _layout()
    both = torch.stack([unit(layout.dim, 1), unit(layout.dim, 2)])
    np.savez(tmp_path / "d.npz", directions=both.numpy(), loss=np.zeros(3))
    assert torch.equal(read_directions([tmp_path / "d.npz"], network()), both)
    for index, vector in enumerate(both):
        pieces = dict(zip(layout.names, layout.split(vector), strict=True))
        # In another order, and with a buffer of the model's that no direction moves.
        state = dict(reversed(pieces.items())) | {"1.running_mean": torch.ones(4)}
        checkpoint.save({k: v.clone() for k, v in state.items()}, tmp_path / f"{index}.pth")
    assert torch.equal(read_directions([tmp_path / "0.pth", tmp_path / "1.pth"], network()), both)
    np.savez(tmp_path / "single.npz", directions=both.float().numpy())
    assert torch.equal(read_directions([tmp_path / "single.npz"], network()), both.float().double())


def test_difference_of_two_checkpoints(tmp_path: Path) -> None:
    model, layout = network(), _layout()
    state = {name: torch.randn_like(value) if value.is_floating_point() else value
             for name, value in model.state_dict().items()}  # fmt: skip
    checkpoint.save(state, tmp_path / "a.pth")
    found = read_directions([tmp_path / "a.pth", tmp_path / "a.pth"], network())
    assert torch.equal(found[0], flatten(state[name].double() for name in layout.names))


def _saved(path: Path, layout: ParameterLayout, bias: Tensor | None) -> Path:
    """A direction of ones, but for the head's bias, which is left out if there is none."""
    state = {
        name: torch.ones(shape) for name, shape in zip(layout.names, layout.shapes, strict=True)
    }
    del state["4.bias"]
    checkpoint.save(state if bias is None else {**state, "4.bias": bias}, path)
    return path


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (None, "is no direction of the model: 4.bias is missing"),
        (torch.zeros(2), r"4.bias has shape \[2\], the model's has \[3\]"),
        (torch.full((3,), torch.nan), "4.bias has values that are not finite"),
        (torch.full((3,), 1j), "4.bias is complex"),
    ],
)
def test_state_dicts_that_are_no_directions(
    bias: Tensor | None, message: str, tmp_path: Path
) -> None:
    layout = _layout()
    good = _saved(tmp_path / "good.pth", layout, torch.ones(3))
    bad = _saved(tmp_path / "bad.pth", layout, bias)
    for paths in ([good, bad], [bad, good]):
        with pytest.raises(InputError, match=message):
            read_directions(paths, network())


def test_arrays_that_are_no_directions(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    with pytest.raises(InputError, match="cannot read"):
        read_directions([path], network())
    np.savez(path, other=np.zeros(3))
    with pytest.raises(InputError, match="no array called directions"):
        read_directions([path], network())
    np.savez(path, directions=np.array(["a", "b"]))
    with pytest.raises(InputError, match="not real numbers"):
        read_directions([path], network())
    np.savez(path, directions=np.zeros((2, 3), complex))
    with pytest.raises(InputError, match="complex128, not real"):
        read_directions([path], network())
    # A pickle could run code.
    np.savez(path, directions=np.array([{}, {}], dtype=object))
    with pytest.raises(InputError, match="not a readable"):
        read_directions([path], network())
    for damage in (b"", b"PK\x03\x04 cut", b"no zip at all"):
        path.write_bytes(damage)
        with pytest.raises(InputError, match="not a readable"):
            read_directions([path], network())
    np.save(tmp_path / "one.npy", np.zeros((2, 3)))
    with pytest.raises(InputError, match="a single array"):
        read_directions([(tmp_path / "one.npy").rename(path)], network())
    np.savez(path, directions=np.zeros((2, 40_000)))
    path.write_bytes(path.read_bytes()[:300_000])
    with pytest.raises(InputError, match="not a readable"):
        read_directions([path], network())


def test_curve_beside_directions(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    arc = np.array([[0.0, 0.0], [0.5, 0.1], [1.0, 0.0]])
    np.savez(path, plane_path=arc, directions=np.zeros((2, 3)))
    alone = read_curve([path])
    assert alone is not None
    assert alone.points.tolist() == [[0.0, 0.0], [1.0, 0.0]]
    assert alone.distances.tolist() == [0.0, 0.0]
    points, distances = np.array([[0.0, 0.0], [0.5, 0.2], [1.0, 0.0]]), np.array([0.0, 0.3, 0.0])
    np.savez(path, plane_path=arc, plane_coordinates=points, plane_distances=distances)
    full = read_curve([path])
    assert full is not None
    for found, wanted in zip(
        (full.path, full.points, full.distances), (arc, points, distances), strict=True
    ):
        assert np.array_equal(found, wanted)
    np.savez(path, directions=np.zeros((2, 3)), plane_coordinates=points)
    assert read_curve([path]) is None
    assert read_curve([tmp_path / "a.pth", tmp_path / "b.pth"]) is None


def test_bends_are_looked_for_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, bends=np.ones((3, 1000)), directions=np.zeros((2, 3)))
    content = path.read_bytes()
    ones = np.ones((3, 1000)).tobytes()
    path.write_bytes(content.replace(ones, b"\1" * len(ones)))  # what reading them would refuse
    with pytest.raises(zipfile.BadZipFile), np.load(path) as arrays:
        arrays["bends"]
    assert has_bends([path])
    assert not has_bends([path, path])
    np.savez(path, directions=np.zeros((2, 3)))
    assert not has_bends([path])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("plane_path", np.zeros((3, 3))),
        ("plane_path", np.zeros((1, 2))),
        ("plane_path", np.array([[0.0, 0.0], [np.nan, 1.0]])),
        ("plane_path", np.array([["a", "b"], ["c", "d"]])),
        ("plane_path", np.array(1.0)),
        ("plane_coordinates", np.zeros(4)),
        ("plane_distances", np.zeros((2, 2))),
    ],
)
def test_arrays_that_are_no_curve(name: str, values: np.ndarray[Any, Any], tmp_path: Path) -> None:
    good = {"plane_path": np.eye(2), "plane_coordinates": np.eye(2), "plane_distances": np.ones(2)}
    np.savez(tmp_path / "d.npz", **{**good, name: values})
    with pytest.raises(InputError, match=rf"{name} is not \[n.*finite numbers"):
        read_curve([tmp_path / "d.npz"])


@pytest.mark.parametrize(
    ("path", "extent"), [(np.zeros((2, 2)), "0"), (np.array([[-1e308, 0.0], [1e308, 0.0]]), "inf")]
)
def test_curve_that_no_range_goes_around(
    path: np.ndarray[Any, Any], extent: str, small_run: Path, lgo: Lgo
) -> None:
    dim = json.loads((small_run / "train.json").read_text())["results"]["num_parameters"]
    np.savez("d.npz", directions=np.eye(2, dim), plane_path=path)
    line = ("contour", small_run, "--directions", "d.npz", "--resolution", 3)
    error = lgo(*line, code=3).stderr
    assert f"the points on the plane span {extent} of its coordinates" in error
    # A point elsewhere is a curve to be seen.
    np.savez("d.npz", directions=np.eye(2, dim), plane_path=np.ones((2, 2)))
    lgo(*line)
    own = small_run / "contour.npz"
    error = lgo("contour", small_run, "--directions", own, "--resolution", 3, code=2).stderr
    assert f"--directions {own} is what this step writes\n" in error


@pytest.mark.parametrize(
    "names", [[], ["a.pth"], ["a.npz", "b.npz"], ["a.npz", "b.pth"], ["a.pth"] * 3]
)
def test_neither_one_nor_two(names: list[str]) -> None:
    with pytest.raises(UsageError, match=r"one \.npz with both, or from two"):
        read_directions([Path(name) for name in names], network())
