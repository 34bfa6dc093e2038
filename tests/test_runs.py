"""Steps in directories: caching, claims, foreign files, redrawing, equal bytes."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, Lgo

from lgo_cli.config import (
    ContourConfig,
    Execution,
    FigureConfig,
    HessianConfig,
    InterpConfig,
    TrainConfig,
)
from lgo_cli.errors import InputError, LgoError, NumericsError, OutputError, UsageError
from lgo_cli.files import step_lock
from lgo_cli.manifest import Manifest, read_manifest, write_manifest
from lgo_cli.models.registry import MODELS
from lgo_cli.parsing import parse_config
from lgo_cli.provenance import environment
from lgo_cli.results import HessianResults
from lgo_cli.runs import Status, execute
from lgo_cli.runs.eigenvectors import saved_eigenvectors
from lgo_cli.runs.evidence import load_arrays
from lgo_cli.runs.inspect import inspect_run, verify_run
from lgo_cli.runs.loaded import machine_settings
from lgo_cli.runs.names import writable
from lgo_cli.runs.plan import plan_step
from lgo_cli.runs.steps import STEPS

pytestmark = pytest.mark.usefixtures("untouched_generator")

ANALYSES = {
    "hessian": HessianConfig(top_k=2, analysis_samples=128, trace=True, density=True),
    "interp": InterpConfig(num_points=5, analysis_samples=128),
    "contour": ContourConfig(resolution="5x3", analysis_samples=128),
}
TRAIN = TrainConfig(
    model_arg={"hidden": [8]}, dataset_arg={"num_train": 256, "num_test": 128}, epochs=2,
    batch_size=32, save_every=4,
)  # fmt: skip


def _digests(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and ".lgo" not in path.parts
    }


def _payload(manifest: Manifest | None) -> dict[str, Any]:
    assert manifest is not None
    return {name: ref.sha256 for name, ref in manifest.outputs.items()}


@pytest.mark.parametrize("command", list(ANALYSES))
def test_same_request_same_bytes_and_no_work_the_second_time(
    small_run: Path, tmp_path: Path, command: str
) -> None:
    config = ANALYSES[command]
    first = execute(config, small_run)
    before = _digests(small_run)
    again = execute(config, small_run)
    elsewhere = execute(config, small_run, execution=Execution(out=tmp_path / "elsewhere"))
    assert (first.status, again.status, elsewhere.status) == (
        Status.COMPUTED, Status.UP_TO_DATE, Status.COMPUTED,
    )  # fmt: skip
    assert _digests(small_run) == before
    assert first.manifest is not None
    assert elsewhere.manifest is not None
    assert first.manifest.fingerprint == elsewhere.manifest.fingerprint
    assert _payload(first.manifest) == _payload(elsewhere.manifest)
    assert any(name.endswith(".png") for name in _payload(first.manifest))
    assert first.manifest.results == elsewhere.manifest.results


def test_training_twice_has_equal_bytes(small_run: Path, tmp_path: Path) -> None:
    again = execute(TRAIN, execution=Execution(out=tmp_path / "again"))
    assert again.manifest is not None
    original = read_manifest(small_run / "train.json")
    assert again.manifest.fingerprint == original.fingerprint
    assert _payload(again.manifest) == _payload(original)
    assert "checkpoints/step-00000016.pth" in again.manifest.outputs


def test_moved_run_keeps_its_fingerprint_and_is_up_to_date(small_run: Path, tmp_path: Path) -> None:
    execute(ANALYSES["interp"], small_run)
    moved = tmp_path / "far" / "away"
    moved.parent.mkdir()
    small_run.rename(moved)
    assert execute(ANALYSES["interp"], moved).status is Status.UP_TO_DATE


def test_up_to_date_touches_the_manifest_for_make(small_run: Path) -> None:
    path = small_run / "train.json"
    os.utime(path, (1, 1))
    assert execute(TRAIN, execution=Execution(out=small_run)).status is Status.UP_TO_DATE
    assert path.stat().st_mtime > 1


@pytest.mark.parametrize(
    ("change", "computes"),
    [
        ({"analysis_samples": 64}, True),
        ({"seed": 1}, True),
        ({"num_points": 7}, True),
        ({}, False),
    ],
)
def test_what_is_in_the_request_decides(
    small_run: Path, change: dict[str, Any], computes: bool
) -> None:
    execute(ANALYSES["interp"], small_run)
    config = ANALYSES["interp"].model_copy(update=change)
    outcome = execute(config, small_run, execution=Execution(num_threads=1, device="cpu"))
    assert (outcome.status is Status.COMPUTED) == computes


def test_damaged_output_is_computed_again(small_run: Path) -> None:
    first = execute(ANALYSES["contour"], small_run)
    (small_run / "contour.npz").write_bytes(b"damaged")
    again = execute(ANALYSES["contour"], small_run)
    assert again.status is Status.COMPUTED
    assert _payload(again.manifest) == _payload(first.manifest)


def test_figures_are_redrawn_without_computing(
    small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = execute(ANALYSES["contour"], small_run)

    def refuse(context: object) -> None:
        raise AssertionError("computed")

    monkeypatch.setattr(STEPS["contour"], "compute", refuse)
    pdf = execute(ANALYSES["contour"], small_run, figure=FigureConfig(format="pdf"))
    assert pdf.status is Status.REDRAWN
    assert (small_run / "contour_2d.pdf").read_bytes().startswith(b"%PDF")
    assert not (small_run / "contour_2d.png").exists()
    assert pdf.manifest is not None
    assert pdf.manifest.results == first.manifest.results  # type: ignore[union-attr]
    assert pdf.manifest.fingerprint == first.manifest.fingerprint  # type: ignore[union-attr]
    back = execute(ANALYSES["contour"], small_run)
    assert back.status is Status.REDRAWN
    assert _payload(back.manifest) == _payload(first.manifest)
    (small_run / "contour_3d.png").unlink()
    assert execute(ANALYSES["contour"], small_run).status is Status.REDRAWN


def test_a_training_that_is_redrawn_keeps_its_checkpoints(small_run: Path) -> None:
    before = _payload(read_manifest(small_run / "train.json"))
    figure = FigureConfig(format="pdf")
    again = execute(TRAIN, execution=Execution(out=small_run), figure=figure)
    assert again.status is Status.REDRAWN
    after = _payload(again.manifest)
    assert after.pop("train.pdf")
    assert after.items() == before.items() - {("train.png", before["train.png"])}
    assert verify_run(small_run) == ["train"]


def test_numbers_that_came_before_the_lock_are_not_redrawn_as_ones_own(
    small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = execute(ANALYSES["contour"], small_run)
    other = ANALYSES["contour"].model_copy(update={"seed": 1})
    module = importlib.import_module("lgo_cli.runs.execute")  # the package calls its function so

    def late(directory: Path, step: str) -> contextlib.AbstractContextManager[None]:
        monkeypatch.setattr(module, "step_lock", step_lock)
        assert execute(other, small_run).status is Status.COMPUTED
        return step_lock(directory, step)

    monkeypatch.setattr(module, "step_lock", late)
    again = execute(ANALYSES["contour"], small_run, figure=FigureConfig(format="pdf"))
    assert again.status is Status.COMPUTED
    assert _payload(again.manifest)["contour.npz"] == _payload(first.manifest)["contour.npz"]
    assert execute(other, small_run).status is Status.COMPUTED


@pytest.mark.parametrize("name", ["hessian.npz", "hessian.png", "hessian.json"])
def test_somebody_elses_file_is_left_alone(small_run: Path, name: str) -> None:
    foreign = small_run / name
    foreign.write_text("somebody's")
    before = _digests(small_run)
    for dry_run in (False, True):  # which promises nothing that is then refused
        with pytest.raises(OutputError, match=rf"{name} was not written by lgo"):
            execute(ANALYSES["hessian"], small_run, execution=Execution(dry_run=dry_run))
    assert _digests(small_run) == before
    execute(ANALYSES["hessian"], small_run, execution=Execution(force=True))
    assert foreign.read_bytes() != b"somebody's"


def test_manifest_cannot_make_lgo_remove_what_it_never_writes(
    small_run: Path, tmp_path: Path
) -> None:
    execute(ANALYSES["hessian"], small_run)
    victim = tmp_path / "thesis.tex"
    victim.write_text("years of work")
    inside = small_run / "notes.txt"
    inside.write_text("notes")
    path = small_run / "hessian.json"
    manifest = json.loads(path.read_text())
    for name in ("../thesis.tex", "notes.txt"):
        manifest["outputs"][name] = {**manifest["outputs"]["hessian.npz"], "path": name}
    path.write_text(json.dumps(manifest))
    claim = small_run / ".lgo" / "hessian.claim"
    claim.write_text(json.dumps({"names": ["../thesis.tex", "notes.txt", str(victim)]}))
    execute(ANALYSES["hessian"].model_copy(update={"seed": 5}), small_run)
    assert victim.read_text() == "years of work"
    assert inside.read_text() == "notes"
    assert writable("train", ["../x", "checkpoints/step-00000004.pth", "hessian.npz"]) == {
        "checkpoints/step-00000004.pth"
    }


@pytest.mark.parametrize("command", ["train", "contour"])
def test_interrupted_step_leaves_no_manifest_and_can_run_again(
    small_run: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    if command == "train":
        config, run = TRAIN.model_copy(update={"seed": 3}), None
    else:
        config, run = ANALYSES[command], small_run
        execute(config.model_copy(update={"seed": 9}), run)

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    execution = Execution(out=small_run)
    with monkeypatch.context() as patched:
        patched.setattr("lgo_cli.figures.catalogue.draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            execute(config, run, execution=execution)
    assert not (small_run / f"{command}.json").exists()
    assert not list(small_run.rglob("*.lgo-tmp"))
    assert execute(config, run, execution=execution).status is Status.COMPUTED
    assert not (small_run / ".lgo" / f"{command}.claim").exists()


def test_files_of_an_older_request_go_with_it(small_run: Path) -> None:
    somebodys = small_run / "checkpoints" / "notes.txt"
    somebodys.touch()
    execute(TRAIN.model_copy(update={"save_every": 8}), execution=Execution(out=small_run))
    assert {path.name for path in somebodys.parent.iterdir()} == {
        "notes.txt", "step-00000008.pth", "step-00000016.pth",
    }  # fmt: skip
    execute(
        TRAIN.model_copy(update={"save_every": None}),
        execution=Execution(out=small_run),
    )
    assert [*somebodys.parent.iterdir()] == [somebodys]
    somebodys.unlink()
    execute(TRAIN, execution=Execution(out=small_run))
    outcome = execute(
        TRAIN.model_copy(update={"save_every": None}), execution=Execution(out=small_run)
    )
    assert outcome.manifest is not None
    assert not (small_run / "checkpoints").exists()
    assert sorted(outcome.manifest.outputs) == [
        "init.pth", "model.pth", "state.pth", "train.csv", "train.png",
    ]  # fmt: skip


def test_two_writers_of_one_step(small_run: Path) -> None:
    with step_lock(small_run, "hessian"):
        with pytest.raises(OutputError, match="another lgo hessian is writing"):
            execute(ANALYSES["hessian"], small_run)
        assert execute(ANALYSES["interp"], small_run).status is Status.COMPUTED


def test_strict_and_not_converged(small_run: Path) -> None:
    config = HessianConfig(top_k=3, bottom_k=0, max_matvecs=4, analysis_samples=128)
    # Which, by how much and what would help, as it is said without --strict.
    with pytest.raises(NumericsError, match=r"did not converge in 4 .*largest.*--max-matvecs"):
        execute(config, small_run, execution=Execution(strict=True))
    assert not (small_run / "hessian.json").exists()
    outcome = execute(config, small_run)
    with pytest.raises(NumericsError, match="did not converge in 4"):  # nor of what is there now
        execute(config, small_run, execution=Execution(strict=True))
    assert outcome.manifest is not None
    assert outcome.manifest.results.converged is False  # type: ignore[attr-defined]
    results = outcome.manifest.results
    assert "did not converge" in results.warnings[0]
    assert results.unconverged == results.warnings[:1]  # type: ignore[attr-defined]


def test_refused_command_leaves_the_old_results(small_run: Path, tmp_path: Path) -> None:
    execute(ANALYSES["hessian"], small_run)
    execute(ANALYSES["interp"], small_run)
    before = _digests(small_run)
    times = (small_run / "hessian.json").stat().st_mtime_ns
    other = tmp_path / "other.pth"
    torch.save({"linear1.weight": torch.zeros(1, 1)}, other)
    refused: list[tuple[Any, Execution]] = [
        (HessianConfig(top_k=100_000), Execution()),
        (HessianConfig(top_k=3, max_matvecs=4, analysis_samples=64), Execution(strict=True)),
        (InterpConfig(to=str(other)), Execution()),
        (TRAIN.model_copy(update={"seed": 8}), Execution(out=small_run, resume=True)),
    ]
    for config, execution in refused:
        with pytest.raises(LgoError):
            execute(config, small_run, execution=execution)
        assert _digests(small_run) == before
        assert not list((small_run / ".lgo").glob("*.claim"))
    # Not newer than it was either, or Make would take the refusal for a success.
    assert (small_run / "hessian.json").stat().st_mtime_ns == times
    assert verify_run(small_run) == ["train", "hessian", "interp"]


def test_refusal_in_an_empty_place_leaves_no_claim(small_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    with pytest.raises(UsageError, match="are more than"):
        execute(HessianConfig(top_k=100_000), small_run, execution=Execution(out=out))
    assert not (out / ".lgo" / "hessian.claim").exists()


@pytest.mark.parametrize(
    "other",
    [
        {"operator": "ggn"}, {"scaling": "elementwise"}, {"layers": ["output"]},
        {"include_weight_decay": True}, {"dtype": "float64"}, {"loss": "squared_error"},
        "not converged", "one alone", "of another algorithm", "of other weights",
        "without its code", "damaged",
    ],
    ids=str,
)  # fmt: skip
def test_eigenvectors_of_something_else_are_not_read(
    small_run: Path, other: dict[str, Any] | str
) -> None:
    found = execute(ANALYSES["hessian"], small_run).manifest
    assert found is not None
    request = plan_step(ANALYSES["contour"], small_run, Execution()).request
    assert saved_eigenvectors([small_run], request, 2) is not None
    asked, results = found.request, found.results
    assert isinstance(results, HessianResults)
    if isinstance(other, dict):
        asked = asked.model_copy(update={"config": {**asked.config, **other}})
    elif other == "not converged":
        results = results.model_copy(update={"converged": False})
    elif other == "one alone":
        results = results.model_copy(update={"largest": results.largest[:1]})
    elif other == "of another algorithm":
        asked = asked.model_copy(update={"algorithm_version": asked.algorithm_version - 1})
    elif other == "of other weights":
        weights = asked.inputs["model.pth"].model_copy(update={"sha256": "0" * 64})
        asked = asked.model_copy(update={"inputs": {"model.pth": weights}})
    elif other == "without its code":
        code = {"model.py": request.inputs["model.pth"]}
        request = request.model_copy(update={"inputs": {**request.inputs, **code}})
    else:
        (small_run / "hessian.npz").write_bytes(b"damaged")
    changed = found.model_copy(update={"request": asked, "results": results})
    write_manifest(changed, small_run / "hessian.json")
    assert saved_eigenvectors([small_run], request, 2) is None


def test_one_eigenvector_is_read_where_one_is_enough(small_run: Path) -> None:
    execute(HessianConfig(top_k=1, bottom_k=0, analysis_samples=128), small_run)
    for plane, enough in (("eigen", False), ("random+eigen", True)):
        config = ANALYSES["contour"].model_copy(update={"plane": plane})
        inputs = plan_step(config, small_run, Execution()).request.inputs
        assert ("hessian.npz" in inputs) == enough


def test_eigenvectors_that_are_not_precise_enough_are_not_read(
    small_run: Path, tmp_path: Path
) -> None:
    execute(HessianConfig(top_k=2, rtol=0.9, analysis_samples=128), small_run)
    contour = ANALYSES["contour"].model_copy(update={"plane": "eigen"})
    loose = execute(contour, small_run, execution=Execution(out=tmp_path / "loose"))
    assert "hessian.npz" not in loose.manifest.request.inputs  # type: ignore[union-attr]


def test_threshold_is_of_the_checkpoints_own_step(small_run: Path, tmp_path: Path) -> None:
    rates = [line.split(",") for line in (small_run / "train.csv").read_text().splitlines()[1:]]
    rate_of = {int(row[1]): float(row[2]) for row in rates}
    config = HessianConfig(top_k=1, bottom_k=0, analysis_samples=64)
    for name, step in (("model.pth", 16), ("checkpoints/step-00000008.pth", 8)):
        results = execute(
            config, small_run / name, execution=Execution(out=tmp_path / str(step))
        ).manifest.results  # type: ignore[union-attr]
        assert results.stability_threshold == pytest.approx(2 * 1.9 / rate_of[step])  # type: ignore[attr-defined]
    assert rate_of[8] != rate_of[16]
    initial = execute(
        config, small_run / "init.pth", execution=Execution(out=tmp_path / "init")
    ).manifest.results  # type: ignore[union-attr]
    assert initial.stability_threshold is None  # type: ignore[attr-defined]
    assert "no step behind it" in initial.stability_threshold_note  # type: ignore[attr-defined]


def test_threshold_is_of_the_runs_own_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of what the model's published recipe says when it is analysed."""
    config = HessianConfig(top_k=1, bottom_k=0, analysis_samples=64)
    mlp = MODELS["mlp"]
    other = replace(mlp, recipe=replace(mlp.recipe, milestones=(0.25,), gamma=0.5))
    with monkeypatch.context() as patch:
        patch.setitem(MODELS, "mlp", other)
        execute(TRAIN, execution=Execution(out=tmp_path / "run"))
    recipe = read_manifest(tmp_path / "run" / "train.json").results.recipe  # type: ignore[attr-defined]
    assert (recipe.milestones, recipe.gamma) == ((0.25,), 0.5)
    execute(config, tmp_path / "run")
    results = read_manifest(tmp_path / "run" / "hessian.json").results
    assert results.stability_threshold == pytest.approx(2 * 1.9 / (0.5 * recipe.lr))  # type: ignore[attr-defined]


