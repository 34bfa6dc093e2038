"""Exports: the same numbers in the formats of other programs, and nobody's file overwritten."""

from __future__ import annotations

import csv
import io
import itertools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest
from conftest import Lgo
from typer.testing import CliRunner

from lgo_cli.cli import app
from lgo_cli.exports.hdf5 import h5_files
from lgo_cli.exports.tables import csv_files
from lgo_cli.exports.vtk import vti_files
from lgo_cli.files import sha256_file, step_lock
from lgo_cli.runs import exporting

Arrays = dict[str, Any]


def _surface() -> Arrays:
    """nx ≠ ny, missing cells, numbers without a short decimal form, all that is optional."""
    draw = np.random.default_rng(0)
    x, y = np.linspace(-1, 1, 5), np.linspace(0, 2 / 3, 3)
    loss = draw.lognormal(size=(3, 5))
    loss[0, 1], loss[1, 2], loss[2, 4] = np.nan, np.inf, 0.0
    measured = draw.random((3, 5)) < 0.5
    radius = np.linspace(0, 1, 2)
    return {
        "x": x, "y": y, "loss": loss, "standard_error": loss / 10,
        "accuracy": draw.random((3, 5)), "directions": draw.normal(size=(2, 9)),
        "measured": measured, "error_estimate": np.where(measured, 0, 0.01 * loss),
        "convexity_x": np.array([-1.0, 1.0]), "convexity_y": np.array([0.0, 0.5]),
        "convexity_largest": draw.random((2, 2)),
        "convexity_smallest": -draw.random((2, 2)), "convexity_ratio": draw.random((2, 2)),
        "convexity_ratio_error": draw.random((2, 2)), "planes_loss": np.stack([loss, 2 * loss]),
        "profile_radius": radius, "profile_median": 2 + radius, "profile_low": 1 + radius,
        "profile_high": 3 + radius,
    }  # fmt: skip


def _line() -> Arrays:
    draw = np.random.default_rng(1)
    names = ("alpha", "loss", "standard_error", "accuracy", "test_loss", "test_accuracy")
    return {**{name: draw.random(4) for name in names}, "direction": draw.random(9)}


def _read(data: bytes) -> dict[str, list[str]]:
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_csv_holds_every_cell_to_the_last_bit() -> None:
    arrays = _surface()
    table = _read(csv_files("contour", arrays, {})["contour.csv"])
    X, Y = np.meshgrid(arrays["x"], arrays["y"])
    expected = {"x": X, "y": Y, **{k: arrays[k] for k in list(table)[2:] if k != "measured"}}
    for name, values in expected.items():
        np.testing.assert_array_equal([float(text) for text in table[name]], values.ravel())
    assert [text == "True" for text in table["measured"]] == arrays["measured"].ravel().tolist()
    assert table["loss"][1] == "nan"
    assert table["loss"][7] == "inf"


def test_csv_has_a_table_for_each_shape() -> None:
    arrays = _surface()
    files = csv_files("contour", arrays, {})
    assert list(files) == [
        "contour.csv", "contour_convexity.csv", "contour_planes.csv", "contour_profile.csv",
    ]  # fmt: skip
    planes = _read(files["contour_planes.csv"])
    assert planes["plane"] == ["0"] * 15 + ["1"] * 15
    np.testing.assert_array_equal(
        [float(text) for text in planes["loss"]], arrays["planes_loss"].ravel()
    )
    convexity = _read(files["contour_convexity.csv"])
    assert list(convexity) == ["x", "y", "ratio", "ratio_error", "lambda_max", "lambda_min"]
    keys = ("ratio", "ratio_error", "largest", "smallest")
    X, Y = np.meshgrid(arrays["convexity_x"], arrays["convexity_y"])
    expected = [X, Y, *(arrays[f"convexity_{key}"] for key in keys)]
    for texts, values in zip(convexity.values(), expected, strict=True):
        assert [float(text) for text in texts] == values.ravel().tolist()
    for name, texts in _read(files["contour_profile.csv"]).items():
        assert [float(text) for text in texts] == arrays[f"profile_{name}"].tolist()


