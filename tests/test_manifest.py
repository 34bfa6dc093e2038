from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import pytest
from conftest import Lgo

from lgo_cli import __version__
from lgo_cli.config import CONFIGS
from lgo_cli.errors import InputError
from lgo_cli.files import canonical_json, sha256_bytes
from lgo_cli.manifest import (
    ALGORITHM_VERSIONS,
    SCHEMA_VERSION,
    OtherVersion,
    Request,
    fingerprint,
    manifest_json,
    parse_manifest,
    read_manifest,
)
from lgo_cli.provenance import git_state
from lgo_cli.results import Eigenvalue


def test_round_trip_is_exact(small_run: Path) -> None:
    path = small_run / "train.json"
    manifest = read_manifest(path)
    assert manifest_json(manifest) + "\n" == path.read_text()
    assert parse_manifest(manifest_json(manifest), path) == manifest


def test_is_read_by_the_name_of_its_file(small_run: Path) -> None:
    path = small_run / "train.json"
    assert read_manifest(str(path)) == read_manifest(path)


def test_non_finite_numbers_survive() -> None:
    pair = Eigenvalue(value=math.nan, residual_bound=-math.inf, error_estimate=0.5)
    text = pair.model_dump_json()
    assert json.loads(text) == {
        "value": "NaN",
        "residual_bound": "-Infinity",
        "error_estimate": 0.5,
    }
    back = Eigenvalue.model_validate_json(text)
    assert math.isnan(back.value)
    assert back.residual_bound == -math.inf


def test_fingerprint_is_of_the_request_alone_and_of_all_of_it() -> None:
    request = Request(command="train", algorithm_version=1, config={"lr": 0.1}, inputs={})
    again = Request(command="train", algorithm_version=1, config={"lr": 0.1}, inputs={})
    assert fingerprint(request) == fingerprint(again)
    for change in (
        {"command": "hessian"}, {"algorithm_version": 2}, {"config": {"lr": 0.2}},
        {"config": {"lr": None}},
    ):  # fmt: skip
        assert fingerprint(request.model_copy(update=change)) != fingerprint(request)