def test_recipe_of_a_manifest_without_milestones_is_what_it_was(small_run: Path) -> None:
    config = HessianConfig(top_k=1, bottom_k=0, analysis_samples=64)
    execute(config, small_run)
    before = read_manifest(small_run / "hessian.json").results
    path = small_run / "train.json"
    manifest = json.loads(path.read_text())
    for key in ("milestones", "gamma"):
        del manifest["results"]["recipe"][key]
    path.write_text(json.dumps(manifest))
    assert execute(config, small_run).status is Status.UP_TO_DATE
    execute(config, small_run, execution=Execution(force=True))
    assert read_manifest(small_run / "hessian.json").results == before


def test_dry_run_does_nothing(small_run: Path, tmp_path: Path) -> None:
    before = _digests(small_run)
    outcome = execute(
        ANALYSES["hessian"], small_run, execution=Execution(dry_run=True, out=tmp_path / "new")
    )
    assert outcome.status is Status.PLANNED
    assert outcome.manifest is None
    assert _digests(small_run) == before
    assert not (tmp_path / "new").exists()


def test_paths_may_be_strings_and_ranges_lists(small_run: Path, tmp_path: Path) -> None:
    asked = [
        (InterpConfig(range=bounds, num_points=3, analysis_samples=64), run, Execution(out=out))  # type: ignore[arg-type]
        for bounds, run, out in (
            ((-1.0, 1.0), small_run, tmp_path / "new"),
            ([-1.0, 1.0], str(small_run), str(tmp_path / "new")),
        )
    ]
    first, second = (execute(config, run, execution=how) for config, run, how in asked)
    assert (first.status, second.status) == (Status.COMPUTED, Status.UP_TO_DATE)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_resume_reaches_the_bytes_of_an_undisturbed_run(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lgo_cli.runs.steps import train as train_step
    from lgo_cli.training import loop

    config = TRAIN.model_copy(
        update={"epochs": 4, "optimizer": optimizer, "lr": 0.01, "save_every": 8}
    )
    whole = execute(config, execution=Execution(out=tmp_path / "whole"))
    monkeypatch.setattr(train_step, "STATE_INTERVAL_S", 0.0)
    original = loop.Training._log_epoch

    def interrupted(self: loop.Training) -> loop.EpochRow:
        if self.epoch == 3:
            raise KeyboardInterrupt
        return original(self)

    out = tmp_path / "broken"
    monkeypatch.setattr(loop.Training, "_log_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute(config, execution=Execution(out=out))
    assert torch.load(out / "state.pth", weights_only=True)["epoch"] == 2
    monkeypatch.setattr(loop.Training, "_log_epoch", original)
    epochs: list[int] = []
    train_epoch = loop.Training._train_epoch

    def counted(self: loop.Training, *arguments: Any) -> None:
        epochs.append(self.epoch)
        train_epoch(self, *arguments)

    monkeypatch.setattr(loop.Training, "_train_epoch", counted)
    with pytest.raises(InputError, match="state of another training"):
        execute(config.model_copy(update={"seed": 1}), execution=Execution(out=out, resume=True))
    state = (out / "state.pth").read_bytes()
    (out / "state.pth").write_bytes(state[: len(state) // 2])
    with pytest.raises(InputError, match="is not a readable checkpoint") as caught:
        execute(config, execution=Execution(out=out, resume=True))
    assert caught.value.hint == "leave --resume out to start over"
    (out / "state.pth").write_bytes(state)
    resumed = execute(config, execution=Execution(out=out, resume=True))
    assert epochs == [2, 3]
    assert _payload(resumed.manifest) == _payload(whole.manifest)


def test_steps_between_checkpoints_that_are_too_many_are_told(lgo: Lgo) -> None:
    told = "warning: --save-every 17 is more than the 16 steps of this training: it keeps no"
    assert told in lgo("train", *SMALL, "--save-every", 17, "--out", "none").stderr
    assert "warning" not in lgo("train", *SMALL, "--save-every", 16, "--out", "one").stderr
    assert [path.name for path in Path("one/checkpoints").iterdir()] == ["step-00000016.pth"]


def test_diverged_training_leaves_finite_weights_and_no_manifest(tmp_path: Path) -> None:
    config = TRAIN.model_copy(update={"lr": 1e9, "loss": "squared_error", "epochs": 30})
    out = tmp_path / "diverged"
    with pytest.raises(NumericsError, match=r"at step \d+ of 240, with learning rate 1e\+09"):
        execute(config, execution=Execution(out=out))
    assert not (out / "train.json").exists()
    state = torch.load(out / "model.pth", weights_only=True)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())
    # --resume, which goes on where a training was interrupted, would diverge once more.
    with pytest.raises(InputError) as refused:
        execute(ANALYSES["hessian"], out)
    assert str(refused.value.hint).startswith("its training failed (")
    assert str(refused.value.hint).endswith("): lower the learning rate: --lr, or warm it up first")
    assert inspect_run(out)[0].problems[0].startswith("failed: ")
    again = execute(config.model_copy(update={"lr": 0.01}), execution=Execution(out=out))
    assert again.status is Status.COMPUTED
    assert not inspect_run(out)[0].problems


def test_eigenvectors_are_read_where_they_fit(small_run: Path, tmp_path: Path) -> None:
    contour = ANALYSES["contour"].model_copy(update={"plane": "eigen"})
    computed = execute(contour, small_run, execution=Execution(out=tmp_path / "computed"))
    hessian = execute(ANALYSES["hessian"], small_run)
    read = execute(contour, small_run)
    assert computed.manifest is not None
    assert hessian.manifest is not None
    assert read.manifest is not None
    # Two products of the quadratic model in either case.
    assert computed.manifest.results.num_matvecs > 2  # type: ignore[attr-defined]
    assert read.manifest.results.num_matvecs == 2  # type: ignore[attr-defined]
    reference = read.manifest.request.inputs["hessian.npz"]
    assert reference.produced_by == hessian.manifest.fingerprint
    with np.load(small_run / "contour.npz") as surface, np.load(small_run / "hessian.npz") as found:
        assert np.array_equal(surface["directions"], found["eigenvectors"][:2])
    one = contour.model_copy(update={"plane": "random+eigen"})
    labels = execute(one, small_run).manifest.results.axis_labels  # type: ignore[union-attr]
    largest = hessian.manifest.results.largest[0].value  # type: ignore[attr-defined]
    assert f"λ = {largest:.4g}" in labels[0]
    other = execute(
        contour.model_copy(update={"analysis_samples": 64}), small_run,
        execution=Execution(out=tmp_path / "other"),
    )  # fmt: skip
    assert "hessian.npz" not in other.manifest.request.inputs  # type: ignore[union-attr]


@pytest.mark.parametrize("direction", ["random", "gradient", "eigen"])
def test_lines_along_directions(small_run: Path, direction: str) -> None:
    config = parse_config(
        InterpConfig, {"direction": direction, "num_points": 4, "range": [-0.5, 1.0],
                       "analysis_samples": 64},
    )  # fmt: skip
    results = execute(config, small_run).manifest.results  # type: ignore[union-attr]
    assert results.barrier is None  # type: ignore[attr-defined]
    with np.load(small_run / "interp.npz") as arrays:
        assert arrays["alpha"].tolist() == [-0.5, 0.0, 0.5, 1.0]
        assert arrays["loss"][1] == results.loss_at_start  # type: ignore[attr-defined]
        assert arrays["loss"][-1] == results.loss_at_end  # type: ignore[attr-defined]


def test_what_an_analysis_says_itself_is_over_what_the_run_says(small_run: Path) -> None:
    own = plan_step(ANALYSES["interp"], small_run, Execution()).request.config
    said: dict[str, Any] = {
        "model_arg": {"activation": "tanh"}, "dataset_arg": {"noise": 2.0}, "train_samples": 200,
        "loss": "squared_error", "label_smoothing": 0.0,
    }  # fmt: skip
    config = parse_config(InterpConfig, {**ANALYSES["interp"].model_dump(mode="json"), **said})
    found = plan_step(config, small_run, Execution()).request.config
    for name in ("model_arg", "dataset_arg"):
        assert found[name] == {**own[name], **said.pop(name)} != own[name]  # type: ignore[dict-item]
    assert {name: found[name] for name in said} == said


def test_plain_state_dict_is_a_run(small_run: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes((small_run / "model.pth").read_bytes())
    with pytest.raises(UsageError, match=r"comes with no train\.json"):
        execute(ANALYSES["hessian"], weights)
    named = ANALYSES["hessian"].model_copy(
        update={"model": "mlp", "model_arg": {"hidden": 8}, "dataset": "synthetic",
                "dataset_arg": {"num_train": 256, "num_test": 128}}
    )  # fmt: skip
    out = Execution(out=tmp_path / "out")
    plain = execute(named, weights, execution=out).manifest
    of_run = execute(ANALYSES["hessian"], small_run).manifest
    assert plain.results.largest == of_run.results.largest  # type: ignore[union-attr]
    assert plain.results.stability_threshold is None  # type: ignore[union-attr]
    assert "not known" in plain.results.stability_threshold_note  # type: ignore[union-attr]


def test_checkpoint_on_the_way_and_pca(small_run: Path) -> None:
    path = small_run / "checkpoints" / "step-00000008.pth"
    outcome = execute(ANALYSES["hessian"], path)
    assert outcome.path == small_run / "checkpoints" / "hessian.json"
    pca = execute(ANALYSES["contour"].model_copy(update={"plane": "pca"}), small_run).manifest
    trajectory = pca.results.trajectory  # type: ignore[union-attr]
    assert [point.label for point in trajectory] == ["init", "4", "8", "12", "16", "end"]
    # Step 16 of 16 is the run itself: it lies at the centre, to float32's rounding.
    assert abs(trajectory[-2].x) < 1e-5
    # An MLP has no buffers: each checkpoint is drawn as what it is.
    assert all(point.own_loss == point.loss for point in trajectory)
    assert sum(pca.results.explained_variance) <= 1 + 1e-12  # type: ignore[union-attr]


def test_training_begins_from_other_weights(lgo: Lgo) -> None:
    """Of steps without memory two halves are the whole, but for the order of a sum's terms."""
    step = (
        *SMALL, "--batch-size", 256, "--momentum", 0, "--schedule", "constant", "--weight-decay", 0,
    )  # fmt: skip
    lgo("train", *step, "--epochs", 4, "--out", "whole")
    lgo("train", *step, "--out", "first")
    second = ("train", *step, "--seed", 5, "--init", "first", "--out", "second")
    lgo(*second)
    end, init = torch.load("first/model.pth"), torch.load("second/init.pth")
    whole, halves = torch.load("whole/model.pth"), torch.load("second/model.pth")
    for name, value in end.items():
        assert torch.equal(init[name], value)
        assert not torch.equal(halves[name], value)
        torch.testing.assert_close(halves[name], whole[name], rtol=1e-5, atol=1e-6)
    request = json.loads(Path("second/train.json").read_text())["request"]
    assert request["config"]["init"] == "init.pth"
    assert request["inputs"]["init.pth"] == {
        "sha256": hashlib.sha256(Path("first/model.pth").read_bytes()).hexdigest(),
        "produced_by": read_manifest(Path("first/train.json")).fingerprint,
    }
    for again in (second, ("train", "--config", "second/train.json", "--out", "second")):
        assert "up to date" in lgo(*again).stderr
    lgo("interp", "second", "--num-points", 3)
    lgo("verify", "second")
    # A file that belongs to no run has weights too.
    shutil.copy("whole/init.pth", "elsewhere.pth")
    lgo("train", *step, "--init", "elsewhere.pth", "--out", "third")
    for name, value in torch.load("elsewhere.pth").items():
        assert torch.equal(torch.load("third/init.pth")[name], value)
    lgo("train", *step, "--seed", 9, "--out", "first")
    stale = "stale: input init.pth (first/model.pth) has changed since"
    assert stale in lgo("verify", "second", code=3).stderr
    assert (
        "is not the init.pth that the manifest records"
        in lgo("train", "--config", "second/train.json", code=3).stderr
    )


def test_training_does_not_begin_from_what_it_replaces_or_what_does_not_fit(lgo: Lgo) -> None:
    lgo("train", *SMALL)
    before = _digests(Path("outputs"))
    error = lgo("train", *SMALL, "--init", "outputs/init.pth", code=2).stderr
    assert error.startswith(
        "lgo: error: --init outputs/init.pth is of the run that this training would replace\n"
    )
    shutil.copytree("outputs", "gone")
    Path("gone/train.json").unlink()
    error = lgo("train", *SMALL, "--init", "gone/model.pth", "--out", "gone", code=2).stderr
    assert "--init gone/model.pth is of the run that this training would replace\n" in error
    shutil.copytree("outputs", "linked")
    Path("linked/model.pth").rename("store.pth")
    Path("linked/model.pth").symlink_to(Path("store.pth").resolve())
    error = lgo("train", *SMALL, "--init", "linked", "--out", "linked", code=2).stderr
    assert "--init linked is of the run that this training would replace\n" in error
    error = lgo("train", "--init", "outputs", "--epochs", 1, "--out", "other", code=3).stderr
    assert "outputs/model.pth does not fit the model" in error
    assert not Path("other").exists()
    assert (
        "no such run or checkpoint: none"
        in lgo("train", *SMALL, "--init", "none", "--out", "other", code=3).stderr
    )
    assert _digests(Path("outputs")) == before


def test_changed_weights_are_not_the_manifests(small_run: Path) -> None:
    weights = small_run / "model.pth"
    weights.write_bytes(weights.read_bytes() + b"x")
    with pytest.raises(InputError, match="is not the file that"):
        execute(ANALYSES["hessian"], small_run)


MODEL = """
from torch import nn
from pathlib import Path
Path(__file__).with_name("executed").touch()
def build(input_shape, num_classes, width=3):
    return nn.Sequential(nn.Linear(input_shape[0], width), nn.Tanh(), nn.Linear(width, num_classes))
"""


def test_code_of_a_run_is_run_only_at_the_users_word(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(MODEL)
    reference = f"{file}:build"
    out = tmp_path / "run"
    config = TRAIN.model_copy(update={"model": reference, "model_arg": {"width": 5}})
    trained = execute(config, execution=Execution(out=out)).manifest
    assert trained is not None
    assert str(tmp_path) not in json.dumps(trained.request.model_dump())
    marker = tmp_path / "executed"
    marker.unlink()
    with pytest.raises(UsageError, match="runs only if you name it"):
        execute(ANALYSES["interp"], out)
    assert not marker.exists()
    trusted = execute(ANALYSES["interp"], out, execution=Execution(trust_code=True))
    named = ANALYSES["interp"].model_copy(update={"model": reference, "model_arg": {"width": 5}})
    assert execute(named, out).status is Status.UP_TO_DATE
    assert trusted.manifest is not None
    assert trusted.manifest.results.model == "model.py:build"
    file.write_text(MODEL + "\n# changed")
    with pytest.raises(InputError, match="not the file that the run was trained with"):
        execute(ANALYSES["interp"], out, execution=Execution(trust_code=True))
    changed = execute(named, out)
    assert "has changed since" in changed.manifest.results.warnings[0]  # type: ignore[union-attr]


def test_npz_enters_by_its_digest(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    data = tmp_path / "data.npz"
    arrays = {
        "x_train": draw.normal(size=(64, 4)), "y_train": np.arange(64) % 3,
        "x_test": draw.normal(size=(32, 4)), "y_test": np.arange(32) % 3,
    }  # fmt: skip
    np.savez(data, **arrays)
    config = TRAIN.model_copy(update={"dataset": str(data), "dataset_arg": {}, "save_every": None})
    out = tmp_path / "run"
    execute(config, execution=Execution(out=out))
    outcome = execute(ANALYSES["interp"], out)
    assert outcome.manifest is not None
    assert any("all 64 training samples" in w for w in outcome.manifest.results.warnings)
    np.savez(data, **{**arrays, "x_test": arrays["x_test"] + 1})
    with pytest.raises(InputError, match="not the file that the run was trained with"):
        execute(ANALYSES["interp"], out)


def test_num_threads_is_recorded_and_put_back(small_run: Path) -> None:
    outcome = execute(ANALYSES["interp"], small_run, execution=Execution(num_threads=2))
    assert outcome.manifest is not None
    assert outcome.manifest.environment.num_threads == 2
    assert torch.get_num_threads() == 1


def test_frozen_batch_norm_says_what_the_other_end_would_be(tmp_path: Path) -> None:
    """At α = 1 stand the other's weights with the run's own statistics; its true loss is beside."""
    model = {"hidden": [8], "batch_norm": True}
    config = TRAIN.model_copy(update={"model_arg": model, "save_every": None})
    out = tmp_path / "run"
    execute(config, execution=Execution(out=out))
    results = execute(ANALYSES["interp"], out).manifest.results  # type: ignore[union-attr]
    own = ANALYSES["hessian"].model_copy(update={"top_k": 0, "bottom_k": 0, "trace": False,
                                                 "density": False})  # fmt: skip
    initial = execute(own, out / "init.pth", execution=Execution(out=tmp_path / "init")).manifest
    assert results.measured.batchnorm == "frozen"  # type: ignore[attr-defined]
    assert results.loss_of_other == initial.results.loss  # type: ignore[attr-defined,union-attr]
    assert results.loss_of_other != results.loss_at_end  # type: ignore[attr-defined]
    assert "batch-norm statistics are the run's own" in results.warnings[0]


IMPRECISE = """
import torch

torch.set_float32_matmul_precision("medium")

class Watching(torch.nn.Linear):
    def forward(self, x):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
        return super().forward(x.flatten(1))

def build(input_shape, num_classes):
    return Watching(input_shape[0], num_classes)
"""


def test_float32_is_float32_whatever_a_model_file_allows(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(IMPRECISE)
    config = TRAIN.model_copy(update={"model": f"{tmp_path / 'net.py'}:build", "model_arg": {}})
    assert execute(config, execution=Execution(out=tmp_path / "run")).status is Status.COMPUTED
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_notebooks_modes_and_defaults_change_no_number(tmp_path: Path) -> None:
    config = TRAIN.model_copy(update={"save_every": None})
    hessian = HessianConfig(top_k=1, trace=True, analysis_samples=64)

    def measured(name: str) -> list[dict[str, Any]]:
        trained = execute(config, execution=Execution(out=tmp_path / name))
        return [_payload(trained.manifest), _payload(execute(hessian, tmp_path / name).manifest)]

    alone = measured("alone")
    with torch.no_grad():
        assert measured("no_grad") == alone
    with torch.inference_mode():
        assert measured("inference_mode") == alone
    with torch.autocast("cpu"):
        assert measured("autocast") == alone
    with torch.device("meta"):
        assert measured("device") == alone
        assert torch.empty(0).device.type == "meta"
    torch.set_default_dtype(torch.float64)
    try:
        assert measured("dtype") == alone
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_threads_compute_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They share PyTorch's generator, from which weights are drawn."""
    module = importlib.import_module("lgo_cli.runs.execute")
    compute, met = module._compute, threading.Barrier(2)
    together: list[str] = []

    def watched(*arguments: Any) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):
            met.wait(1.0)
            together.append("both")
        return compute(*arguments)

    monkeypatch.setattr(module, "_compute", watched)
    threads = [
        threading.Thread(
            target=execute, args=(TRAIN,), kwargs={"execution": Execution(out=tmp_path / name)}
        )
        for name in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not together
    first, second = ((tmp_path / name / "model.pth").read_bytes() for name in "ab")
    assert first == second


def _switches() -> list[str]:
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    parts = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    return [part.fp32_precision for part in (*parts, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)]


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="needs PyTorch 2.9")
@pytest.mark.parametrize("api", ["default", "older", "newer", "newest"])
def test_precision_is_put_back_as_the_process_had_it(api: str) -> None:
    with machine_settings(None, "cpu"):  # which puts back what follows
        if api == "older":
            torch.set_float32_matmul_precision("medium")
        elif api == "newer":
            torch.backends.cuda.matmul.fp32_precision = "tf32"
        elif api == "newest":
            torch.backends.mkldnn.conv.fp32_precision = "bf16"
        before = _switches()
        with machine_settings(None, "cpu"):
            assert torch.get_float32_matmul_precision() == "highest"
            assert set(_switches()) == {"ieee"}
        assert _switches() == before
        if api == "older":
            assert torch.get_float32_matmul_precision() == "medium"


def test_on_cuda_what_can_be_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    with machine_settings(None, "cuda"):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert torch.are_deterministic_algorithms_enabled()
        assert not environment("cuda").deterministic  # what cannot be only warns
        torch.use_deterministic_algorithms(True)
        assert environment("cuda").deterministic
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("name", ["model.pth", "hessian.npz"])
def test_input_that_another_process_replaces_meanwhile_is_refused(
    name: str, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the new one's numbers would be published as the planned one's."""
    execute(HessianConfig(top_k=2, vector_rtol=1e-3, analysis_samples=64), small_run)
    # The one is read when inputs are loaded, the other by the step itself.
    loaded = importlib.import_module("lgo_cli.runs.loaded"), "load"
    where, what = loaded if name == "model.pth" else (type(STEPS["contour"]), "compute")
    original = getattr(where, what)

    def replaced(*arguments: Any) -> Any:
        if name == "model.pth":
            (small_run / "new").write_bytes((small_run / "init.pth").read_bytes())
        else:
            arrays = load_arrays(small_run / name)
            with (small_run / "new").open("wb") as handle:
                np.savez(handle, **{key: -array for key, array in arrays.items()})
        os.replace(small_run / "new", small_run / name)
        return original(*arguments)

    monkeypatch.setattr(where, what, replaced)
    config = ContourConfig(plane="eigen", resolution="3", analysis_samples=64)
    with pytest.raises(InputError, match=f"{name} changed while it was read"):
        execute(config, small_run, execution=Execution(out=tmp_path / "out"))
    assert not (tmp_path / "out" / "contour.json").exists()