def test_csv_of_a_spectrum_has_each_number_in_its_column() -> None:
    count = itertools.count()
    arrays: Arrays = {"layer_names": np.array(["a", "b"])}
    arrays |= {
        name: np.array([next(count), next(count)], dtype=float)
        for name in (
            "largest", "smallest", "largest_residual_bounds", "smallest_residual_bounds",
            "largest_error_estimates", "smallest_error_estimates", "density_nodes",
            "density_weights", "layer_largest", "layer_residual_bounds", "layer_traces",
            "layer_trace_standard_errors",
        )
    }  # fmt: skip
    files = {name: data.decode().split() for name, data in csv_files("hessian", arrays, {}).items()}
    assert files == {
        "hessian.csv": [
            "end,rank,eigenvalue,residual_bound", "largest,1,0.0,4.0", "largest,2,1.0,5.0",
            "smallest,1,2.0,6.0", "smallest,2,3.0,7.0",
        ],
        "hessian_density.csv": ["eigenvalue,weight", "12.0,14.0", "13.0,15.0"],
        "hessian_layers.csv": [
            "layer,largest,residual_bound,trace,trace_standard_error",
            "a,16.0,18.0,20.0,22.0", "b,17.0,19.0,21.0,23.0",
        ],
    }  # fmt: skip


def test_csv_of_a_path_and_of_a_matrix() -> None:
    arrays = _line()
    table = _read(csv_files("interp", arrays, {})["interp.csv"])
    assert list(table) == [name for name in arrays if name != "direction"]
    assert [float(text) for text in table["loss"]] == arrays["loss"].tolist()


def _matrix() -> tuple[Arrays, Arrays]:
    """Three checkpoints, the last without a finite loss, a name that CSV has to quote."""
    draw = np.random.default_rng(2)
    pairs = np.array([[0, 1], [0, 2], [1, 2]])
    arrays: Arrays = {"alpha": np.array([0.0, 0.5, 1.0]), "pairs": pairs}
    for prefix in ("", "test_"):
        for name in ("loss", "standard_error", "accuracy", "barrier_standard_error"):
            arrays[f"{prefix}{name}"] = draw.random((3, 3))
            arrays[f"{prefix}{name}"][1:] = np.nan
        for name in ("barrier", "standard_error", "lower", "upper"):
            half = np.triu(draw.random((3, 3)), 1)
            half[:2, 2] = np.nan
            arrays[f"{prefix}matrix_{name}"] = half + half.T
    return arrays, {"matrix": {"names": ["run", "b,c", "burst"], "loss": [0.5, 0.1, "NaN"]}}


def test_csv_of_a_matrix_has_a_row_for_each_pair_with_all_that_is_known_of_it() -> None:
    arrays, results = _matrix()
    files = csv_files("interp", arrays, results)
    assert list(files) == ["interp.csv", "interp_matrix.csv", "interp_checkpoints.csv"]
    table = _read(files["interp_matrix.csv"])
    assert table["from"] == ["run", "run", "b,c"]
    assert table["to"] == ["b,c", "burst", "burst"]
    for prefix in ("", "test_"):
        for name in ("barrier", "standard_error", "lower", "upper"):
            known, *rest = table.pop(f"{prefix}{name}")
            assert float(known) == arrays[f"{prefix}matrix_{name}"][0, 1]
            assert rest == ["nan", "nan"]
    assert list(table) == ["from", "to"]
    lines = _read(files["interp.csv"])
    assert lines["from"] == ["run"] * 6 + ["b,c"] * 3
    assert lines["alpha"] == ["0.0", "0.5", "1.0"] * 3
    for key in ("loss", "test_loss", "accuracy", "barrier_standard_error"):
        np.testing.assert_array_equal([float(text) for text in lines[key]], arrays[key].ravel())
    checkpoints = files["interp_checkpoints.csv"].decode()
    assert checkpoints == 'name,loss\nrun,0.5\n"b,c",0.1\nburst,nan\n'


def test_h5_of_a_matrix_has_names_losses_and_intervals() -> None:
    arrays, results = _matrix()
    data = h5_files("interp", arrays, results)["interp.h5"]
    with h5py.File(io.BytesIO(data), "r") as file:
        assert file["names"].asstr()[:].tolist() == ["run", "b,c", "burst"]
        np.testing.assert_array_equal(file["loss"][:], [0.5, 0.1, np.nan])
        np.testing.assert_array_equal(file["train_loss"][:], arrays["loss"])
        np.testing.assert_array_equal(file["test_acc"][:], 100 * arrays["test_accuracy"])
        for key in [name for name in arrays if "matrix_" in name or name == "pairs"]:
            np.testing.assert_array_equal(file[key][:], arrays[key])