def test_request_holds_no_path_device_or_thread(small_run: Path) -> None:
    request = json.loads((small_run / "train.json").read_text())["request"]
    assert str(small_run) not in json.dumps(request)
    forbidden = {
        "out", "force", "dry_run", "strict", "json", "quiet", "verbose", "trust_code", "device",
        "num_threads", "data_root", "resume", "download_data", "format",
    }  # fmt: skip
    assert not forbidden & set(request["config"])
    assert request["config"]["lr"] is None  # automatic values stay so; results say what they became
    results = json.loads((small_run / "train.json").read_text())["results"]
    assert results["recipe"]["lr"] > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a manifest"),
        ("[]", "is not a manifest"),
        ('{"request": {"command": "fly"}}', "request.command"),
        ('{"request": {"command": "train"}}', "is not a manifest that this lgo reads"),
    ],
)
def test_what_is_no_manifest(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_manifest(text, Path("x.json"))


def _of_another_version(
    path: Path, lgo: str = "0.0.9", algorithm_version: int = 2, schema_version: int = 1
) -> None:
    """Rewrite a manifest as another version might have: a field less, and fewer results."""
    old = json.loads(path.read_text())
    del old["request"]["config"]["convexity"]
    del old["results"]["filling"]
    old["request"]["algorithm_version"] = algorithm_version
    old["fingerprint"] = sha256_bytes(canonical_json(old["request"]))
    old["environment"]["lgo"] = lgo
    old["schema_version"] = schema_version
    path.write_text(json.dumps(old, indent=2))


def _interrupt(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def _measure(lgo: Lgo, run: Path, *options: str, code: int = 0) -> str:
    options = ("--resolution", "3", "--analysis-samples", "64", *options)
    return lgo("contour", run, *options, code=code).stderr


def test_manifest_of_another_version_says_so_and_is_computed_again(
    small_run: Path, lgo: Lgo, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_run / "contour.json"
    _measure(lgo, small_run, "--convexity", "2")
    _of_another_version(path)
    error = lgo("show", small_run, code=3).stderr
    assert error.startswith(
        f"lgo: error: {path} was written by another version of lgo (0.0.9, contour at algorithm "
        "version 2), which this one does not read: "
    )
    assert error.endswith("\nhint: lgo contour again replaces it\n")
    # A refusal before the first output loses nothing.
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("lgo_cli.landscape.surface.measure_surface", _interrupt)
        _measure(lgo, small_run, code=130)
    assert path.read_bytes() == before
    _measure(lgo, small_run)
    assert read_manifest(path).request.config["convexity"] is None
    # What the old one listed goes, like the files of any manifest.
    assert not (small_run / "contour_convexity.png").exists()


def test_manifest_of_a_later_version_is_replaced_by_force_alone(small_run: Path, lgo: Lgo) -> None:
    path = small_run / "contour.json"
    _measure(lgo, small_run)
    ours = path.read_bytes()
    major, minor, *_ = __version__.split(".")
    algorithm = ALGORITHM_VERSIONS["contour"]
    # Its form, its algorithm or its release may be what is later; 0.10 is later than 0.9.
    for version, algorithm_version, schema_version in (
        ("0.0.9", 2, SCHEMA_VERSION + 1), (__version__, algorithm + 1, SCHEMA_VERSION),
        (f"{major}.{minor}0.0rc1", algorithm, SCHEMA_VERSION), ("9.0", 99, SCHEMA_VERSION),
    ):  # fmt: skip
        path.write_bytes(ours)
        _of_another_version(path, version, algorithm_version, schema_version)
        before = path.read_bytes()
        assert _measure(lgo, small_run, code=3).endswith(
            f"lgo: error: {path} was written by a later version of lgo ({version}, contour at "
            f"algorithm version {algorithm_version}); it is left as it is\n"
            "hint: use that lgo, choose another --out, or --force to replace it\n"
        )
        assert path.read_bytes() == before
        assert lgo("show", small_run, code=3).stderr.endswith("\nhint: use that lgo\n")
    _measure(lgo, small_run, "--force")
    read_manifest(path)


def test_later_manifest_that_can_be_read_is_left_alone_too(small_run: Path, lgo: Lgo) -> None:
    path = small_run / "contour.json"
    _measure(lgo, small_run)
    later = json.loads(path.read_text())
    later["request"]["algorithm_version"] += 1
    later["fingerprint"] = sha256_bytes(canonical_json(later["request"]))
    path.write_text(json.dumps(later, indent=2))
    before = path.read_bytes()
    read_manifest(path)
    assert "was written by a later version of lgo" in _measure(lgo, small_run, code=3)
    assert path.read_bytes() == before
    _measure(lgo, small_run, "--force")
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("version", "later"),
    [
        ("0.9", False), ("0.10", False), ("0.10.0", False), ("0.10.0rc1", False), ("", False),
        ("unknown", False), ("0.10.1", True), ("0.11.dev3", True), ("1", True), ("9" * 5000, True),
    ],
)  # fmt: skip
def test_releases_are_compared_as_numbers(
    version: str, later: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lgo_cli.manifest.__version__", "0.10.0")
    request = {"command": "train", "algorithm_version": 1}
    found = OtherVersion.model_validate(
        {
            "schema_version": 1, "fingerprint": "", "request": request, "outputs": {},
            "environment": {"lgo": version},
        }
    )  # fmt: skip
    assert found.is_later is later


def test_damaged_manifest_of_this_version_says_so_and_is_replaced_by_force_alone(
    small_run: Path, lgo: Lgo
) -> None:
    path = small_run / "contour.json"
    _measure(lgo, small_run)
    damaged = json.loads(path.read_text())
    damaged["results"]["loss_min"] = "oops"
    path.write_text(json.dumps(damaged))
    before = path.read_bytes()
    error = lgo("show", small_run, code=3).stderr
    assert error.startswith(
        f"lgo: error: {path} was damaged or edited since this lgo wrote it: results.loss_min"
    )
    assert error.endswith("\nhint: lgo contour again with --force replaces it\n")
    for dry_run in ((), ("--dry-run",)):
        assert _measure(lgo, small_run, *dry_run, code=3) == error
    assert path.read_bytes() == before
    _measure(lgo, small_run, "--force", "--dry-run")
    _measure(lgo, small_run, "--force")
    read_manifest(path)


def test_file_that_only_looks_like_a_manifest_is_nobodys_to_replace(
    small_run: Path, lgo: Lgo
) -> None:
    path = small_run / "contour.json"
    _measure(lgo, small_run)
    _of_another_version(path)
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    assert "is not a manifest that this lgo reads" in lgo("show", small_run, code=3).stderr
    assert "was not written by lgo contour" in _measure(lgo, small_run, code=3)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_request_with_a_number_that_is_not_finite_is_refused_in_words(
    small_run: Path, lgo: Lgo, number: str
) -> None:
    path = small_run / "contour.json"
    _measure(lgo, small_run)
    path.write_text(
        path.read_text().replace('"analysis_samples": 64', f'"analysis_samples": {number}')
    )
    why = f"{path} is not a manifest that this lgo reads: request.config: out of range float"
    for command in ("show", "verify", "table"):
        assert why in lgo(command, small_run, code=3).stderr
    for option in ("--quiet", "--dry-run"):
        assert "was not written by lgo contour" in _measure(lgo, small_run, option, code=3)


def test_phases_do_not_overlap(small_run: Path) -> None:
    provenance = read_manifest(small_run / "train.json").provenance
    assert set(provenance.phases_s) == {"load", "compute", "figures", "write"}
    assert sum(provenance.phases_s.values()) <= provenance.duration_s
    assert provenance.peak_memory_bytes is None or provenance.peak_memory_bytes > 1e6


@pytest.mark.parametrize(
    ("lines", "state"),
    [
        ("# branch.oid (initial)\n# branch.head main\n", (None, False)),
        ("# branch.oid 62a9c45\n# branch.head main\n1 .M N... x.py\n", ("62a9c45", True)),
    ],
)
def test_a_repository_without_a_commit_has_none(
    monkeypatch: pytest.MonkeyPatch, lines: str, state: tuple[str | None, bool]
) -> None:
    done = subprocess.CompletedProcess([], 0, stdout=lines)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: done)
    assert git_state(Path()) == state


def test_a_config_with_other_fields_is_another_algorithms() -> None:
    """Else what this version wrote yesterday is called damaged: it says nothing of the new field.

    Where this fails, raise the command's algorithm version and note its fields here.
    """
    found = {
        command: (ALGORITHM_VERSIONS[command], sha256_bytes(canonical_json(sorted(fields)))[:8])
        for command, fields in ((name, cls.model_fields) for name, cls in CONFIGS.items())
    }
    assert found == {
        "train": (8, "5702e9f3"),
        "hessian": (20, "9788bf8a"),
        "interp": (20, "1282edc6"),
        "contour": (19, "0fee2c04"),
    }
