from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lgo_cli.errors import InputError
from lgo_cli.manifest import (
    Request,
    fingerprint,
    manifest_json,
    parse_manifest,
    read_manifest,
)
from lgo_cli.results import Eigenvalue


def test_round_trip_is_exact(small_run: Path) -> None:
    path = small_run / "train.json"
    manifest = read_manifest(path)
    assert manifest_json(manifest) + "\n" == path.read_text()
    assert parse_manifest(manifest_json(manifest), path) == manifest


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


def test_phases_do_not_overlap(small_run: Path) -> None:
    provenance = read_manifest(small_run / "train.json").provenance
    assert set(provenance.phases_s) == {"load", "compute", "figures", "write"}
    assert sum(provenance.phases_s.values()) <= provenance.duration_s
    assert provenance.peak_memory_bytes is None or provenance.peak_memory_bytes > 1e6
