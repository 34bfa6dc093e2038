"""Which files are a step's own, and which are somebody's, when their manifest is gone."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from lgo_cli.config import ContourConfig, Execution, FigureConfig, HessianConfig, TrainConfig
from lgo_cli.errors import DamagedError, InputError, NumericsError, OutputError, UsageError
from lgo_cli.manifest import Manifest
from lgo_cli.progress import SILENT
from lgo_cli.runs import Status, execute
from lgo_cli.runs.claims import read_aside
from lgo_cli.runs.inspect import inspect_run
from lgo_cli.runs.plan import plan_step

HESSIAN = HessianConfig(top_k=2, analysis_samples=64)


class _Notes(type(SILENT)):  # type: ignore[misc]
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize("damage", ["delete", "truncate and delete as the hint says"])
def test_a_deleted_manifest_is_made_again(small_run: Path, damage: str) -> None:
    first = execute(HESSIAN, small_run).manifest
    path = small_run / "hessian.json"
    if damage != "delete":
        path.write_bytes(path.read_bytes()[:500])
        with pytest.raises(OutputError, match="was not written by lgo hessian"):
            execute(HESSIAN, small_run)
    path.unlink()
    assert [state.problems for state in inspect_run(small_run)] == [(), (), (), ()]
    again = execute(HESSIAN, small_run)
    assert again.status is Status.COMPUTED
    assert again.manifest is not None
    assert first is not None
    assert again.manifest.outputs == first.outputs


def test_a_deleted_manifest_of_training_is_made_again(small_run: Path) -> None:
    config = TrainConfig(
        model_arg={"hidden": [8]}, dataset_arg={"num_train": 256, "num_test": 128}, epochs=1,
        batch_size=32,
    )  # fmt: skip
    (small_run / "train.json").unlink()
    execute(config, execution=Execution(out=small_run))
    # What the new request does not write goes, as it does beside an old manifest.
    assert not (small_run / "checkpoints").exists()


def test_redrawn_figures_are_recorded_too(small_run: Path) -> None:
    config = ContourConfig(resolution="3", analysis_samples=64)
    execute(config, small_run)
    pdf = FigureConfig(format="pdf")
    assert execute(config, small_run, figure=pdf).status is Status.REDRAWN
    (small_run / "contour.json").unlink()
    execute(config, small_run)
    assert not (small_run / "contour_2d.pdf").exists()


def test_somebodys_file_beside_a_deleted_manifest_is_left_alone(small_run: Path) -> None:
    execute(HESSIAN, small_run)
    (small_run / "hessian.json").unlink()
    figure = small_run / "hessian.png"
    figure.write_bytes(b"somebody's")
    with pytest.raises(OutputError, match=r"hessian\.png was not written by lgo hessian"):
        execute(HESSIAN, small_run)
    assert figure.read_bytes() == b"somebody's"
    figure.unlink()
    # A refusal before the first output leaves no claim on a name that is free.
    with pytest.raises(UsageError, match="are more than"):
        execute(HessianConfig(top_k=10_000), small_run)
    assert not (small_run / ".lgo" / "hessian.claim").exists()
    figure.write_bytes(b"somebody's")
    with pytest.raises(OutputError, match=r"hessian\.png was not written by lgo hessian"):
        execute(HESSIAN, small_run)


def test_a_record_names_nothing_that_the_step_never_writes(small_run: Path, tmp_path: Path) -> None:
    execute(HESSIAN, small_run)
    victim = tmp_path / "thesis.tex"
    victim.write_bytes(b"years of work")
    digest = hashlib.sha256(b"years of work").hexdigest()
    record = small_run / ".lgo" / "hessian.written"
    names = json.loads(record.read_bytes())
    record.write_text(json.dumps({**names, "../thesis.tex": digest}))
    execute(HESSIAN.model_copy(update={"top_k": 1}), small_run)
    assert victim.read_bytes() == b"years of work"


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"hessian.npz": 3}'])
def test_a_damaged_record_says_nothing(small_run: Path, content: bytes) -> None:
    execute(HESSIAN, small_run)
    (small_run / ".lgo" / "hessian.written").write_bytes(content)
    assert execute(HESSIAN, small_run).status is Status.UP_TO_DATE
    (small_run / "hessian.json").unlink()
    with pytest.raises(OutputError, match=r"hessian\.npz was not written by lgo hessian"):
        execute(HESSIAN, small_run)


def test_a_kill_between_record_and_manifest_is_gone_on_from(
    small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(HESSIAN, small_run)
    other = HESSIAN.model_copy(update={"top_k": 3})

    def kill(manifest: Manifest, path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("lgo_cli.runs.claims.write_manifest", kill)
        with pytest.raises(KeyboardInterrupt):
            execute(other, small_run)
    assert not (small_run / "hessian.json").exists()
    assert execute(other, small_run).status is Status.COMPUTED


@pytest.mark.parametrize("top_k", [2, 3])
def test_an_edited_request_is_left_alone_without_force(small_run: Path, top_k: int) -> None:
    execute(HESSIAN, small_run)
    path = small_run / "hessian.json"
    edited = path.read_text().replace('"seed": 0', '"seed": 7')
    path.write_text(edited)
    # Neither up to date nor another's to be replaced.
    config = HESSIAN.model_copy(update={"top_k": top_k})
    with pytest.raises(OutputError, match="was edited since lgo wrote it") as caught:
        execute(config, small_run)
    assert caught.value.hint == "undo the edit, choose another --out, or --force to replace it"
    assert path.read_text() == edited
    assert execute(config, small_run, execution=Execution(force=True)).status is Status.COMPUTED
    assert execute(config, small_run).status is Status.UP_TO_DATE


def test_an_interrupted_redraw_leaves_nothing_that_is_nobodys(
    small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, pdf = ContourConfig(resolution="3", analysis_samples=64), FigureConfig(format="pdf")
    execute(config, small_run)

    def fail(*_: object) -> None:
        assert (small_run / "contour_2d.pdf").exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["lgo_cli.runs.execute"], "publish", fail)
        with pytest.raises(KeyboardInterrupt):
            execute(config, small_run, figure=pdf)
    assert not (small_run / "contour_2d.pdf").exists()
    assert execute(config, small_run).status is Status.UP_TO_DATE
    assert execute(config, small_run, figure=pdf).status is Status.REDRAWN


@pytest.mark.parametrize(
    ("figure", "moment"),
    [
        (FigureConfig(format="pdf"), "figures.catalogue.draw"),
        (FigureConfig(format="pdf"), "runs.execute.publish"),
        (FigureConfig(dpi=72), "runs.execute.publish"),
    ],
)
def test_a_killed_redraw_is_drawn_again_and_not_computed(
    small_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    figure: FigureConfig,
    moment: str,
) -> None:
    config, killed = ContourConfig(resolution="3", analysis_samples=64), tmp_path / "killed"
    first = execute(config, small_run).manifest

    def kill(*_: object) -> None:
        if not killed.exists():
            shutil.copytree(small_run, killed)
        raise KeyboardInterrupt

    module, _, name = f"lgo_cli.{moment}".rpartition(".")
    with monkeypatch.context() as patched:
        patched.setattr(sys.modules[module], name, kill)
        with pytest.raises(KeyboardInterrupt):
            execute(config, small_run, figure=figure)
        assert not (killed / "contour.json").exists()
        plan = plan_step(config, killed, Execution())
        assert read_aside(plan) is not None
        aside = killed / ".lgo" / "contour.old.json"
        text = aside.read_text()
        aside.write_text(text.replace('"seed": 0', '"seed": 7'))
        assert read_aside(plan) is None  # it was edited
        aside.write_text(text)
        planned = execute(config, killed, execution=Execution(dry_run=True))
        assert planned.status is Status.REDRAW_PLANNED
        left = killed / f".contour_2d.{figure.format}.lgo-tmp"
        left.touch()  # as of a kill while it was written
        with pytest.raises(KeyboardInterrupt):  # it is no worse after Ctrl-C
            execute(config, killed, figure=figure)
        assert not left.exists()
    again = execute(config, killed, figure=FigureConfig(dpi=50))
    assert again.status is Status.REDRAWN
    assert first is not None
    assert again.manifest is not None
    assert again.manifest.outputs["contour.npz"] == first.outputs["contour.npz"]
    assert not list(killed.glob("*.pdf"))
    assert {path.name for path in (killed / ".lgo").glob("contour.*")} == {
        "contour.lock", "contour.written",
    }  # fmt: skip


def test_a_kill_among_other_numbers_leaves_none_that_stand(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(HESSIAN, small_run)

    def kill(*_: object) -> None:
        shutil.copytree(small_run, tmp_path / "killed")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("lgo_cli.figures.catalogue.draw", kill)
        with pytest.raises(KeyboardInterrupt):
            execute(HESSIAN.model_copy(update={"top_k": 3}), small_run)
    other, killed = HESSIAN.model_copy(update={"top_k": 1}), tmp_path / "killed"
    notes = _Notes()
    out = Execution(out=killed)
    shutil.copytree(killed, tmp_path / "again")
    execute(other, killed / "init.pth", execution=out, progress=notes)
    assert not notes.said  # of what they were: that does not stand any more
    assert execute(HESSIAN, tmp_path / "again").status is Status.COMPUTED


def test_a_manifest_that_was_set_aside_is_not_somebodys_in_its_place(small_run: Path) -> None:
    execute(HESSIAN, small_run)
    path = small_run / "hessian.json"
    path.rename(small_run / ".lgo" / "hessian.old.json")
    path.write_text("{}")
    with pytest.raises(OutputError, match="was not written by lgo hessian"):
        execute(HESSIAN, small_run)


def test_a_damaged_manifest_is_gone_once_it_was_forced_over(
    small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(HESSIAN, small_run)
    path = small_run / "hessian.json"
    damaged = json.loads(path.read_text())
    damaged["results"]["loss"] = "oops"
    path.write_text(json.dumps(damaged))
    with pytest.raises(DamagedError):
        execute(HESSIAN, small_run)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("lgo_cli.figures.catalogue.draw", stop)
        with pytest.raises(KeyboardInterrupt):
            execute(HESSIAN, small_run, execution=Execution(force=True))
    assert not path.exists()
    assert execute(HESSIAN, small_run).status is Status.COMPUTED


def test_strict_holds_for_what_is_only_drawn_again(
    small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ContourConfig(resolution="3", analysis_samples=64)
    execute(config, small_run)

    def refuse(_: Manifest) -> None:
        raise NumericsError("1 cell is not finite")

    monkeypatch.setattr(sys.modules["lgo_cli.runs.execute"], "refuse_failed", refuse)
    with pytest.raises(NumericsError, match="not finite"):
        execute(
            config, small_run, execution=Execution(strict=True), figure=FigureConfig(format="pdf")
        )


def test_an_edited_training_is_not_measured(small_run: Path) -> None:
    path = small_run / "train.json"
    train = json.loads(path.read_text())
    train["request"]["config"]["seed"] = 7
    path.write_text(json.dumps(train))
    with pytest.raises(InputError, match="was edited since lgo wrote it"):
        execute(HESSIAN, small_run)


def test_another_steps_manifest_is_no_trainings(small_run: Path) -> None:
    execute(HESSIAN, small_run)
    (small_run / "hessian.json").replace(small_run / "train.json")
    with pytest.raises(InputError, match="is the manifest of lgo hessian"):
        execute(HESSIAN, small_run)


def test_weights_may_be_a_link_to_a_file_elsewhere(small_run: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.pth"
    (small_run / "model.pth").rename(store)
    (small_run / "model.pth").symlink_to(store)
    assert execute(HESSIAN, small_run).status is Status.COMPUTED


def test_a_damaged_spectrum_that_nobody_asked_for_is_passed_over(small_run: Path) -> None:
    (small_run / "hessian.json").write_text("{}")
    config = ContourConfig(plane="eigen", resolution="3", analysis_samples=64)
    assert execute(config, small_run).status is Status.COMPUTED


def test_up_to_date_on_a_disk_that_is_only_read(
    small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(HESSIAN, small_run)

    def refuse(_: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.utime", refuse)
    assert execute(HESSIAN, small_run).status is Status.UP_TO_DATE