def test_csv_of_a_line_has_what_was_measured_at_its_points_alone() -> None:
    arrays = _line()
    files = csv_files("interp", {**arrays, "of_as_many_bends": arrays["alpha"]}, {})
    assert list(_read(files["interp.csv"])) == [name for name in arrays if name != "direction"]


def _vti(data: bytes) -> tuple[ElementTree.Element, dict[str, Any]]:
    root = ElementTree.fromstring(data)
    assert root.tag == "VTKFile"
    assert root.get("type") == "ImageData"
    image = root.find("ImageData")
    assert image is not None
    arrays = {}
    for element in root.iter("DataArray"):
        assert element.get("format") == "ascii"
        kind = {"Float64": np.float64, "UInt8": np.uint8}[element.get("type") or ""]
        arrays[element.get("Name") or ""] = np.array((element.text or "").split(), dtype=kind)
    return image, arrays


def test_vtk_image_has_the_grid_and_its_values() -> None:
    """Read again as VTK's own reader does: x runs fastest, a point at origin + spacing · index."""
    arrays = _surface()
    files = vti_files("contour", arrays, {})
    image, values = _vti(files["contour.vti"])
    assert image.get("WholeExtent") == image[0].get("Extent") == "0 4 0 2 0 0"
    origin, spacing = (
        [float(text) for text in (image.get(key) or "").split()] for key in ("Origin", "Spacing")
    )
    np.testing.assert_allclose(origin[0] + spacing[0] * np.arange(5), arrays["x"], rtol=1e-15)
    # One rounding of the spacing, two of the sum.
    np.testing.assert_allclose(origin[1] + spacing[1] * np.arange(3), arrays["y"], rtol=5e-16)
    finite = np.where(np.isfinite(arrays["loss"]), arrays["loss"], np.nan).ravel()
    np.testing.assert_array_equal(values["loss"], finite)
    with np.errstate(divide="ignore"):
        logarithm = np.log10(finite)
    np.testing.assert_array_equal(
        values["log10_loss"], np.where(np.isfinite(logarithm), logarithm, np.nan)
    )
    np.testing.assert_array_equal(values["accuracy"], arrays["accuracy"].ravel())
    np.testing.assert_array_equal(values["measured"], arrays["measured"].ravel())
    np.testing.assert_array_equal(values["y"].reshape(3, 5)[:, 0], arrays["y"])
    assert b"inf" not in files["contour.vti"].lower()
    coarse, convexity = _vti(files["contour_convexity.vti"])
    assert (coarse.get("Origin"), coarse.get("Spacing")) == ("-1.0 0.0 0.0", "2.0 0.5 1.0")
    assert next(iter(convexity)) == "ratio"
    np.testing.assert_array_equal(convexity["ratio"], arrays["convexity_ratio"].ravel())
    names = ("loss", "accuracy", "standard_error", "measured", "error_estimate")
    test = {f"test_{name}": arrays[name] for name in names}
    assert _vti(vti_files("contour", arrays | test, {})["contour.vti"])[1].keys() >= test.keys()


def test_vtk_scalars_are_the_loss() -> None:
    root = ElementTree.fromstring(vti_files("contour", _surface(), {})["contour.vti"])
    (points,) = root.iter("PointData")
    assert points.get("Scalars") == "loss"
    assert vti_files("interp", _line(), {}) == {}


def test_h5_is_what_li_et_als_scripts_read() -> None:
    """`plot_2D.py` draws `train_loss` over `np.meshgrid(xcoordinates, ycoordinates)`."""
    arrays = _surface()
    files = h5_files("contour", arrays, {})
    with h5py.File(io.BytesIO(files["contour.h5"]), "r") as file:
        assert set(file) == {"xcoordinates", "ycoordinates", "train_loss", "train_acc"}
        X, Y = np.meshgrid(file["xcoordinates"][:], file["ycoordinates"][:])
        assert file["train_loss"].shape == X.shape == Y.shape
        np.testing.assert_array_equal(file["train_loss"][:], arrays["loss"])
        np.testing.assert_array_equal(file["train_acc"][:], 100 * arrays["accuracy"])
    with h5py.File(io.BytesIO(files["contour_convexity.h5"]), "r") as file:
        np.testing.assert_array_equal(file["min_eig"][:], arrays["convexity_smallest"])
        np.testing.assert_array_equal(file["max_eig"][:], arrays["convexity_largest"])
        np.testing.assert_array_equal(file["xcoordinates"][:], arrays["convexity_x"])
        np.testing.assert_array_equal(file["ycoordinates"][:], arrays["convexity_y"])
        # A time would be another's a second later.
        assert h5py.h5g.get_objinfo(file.id, b"max_eig").mtime == 0


def test_h5_of_a_line_leaves_out_what_was_not_measured() -> None:
    arrays = _line()
    with h5py.File(io.BytesIO(h5_files("interp", arrays, {})["interp.h5"]), "r") as file:
        assert set(file) == {"xcoordinates", "train_loss", "train_acc", "test_loss", "test_acc"}
        np.testing.assert_array_equal(file["xcoordinates"][:], arrays["alpha"])
        np.testing.assert_array_equal(file["test_acc"][:], 100 * arrays["test_accuracy"])
    arrays |= {"test_loss": np.full(4, np.nan), "test_accuracy": np.full(4, np.nan)}
    with h5py.File(io.BytesIO(h5_files("interp", arrays, {})["interp.h5"]), "r") as file:
        assert set(file) == {"xcoordinates", "train_loss", "train_acc"}


@pytest.mark.parametrize("make", [csv_files, vti_files, h5_files])
def test_equal_arrays_have_equal_bytes(make: Any) -> None:
    assert make("contour", _surface(), {}) == make("contour", _surface(), {})


@pytest.fixture(scope="module")
def _measured_run(_small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Path(shutil.copytree(_small_run, tmp_path_factory.mktemp("measured") / "small"))
    for line in (
        "contour --resolution 5x4",
        "interp --num-points 5",
        "hessian --top-k 2 --density",
    ):
        command, *options = line.split()
        words = [command, str(run), *options, "--analysis-samples", "64", "--quiet"]
        assert CliRunner().invoke(app, words).exit_code == 0
    return run


@pytest.fixture
def measured_run(_measured_run: Path, small_run: Path) -> Path:
    return Path(shutil.copytree(_measured_run, small_run, dirs_exist_ok=True))


def test_export_prints_the_paths_of_all_it_wrote(measured_run: Path, lgo: Lgo) -> None:
    printed = {form: lgo("export", measured_run, "--to", form).stdout for form in ("csv", "vtk")}
    names = ["hessian.csv", "hessian_density.csv", "interp.csv", "contour.csv"]
    assert printed["csv"].splitlines() == [str(measured_run / name) for name in names]
    assert printed["vtk"].splitlines() == [str(measured_run / "contour.vti")]
    with np.load(measured_run / "contour.npz") as arrays:
        _, values = _vti((measured_run / "contour.vti").read_bytes())
        np.testing.assert_array_equal(values["loss"], arrays["loss"].ravel())
    with np.load(measured_run / "hessian.npz") as arrays:
        table = _read((measured_run / "hessian.csv").read_bytes())
        eigenvalues = [*arrays["largest"], *arrays["smallest"]]
        assert [float(text) for text in table["eigenvalue"]] == eigenvalues
        assert table["rank"] == ["1", "2", "1"]
    # What was exported is no output of a step: the run is as true as before.
    lgo("verify", measured_run)


def test_export_of_one_step_elsewhere(measured_run: Path, lgo: Lgo, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere"
    printed = lgo("export", measured_run, "--to", "h5", "--step", "interp", "-o", out).stdout
    assert printed.splitlines() == [str(out / "interp.h5")]
    assert not list(measured_run.glob("*.h5"))


def test_export_to_a_place_that_can_be_no_directory(
    measured_run: Path, lgo: Lgo, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("somebody's\n")
    for name, said in (("file", "is a file, not a directory"), ("x" * 300, "File name too long")):
        error = lgo("export", measured_run, "--to", "csv", "-o", tmp_path / name, code=3).stderr
        assert said in error


def test_export_replaces_its_own_file_and_nobody_elses(measured_run: Path, lgo: Lgo) -> None:
    command = ("export", measured_run, "--to", "csv", "--step", "contour")
    path = measured_run / "contour.csv"
    path.write_text("somebody's\n")
    error = lgo(*command, code=3).stderr
    assert error == (
        f"lgo: error: {path} was not written by lgo export; it is left as it is\n"
        "hint: choose another --out, or --force to replace it\n"
    )
    assert path.read_text() == "somebody's\n"
    lgo(*command, "--force")
    exported = path.read_bytes()
    # The run is measured again, otherwise: its own export may be replaced without --force.
    lgo("contour", measured_run, "--resolution", "3x4", "--analysis-samples", "64", "--quiet")
    lgo(*command)
    assert path.read_bytes() != exported
    path.write_text("edited since\n")
    lgo(*command, code=3)


def _names(directory: Path) -> set[str]:
    suffixes = (".csv", ".vti", ".h5")
    return {path.name for path in directory.iterdir() if path.suffix in suffixes} - {"train.csv"}


SMALL = ("--resolution", "3", "--analysis-samples", "64", "--quiet")


def test_exports_of_arrays_that_are_gone_go_with_them(small_run: Path, lgo: Lgo) -> None:
    lgo("contour", small_run, "--convexity", "2", *SMALL)
    lgo("interp", small_run, "--num-points", "3", "--analysis-samples", "64", "--quiet")
    lgo("export", small_run, "--to", "csv")
    lgo("export", small_run, "--to", "vtk")
    all_names = {
        "contour.csv", "contour_convexity.csv", "interp.csv", "contour.vti",
        "contour_convexity.vti",
    }  # fmt: skip
    assert _names(small_run) == all_names
    # The same numbers again, and other figures: what was exported is still true.
    lgo("contour", small_run, "--convexity", "2", *SMALL, "--force")
    lgo("contour", small_run, "--convexity", "2", *SMALL, "--format", "svg")
    assert _names(small_run) == all_names
    (small_run / "contour.vti").write_text("edited\n")
    lgo("contour", small_run, "--plane", "gradient", *SMALL)
    assert _names(small_run) == {"interp.csv", "contour.vti"}
    # What was edited is its user's: neither replaced nor, by force, anything but replaced.
    lgo("export", small_run, "--to", "vtk", code=3)
    lgo("export", small_run, "--to", "vtk", "--force")
    lgo("verify", small_run)


def test_export_elsewhere_removes_what_its_run_no_longer_has(
    small_run: Path, lgo: Lgo, tmp_path: Path
) -> None:
    out = tmp_path / "elsewhere"
    lgo("contour", small_run, "--convexity", "2", *SMALL)
    for form in ("csv", "vtk"):
        lgo("export", small_run, "--to", form, "-o", out)
    lgo("contour", small_run, *SMALL)
    assert "contour_convexity.vti" in _names(out)
    lgo("export", small_run, "--to", "csv", "-o", out)
    assert _names(out) == {"contour.csv"}


def test_export_over_another_runs_is_refused(small_run: Path, lgo: Lgo, tmp_path: Path) -> None:
    other, out = tmp_path / "other", tmp_path / "elsewhere"
    lgo("contour", small_run, *SMALL)
    lgo("contour", small_run, *SMALL, "--seed", "1", "--out", other)
    export = ("export", "--to", "csv", "-o", out)
    lgo(*export, small_run)
    before = (out / "contour.csv").read_bytes()
    error = lgo(*export, other, code=3).stderr
    assert error == (
        f"lgo: error: {out / 'contour.csv'} was exported from another run, {small_run}; it is "
        "left as it is\nhint: choose another --out, or --force to replace it\n"
    )
    assert (out / "contour.csv").read_bytes() == before
    lgo(*export, small_run)
    lgo(*export, other, "--force")
    assert (out / "contour.csv").read_bytes() != before
    lgo(*export, small_run, code=3)
    # Nor does a run's directory take files that would pass for its own.
    into_run = ("export", other, "--to", "csv", "-o", small_run)
    assert "is a run of its own" in lgo(*into_run, code=3).stderr
    assert _names(small_run) == set()
    lgo(*into_run, "--force")


DAMAGES: dict[str, Callable[[Any], bytes]] = {
    "cut short": lambda known: json.dumps(known).encode()[:-9],
    "empty": lambda known: b"",
    "not text": lambda known: b"\xff\xfe",
    "another form": lambda known: json.dumps(list(known)).encode(),
    "no digest": lambda known: json.dumps({name: {"run": "."} for name in known}).encode(),
    # With their true digests, and as if of the surface that is about to change.
    "lists what no export writes": lambda known: json.dumps(known).encode(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_record_of_exports_is_refused_and_nothing_is_removed_by_it(
    small_run: Path, lgo: Lgo, damage: Callable[[Any], bytes]
) -> None:
    lgo("contour", small_run, *SMALL)
    lgo("export", small_run, "--to", "vtk")
    record, exported = small_run / ".lgo" / "exports.json", small_run / "contour.vti"
    known = json.loads(record.read_bytes())
    victims = {name: small_run / name for name in ("model.pth", "../thesis.csv")}
    victims["../thesis.csv"].write_text("years of work")
    for name, victim in victims.items():
        known[name] = {**known["contour.vti"], "sha256": sha256_file(victim)}
    record.write_bytes(damage(known))
    damaged, old = record.read_bytes(), exported.read_bytes()
    message = f"{record} is damaged: what lgo export wrote beside it, of which arrays, is not known"
    hint = (
        "hint: remove the exported files that are out of date, and lgo export --force begins a new "
        "record\n"
    )
    again = lgo("contour", small_run, "--plane", "gradient", *SMALL[:-1])
    assert again.stderr == f"warning: {message}\n{hint}"
    error = lgo("export", small_run, "--to", "csv", code=3).stderr
    assert error == f"lgo: error: {message}\n{hint}"
    assert (exported.read_bytes(), record.read_bytes()) == (old, damaged)
    assert not (small_run / "contour.csv").exists()
    assert all(victim.is_file() for victim in victims.values())
    lgo("export", small_run, "--to", "csv", "--force")
    assert list(json.loads(record.read_bytes())) == ["contour.csv"]
    lgo("export", small_run, "--to", "csv")


def test_export_refuses_arrays_that_are_not_what_was_written(measured_run: Path, lgo: Lgo) -> None:
    data = bytearray((measured_run / "contour.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (measured_run / "contour.npz").write_bytes(data)
    error = lgo("export", measured_run, "--to", "vtk", code=3).stderr
    assert "contour.npz is not what lgo contour wrote" in error
    assert not (measured_run / "contour.vti").exists()
    # The other steps are still what they were.
    lgo("export", measured_run, "--to", "csv", "--step", "interp")


@pytest.mark.parametrize("moment", ["_refuse_others_directory", "atomic_write"])
def test_export_of_arrays_that_change_meanwhile_is_refused(
    small_run: Path, lgo: Lgo, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Before a file is written, or when it is: then it goes again."""
    lgo("contour", small_run, *SMALL)
    step, written = getattr(exporting, moment), []

    def measure_first(*arguments: Any, **options: Any) -> Any:
        if not written:
            lgo("contour", small_run, "--plane", "gradient", *SMALL)
        written.append(arguments[0].name)
        return step(*arguments, **options)

    monkeypatch.setattr(exporting, moment, measure_first)
    if moment != "atomic_write":
        monkeypatch.setattr(exporting, "atomic_write", None)
    error = lgo("export", small_run, "--to", "csv", code=3).stderr
    assert "lgo contour wrote other arrays while they were exported" in error
    assert not (small_run / "contour.csv").exists()
    assert ("contour.csv" in written) == (moment == "atomic_write")
    assert _names(small_run) == set()


def test_export_with_nothing_to_export(small_run: Path, lgo: Lgo, tmp_path: Path) -> None:
    error = lgo("export", small_run, "--to", "vtk", code=3).stderr
    assert error.startswith(f"lgo: error: {small_run} has no arrays for vtk of ")
    assert "no such run directory" in lgo("export", tmp_path / "no", "--to", "csv", code=3).stderr
    lgo("export", small_run, "--to", "parquet", code=2)
    lgo("export", small_run, code=2)


def test_h5_without_h5py_says_what_to_install(
    measured_run: Path, lgo: Lgo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    error = lgo("export", measured_run, "--to", "h5", code=5).stderr
    assert error == (
        "lgo: error: writing HDF5 needs h5py, which is not installed\nhint: pip install 'lgo[h5]'\n"
    )
    assert not list(measured_run.glob("*.h5"))


def test_exports_of_two_runs_and_of_two_processes(measured_run: Path, lgo: Lgo) -> None:
    line = ("export", measured_run, "--to", "csv")
    lgo(*line, "--step", "contour", "--out", "there")
    other = Path(shutil.copytree(measured_run, "other"))
    for name in ("contour.json", "contour.npz"):
        (other / name).unlink()
    lgo("export", other, "--to", "csv", "--step", "hessian", "--out", "there")
    # That one run has no surface makes no file of the other's out of date.
    assert {path.name for path in Path("there").glob("*.csv")} >= {"contour.csv", "hessian.csv"}
    lgo(*line)
    (measured_run / ".lgo" / "exports.json").unlink()
    lgo(*line)  # the very bytes are nobody else's
    with step_lock(measured_run, "export"):
        assert "another lgo export is writing" in lgo(*line, code=3).stderr
        lgo("contour", measured_run, "--resolution", 2, "--analysis-samples", 32, "--quiet")
        assert (measured_run / "contour.csv").is_file()  # left to who is exporting
