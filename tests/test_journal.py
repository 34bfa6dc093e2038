"""Cells that outlive a process: what was finished is not measured again, whatever happened."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import struct
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Lgo

from lgo_cli.config import ContourConfig, Execution, TrainConfig
from lgo_cli.errors import LockedError, MachineError, UsageError
from lgo_cli.figures.surface import draw_contour
from lgo_cli.files import BOOKKEEPING, canonical_json, sha256_bytes, step_lock
from lgo_cli.landscape import convexity
from lgo_cli.landscape.batchnorm import BatchNorm
from lgo_cli.landscape.convexity import Finished
from lgo_cli.landscape.evaluator import Evaluator
from lgo_cli.loss import LossFunction
from lgo_cli.manifest import InputRef, Request, read_manifest
from lgo_cli.objective import Objective
from lgo_cli.runs import Status, execute, journal
from lgo_cli.runs.journal import ConvexityFile, Journal, _records, key_of
from lgo_cli.samples import Evaluation, Samples

CELLS = {
    (0.5, -0.25, 64): Evaluation(1.25, 0.5, 0.75, 64),
    (0.5, -0.25, 4): Evaluation(1.5, 0.5, 1.0, 4),
    (1e-300, 3.0, 64): Evaluation(math.inf, math.nan, 0.0, 64),
    (-1.0, 1 / 3, 64): Evaluation(math.nan, math.nan, 0.125, 64),
}


def _fill(out: Path, share: str = "") -> Path:
    with Journal(out, "key", share) as journal:
        for key, evaluation in CELLS.items():
            journal.add(key, evaluation)
        return journal.path


def _known(out: Path) -> dict[tuple[float, float, int], str]:
    """As text, since NaN is not itself."""
    with Journal(out, "key") as journal:
        return {key: str(evaluation) for key, evaluation in journal.known.items()}


def test_what_was_kept_is_there_to_the_bit(tmp_path: Path) -> None:
    _fill(tmp_path)
    assert _known(tmp_path) == {key: str(value) for key, value in CELLS.items()}
    with Journal(tmp_path, "other") as journal:
        assert not journal.known


def test_a_limit_on_files_is_said_in_the_middle_of_a_record(tmp_path: Path) -> None:
    with Journal(tmp_path, "key") as journal:
        for number, (key, evaluation) in enumerate(CELLS.items()):
            if number == 2:
                soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + 9, hard))
                try:
                    with pytest.raises(MachineError, match="size of files leaves no room"):
                        journal.add(key, evaluation)
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
                break
            journal.add(key, evaluation)
    assert _known(tmp_path) == {key: str(CELLS[key]) for key in list(CELLS)[:2]}


@pytest.mark.parametrize("cut", [1, 10, 51, 52, 53, 103])
def test_record_that_was_cut_short_is_dropped(tmp_path: Path, cut: int) -> None:
    path = _fill(tmp_path)
    size = path.stat().st_size // len(CELLS)
    path.write_bytes(path.read_bytes()[:-cut])
    num_left = len(CELLS) - -(-cut // size)
    assert len(_known(tmp_path)) == num_left
    # And what comes after it can be read.
    _fill(tmp_path)
    assert len(_known(tmp_path)) == len(CELLS)
    assert path.stat().st_size == size * (num_left + len(CELLS))


@pytest.mark.parametrize("position", [0, 30, 60, 120, 207])
def test_damaged_record_ends_what_is_believed(tmp_path: Path, position: int) -> None:
    path = _fill(tmp_path)
    size = path.stat().st_size // len(CELLS)
    data = bytearray(path.read_bytes())
    data[position] ^= 16
    path.write_bytes(bytes(data))
    assert len(_known(tmp_path)) == position // size


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "no space left"), (errno.EFBIG, "limit on the size of")]
)
def test_record_that_is_written_in_part_is_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    """The system says why at the next call, and the part is no record."""
    with Journal(tmp_path, "key") as journal, monkeypatch.context() as patch:
        whole = journal._handle
        writes = iter([lambda data: whole.write(data[:-1])])

        def write(data: bytes) -> int:
            for each in writes:
                return each(data)
            raise OSError(number, os.strerror(number))

        patch.setattr(journal, "_handle", SimpleNamespace(write=write))
        with pytest.raises(MachineError, match=said):
            journal.add(*next(iter(CELLS.items())))
    assert not _known(tmp_path)


def test_all_files_of_a_key_are_read_and_one_is_written(tmp_path: Path) -> None:
    paths = {_fill(tmp_path, share) for share in ("0-of-2", "1-of-2")}
    assert len(paths) == 2
    with Journal(tmp_path, "key") as journal:
        assert len(journal.known) == len(CELLS)
        assert journal.path not in paths
        with Journal(tmp_path, "key", "0-of-2") as other:
            other.add((9.0, 9.0, 64), Evaluation(1.0, 1.0, 1.0, 64))
        journal.read_all()
        assert (9.0, 9.0, 64) in journal.known


def test_a_journal_alone_has_nothing_of_the_shares(tmp_path: Path) -> None:
    _fill(tmp_path, "0-of-2")
    with Journal(tmp_path, "key", alone=True) as journal:
        assert not journal.known
        journal.add((9.0, 9.0, 64), Evaluation(1.0, 1.0, 1.0, 64))
    with Journal(tmp_path, "key", alone=True) as journal:
        assert list(journal.known) == [(9.0, 9.0, 64)]


CONFIG = {"model": "mlp", "model_arg": {}, "loss_arg": {}}
REQUEST = Request(command="contour", algorithm_version=1, config=CONFIG, inputs={})


def _key(
    scale: float = 1.0, num_samples: int = 20, bias: float = 0.0, batch: int = 8,
    request: Request = REQUEST,
) -> str:  # fmt: skip
    model = torch.nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.fill_(0.5)
        model.bias.fill_(bias)
    samples = Samples(torch.ones(num_samples, 4), torch.arange(num_samples) % 2)
    with Objective(model, samples, micro_batch_size=batch) as objective:
        return key_of(Evaluator(objective, scale * torch.eye(objective.dim)[:2]), request)


def test_key_is_of_all_that_moves_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {_key(), _key(scale=2.0), _key(num_samples=19), _key(bias=0.1), _key(batch=7)}
    assert len(keys) == 5
    assert _key() in keys
    some = InputRef(sha256="0" * 64, produced_by=None)
    for change in (
        {"inputs": {"model.py": some}},
        {"inputs": {"model.py/blocks.py": some}},
        {"inputs": {"model_arg/mask": some}},
        {"inputs": {"loss_arg/weights": some}},
        {"algorithm_version": 2},
        {"config": {**CONFIG, "model_arg": {"hidden": 3}}},
        {"config": {**CONFIG, "loss_arg": {"gamma": 3}}},
    ):
        assert _key(request=REQUEST.model_copy(update=change)) not in keys
    monkeypatch.setattr("lgo_cli.landscape.evaluator.VERSION", 999)
    assert _key() not in keys


CHANGES: dict[str, Callable[[Evaluator], object]] = {
    "plan": lambda e: setattr(e, "plan", "another"),
    "centre": lambda e: e.objective.theta.add_(1.0),
    "frozen": lambda e: e.objective.model[2].weight.add_(1.0),
    "buffers": lambda e: e.objective.model[1].running_var.add_(1.0),
    "directions": lambda e: e.directions.mul_(2.0),
    "inputs": lambda e: e.samples.inputs.add_(1.0),
    "labels": lambda e: e.samples.labels.add_(1),
    "loss": lambda e: setattr(e.objective, "loss_function", LossFunction("squared_error")),
    "smoothing": lambda e: setattr(e.objective, "loss_function", LossFunction(label_smoothing=0.1)),
    "policy": lambda e: setattr(e.batchnorm, "policy", "batch"),
    "policy's samples": lambda e: setattr(e.batchnorm, "num_samples", 7),
    "policy's ends": lambda e: e.batchnorm.ends[1].add_(1.0),
    "dtype": lambda e: setattr(e.objective, "dtype", torch.float64),
    "micro-batch": lambda e: setattr(e.objective, "micro_batch_size", 7),
    "device": lambda e: setattr(e.objective, "device", torch.device("cuda", 0)),
    "threads": lambda e: torch.set_num_threads(2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_key_is_of_each_of_these_alone(change: str) -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2)
    )
    model[2].requires_grad_(False)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with Objective(model, Samples(torch.ones(6, 4), torch.zeros(6).long())) as objective:
        ends = {(0.0, 0.0): own, (1.0, 0.0): own, (0.0, 1.0): own}
        batchnorm = BatchNorm(objective, "interpolate", ends=ends)
        evaluator = Evaluator(objective, torch.eye(objective.dim)[:2], batchnorm=batchnorm)
        before = key_of(evaluator, REQUEST)
        assert key_of(evaluator, REQUEST) == before
        with torch.no_grad():
            CHANGES[change](evaluator)
        assert key_of(evaluator, REQUEST) != before


def test_key_is_of_the_library_and_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [_key()]
    monkeypatch.setattr(torch, "__version__", "0")
    keys.append(_key())
    monkeypatch.setattr("platform.machine", lambda: "another")
    keys.append(_key())
    assert len(set(keys)) == 3


def _contour(run: Path, out: Path, shard: str | None = None, **config: object) -> Status:
    values = {"resolution": "9x7", "analysis_samples": 64, **config}
    return execute(
        ContourConfig(**values),  # type: ignore[arg-type]
        run,
        execution=Execution(out=out, shard=shard),
    ).status


def _outputs(out: Path) -> object:
    manifest = read_manifest(out / "contour.json")
    return manifest.request, manifest.outputs


def _num_records(out: Path) -> tuple[int, int]:
    """Records in all journals, and distinct cells among them."""
    data = [path.read_bytes() for path in (out / BOOKKEEPING / "cells").glob("*.journal")]
    keys = [key for content in data for key, _ in _records(content)]
    return len(keys), len(set(keys))


def test_shares_equal_the_undivided_run(small_run: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _contour(small_run, whole)
    assert _contour(small_run, parts, "1/3") is Status.SHARE_DONE
    assert _contour(small_run, parts, "0/3") is Status.SHARE_DONE
    assert not (parts / "contour.json").exists()
    assert _contour(small_run, parts, "2/3") is Status.COMPUTED
    assert _outputs(parts) == _outputs(whole)
    # The centre is the untouched model, which is no cell.
    assert _num_records(parts) == _num_records(whole) == (62, 62)
    assert _contour(small_run, parts, "0/3") is Status.UP_TO_DATE


def test_shares_go_with_full_surfaces_only(small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--shard divides all cells"):
        _contour(small_run, tmp_path, "0/2", tolerance=0.1)


def test_shares_find_ranges_in_files_of_their_own(small_run: Path, tmp_path: Path) -> None:
    """Whose lock they hold; the undivided run's file is that of who assembles the surface."""
    config = {"auto_range": 2.0, "resolution": "5x4"}
    assert _contour(small_run, tmp_path, "1/2", **config) is Status.SHARE_DONE
    names = [path.name for path in (tmp_path / BOOKKEEPING / "cells").glob("*.journal")]
    assert [name.partition(".")[2] for name in names] == ["1-of-2.journal"]
    assert _contour(small_run, tmp_path, "0/2", **config) is Status.COMPUTED
    _contour(small_run, tmp_path / "whole", **config)
    assert _outputs(tmp_path) == _outputs(tmp_path / "whole")


def test_ranges_are_found_on_the_path_that_the_surface_takes(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on a fast one that is given up only when the surface is measured."""
    reference = Evaluator.reference

    def off(self: Evaluator, *coordinates: float) -> Evaluation:
        found = reference(self, *coordinates)
        return replace(found, loss=1.1 * found.loss)

    monkeypatch.setattr("lgo_cli.landscape.evaluator.LEAST_FEATURES", 1)
    monkeypatch.setattr(Evaluator, "reference", off)
    _contour(small_run, tmp_path, auto_range=2.0, resolution="3")
    results = read_manifest(tmp_path / "contour.json").results
    assert "it would move the loss" in results.cell_plan  # type: ignore[attr-defined]
    assert len(list((tmp_path / BOOKKEEPING / "cells").glob("*.journal"))) == 1


def test_force_finds_ranges_and_measures_without_the_shares(
    small_run: Path, tmp_path: Path
) -> None:
    """And measures once what the search for the ranges and the surface have in common."""
    config = {"auto_range": 2.0, "resolution": "5x4"}
    for share in ("1/2", "0/2"):
        _contour(small_run, tmp_path, share, **config)
    for path in (tmp_path / BOOKKEEPING / "cells").glob("*-of-2.journal"):
        key, share, _ = path.name.split(".")
        with Journal(tmp_path, key, share) as shares:
            for cell in list(shares.known):
                shares.add(cell, Evaluation(1e3, 1.0, 0.0, 64))
    config = {"analysis_samples": 64, **config}
    execution = Execution(out=tmp_path, force=True)
    assert execute(ContourConfig(**config), small_run, execution=execution).status is (  # type: ignore[arg-type]
        Status.COMPUTED
    )
    _contour(small_run, tmp_path / "fresh", **config)
    assert _outputs(tmp_path) == _outputs(tmp_path / "fresh")
    (own,) = (tmp_path / BOOKKEEPING / "cells").glob(f"{key}.journal")
    cells = [cell for cell, _ in _records(own.read_bytes())]
    assert len(cells) == len(set(cells)) == _num_records(tmp_path / "fresh")[0]


def test_shares_that_do_not_add_up_are_said(small_run: Path, lgo: Lgo) -> None:
    line = ("contour", small_run, *SHARES, "--shard")
    assert "warning" not in lgo(*line, "0/2", "--num-threads", 1).stderr
    # Another surface is no share of this one, and neither is a share of another division.
    assert "warning" not in lgo(*line, "1/2", "--num-threads", 2, "--seed", 1).stderr
    assert "warning" not in lgo(*line, "1/3", "--num-threads", 2).stderr
    text = (
        "warning: share 0/2 was measured with {}, this one with {}: their cells do not make one "
        "surface; measure all shares with the same, as by --num-threads, --device, --dtype and "
        "--micro-batch-size\n"
    )
    said = text.format("num_threads 1", "num_threads 2")
    assert said in lgo(*line, "1/2", "--num-threads", 2).stderr
    both = text.format("dtype torch.float32, num_threads 1", "dtype torch.float64, num_threads 2")
    assert both in lgo(*line, "1/2", "--num-threads", 2, "--dtype", "float64").stderr
    # What is no record is not believed, and what is measured again adds up.
    for record in (small_run / BOOKKEEPING / "cells").glob("*.1-of-2.share"):
        record.write_bytes(b"{")
    assert "warning" not in lgo(*line, "0/2", "--num-threads", 1).stderr
    assert "warning" not in lgo(*line, "1/2", "--num-threads", 1).stderr
    assert (small_run / "contour.json").exists()
    # The set is complete: another one, in other arithmetic, is none of its shares.
    assert "warning" not in lgo(*line, "0/2", "--dtype", "float64").stderr


def test_preview_shows_cells_as_they_are_and_their_nearest_elsewhere(
    small_run: Path, lgo: Lgo, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []

    def drawn(arrays: dict[str, Any], results: dict[str, Any], *size: Any) -> Any:
        shown.append((arrays, results))
        return draw_contour(arrays, results, *size)

    monkeypatch.setattr("lgo_cli.figures.surface.draw_contour", drawn)
    lgo("contour", small_run, "--resolution", "9", "--preview")
    assert (small_run / ".lgo" / "contour_preview.png").is_file()
    with np.load(small_run / "contour.npz") as arrays:
        loss = arrays["loss"]
    counts = [int(arrays["measured"].sum()) for arrays, _ in shown]
    assert counts == sorted({*counts})
    assert 0 < counts[0] < counts[-1] < loss.size
    for arrays, results in shown:
        rows, columns = np.nonzero(arrays["measured"])
        assert results["num_measured"] == len(rows)
        for i, j in np.ndindex(loss.shape):
            nearest = ((rows - i) ** 2 + (columns - j) ** 2).argmin()
            assert arrays["loss"][i, j] == loss[rows[nearest], columns[nearest]]


def test_shares_draw_no_preview(small_run: Path, lgo: Lgo) -> None:
    error = lgo("contour", small_run, *SHARES, "--shard", "0/2", "--preview", code=2).stderr
    assert "lgo: error: --preview does not go with --shard" in error


SHARES = ("--resolution", "9x7", "--analysis-samples", "64")


def test_shares_do_not_go_with_force(small_run: Path, lgo: Lgo) -> None:
    """Whatever is there already: nothing, or the surface itself."""
    before = lgo("contour", small_run, *SHARES, "--shard", "0/1", "--force", code=2)
    assert before.stderr == (
        "lgo: error: --force does not go with --shard: a share cannot tell which cells of the "
        "others were measured again\n"
        "hint: give all shares an --out where nothing was measured yet, or leave out --shard\n"
    )
    assert not (small_run / BOOKKEEPING / "cells").exists()
    lgo("contour", small_run, *SHARES)
    for more in ((), ("--dry-run",)):
        again = lgo("contour", small_run, *SHARES, "--shard", "0/1", "--force", *more, code=2)
        assert again.stderr == before.stderr


def test_share_is_refused_what_assembling_would_be_before_it_measures(
    small_run: Path, lgo: Lgo
) -> None:
    share = ("contour", small_run, *SHARES, "--shard", "0/2")
    array, path = small_run / "contour.npz", small_run / "contour.json"
    array.write_bytes(b"somebody's")
    assert lgo(*share, code=3).stderr.endswith(
        f"lgo: error: {array} was not written by lgo contour; it is left as it is\n"
        "hint: choose another --out, or --force to replace it\n"
    )
    assert array.read_bytes() == b"somebody's"
    array.unlink()
    lgo("contour", small_run, "--resolution", "2", "--analysis-samples", "32")
    later = json.loads(path.read_text())
    later["request"]["algorithm_version"] += 1
    later["fingerprint"] = sha256_bytes(canonical_json(later["request"]))
    path.write_text(json.dumps(later))
    measured = _num_records(small_run)
    assert "was written by a later version of lgo" in lgo(*share, code=3).stderr
    assert json.loads(path.read_text()) == later
    assert _num_records(small_run) == measured == (4, 4)


def test_share_does_not_wait_for_who_writes_the_surface(small_run: Path, tmp_path: Path) -> None:
    with step_lock(tmp_path, "contour"):
        assert _contour(small_run, tmp_path, "0/2") is Status.SHARE_DONE
        assert _contour(small_run, tmp_path, "1/2") is Status.SHARE_DONE
    assert _num_records(tmp_path) == (62, 62)
    with (
        step_lock(tmp_path, "contour.1-of-2"),
        pytest.raises(LockedError, match=r"contour\.1-of-2"),
    ):
        _contour(small_run, tmp_path, "1/2")
    assert _contour(small_run, tmp_path, "1/2") is Status.COMPUTED


def test_shares_of_several_planes(small_run: Path, tmp_path: Path) -> None:
    config = {"num_planes": 3, "resolution": "5x4"}
    _contour(small_run, tmp_path / "whole", **config)
    assert _contour(small_run, tmp_path, "1/2", **config) is Status.SHARE_DONE
    # Half of the cells of each plane; of 5 × 4, none is the centre.
    assert _num_records(tmp_path) == (30, 10)
    assert _contour(small_run, tmp_path, "0/2", **config) is Status.COMPUTED
    assert _outputs(tmp_path) == _outputs(tmp_path / "whole")
    assert _num_records(tmp_path)[0] == 60


def test_shares_hold_few_planes_at_once(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may keep a GiB of products: the first, the one before, and the one that is made."""
    alive: weakref.WeakSet[Evaluator] = weakref.WeakSet()
    counts = []
    begin = Evaluator.__init__

    def counted(self: Evaluator, *values: Any, **options: Any) -> None:
        begin(self, *values, **options)
        alive.add(self)
        counts.append(len(alive))

    monkeypatch.setattr(Evaluator, "__init__", counted)
    _contour(small_run, tmp_path, "0/2", num_planes=6, resolution="2")
    assert counts == [1, 2, 3, 3, 3, 3]


def test_last_share_loads_and_finds_its_plane_once(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(module: str, name: str) -> None:
        function = getattr(sys.modules[module], name)
        monkeypatch.setattr(
            f"{module}.{name}",
            lambda *values, **options: calls.append(name) or function(*values, **options),
        )

    config = {"plane": "eigen", "resolution": "3"}
    _contour(small_run, tmp_path / "whole", **config)
    counted("lgo_cli.runs.loaded", "load")
    counted("lgo_cli.curvature.eigenpairs", "extreme_eigenpairs")
    assert _contour(small_run, tmp_path, "0/1", **config) is Status.COMPUTED
    assert calls == ["load", "extreme_eigenpairs"]
    assert _outputs(tmp_path) == _outputs(tmp_path / "whole")


def test_finer_grid_measures_what_is_new(small_run: Path, tmp_path: Path) -> None:
    """As from 26 × 26 to 51 × 51: of 2,601 cells 676 are there."""
    _contour(small_run, tmp_path, resolution="6")
    assert _num_records(tmp_path) == (36, 36)
    _contour(small_run, tmp_path, resolution="11")
    assert _num_records(tmp_path) == (120, 120)
    _contour(small_run, tmp_path / "fresh", resolution="11")
    assert _outputs(tmp_path) == _outputs(tmp_path / "fresh")


VECTORS = torch.arange(12.0, dtype=torch.float32).reshape(2, 6) / 7


def _convexity_file(out: Path, **change: Any) -> ConvexityFile:
    return ConvexityFile(out, **{"key": "key", "x": [0.0, 0.1], "y": [2.0], "seed": 3, **change})


def test_cells_and_vectors_of_a_convexity_map_are_kept_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = np.array([[1.0, math.nan, *range(8)]])
    file = _convexity_file(tmp_path)
    assert file.read() is None
    file.write(Finished(cells, VECTORS))
    found = _convexity_file(tmp_path).read()
    assert found is not None
    np.testing.assert_array_equal(found.cells, cells)
    assert torch.equal(found.warm_start, VECTORS)
    assert found.warm_start.dtype is torch.float32
    for change in ({"key": "other"}, {"x": [0.0, 0.2]}, {"y": [2.0, 3.0]}, {"seed": 4}):
        assert _convexity_file(tmp_path, **change).read() is None
    file.write(Finished(cells))
    again = file.read()
    assert again is not None
    assert again.warm_start is None
    assert file.path.stat().st_size < 1500
    monkeypatch.setattr(journal, "NUM_VALUES", 11)  # another lgo's cells
    assert _convexity_file(tmp_path).read() is None


@pytest.mark.parametrize("position", [0, 31, 40, 300, -1])
def test_damaged_convexity_file_is_not_believed(tmp_path: Path, position: int) -> None:
    file = _convexity_file(tmp_path)
    file.write(Finished(np.ones((2, 10)), VECTORS))
    data = bytearray(file.path.read_bytes())
    data[position] ^= 1
    file.path.write_bytes(bytes(data))
    assert file.read() is None
    for length in (0, 10, 32, len(data) // 2):
        file.path.write_bytes(bytes(data)[:length])
        assert file.read() is None


def test_convexity_map_goes_on_behind_its_last_cell(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine Krylov runs in all, five before the interruption and four after."""
    config = {"resolution": "3", "convexity": 3}
    _contour(small_run, tmp_path / "fresh", **config)
    solve, calls = convexity._eigenpairs, []

    def interrupted(*arguments: Any) -> Any:
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(None)
        return solve(*arguments)

    def counted(*arguments: Any) -> Any:
        calls.append(None)
        return solve(*arguments)

    monkeypatch.setattr(convexity, "_eigenpairs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _contour(small_run, tmp_path / "out", **config)
    monkeypatch.setattr(convexity, "_eigenpairs", counted)
    _contour(small_run, tmp_path / "out", **config)
    assert len(calls) == 9
    assert _outputs(tmp_path / "out") == _outputs(tmp_path / "fresh")
    # A finer surface has the same map.
    _contour(small_run, tmp_path / "out", resolution="5", convexity=3)
    assert len(calls) == 9
    execution = Execution(out=tmp_path / "out", force=True)
    execute(ContourConfig(analysis_samples=64, **config), small_run, execution=execution)  # type: ignore[arg-type]
    assert len(calls) == 18


def test_key_is_hashed_once(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    sha256 = journal.sha256_bytes
    monkeypatch.setattr(
        journal, "sha256_bytes", lambda data: digests.append(len(data)) or sha256(data)
    )
    _contour(small_run, tmp_path, plane="pca", resolution="3", auto_range=2.0)
    size = max(digests)
    assert digests.count(size) == 1


def test_record_is_of_one_size() -> None:
    """Kept files must stay readable: two coordinates, a count, three results, a checksum."""
    assert struct.calcsize("<ddqddd") + 4 == 52


def test_changed_model_code_and_force_measure_again(tmp_path: Path) -> None:
    """Weights, names and shapes stay; what the code does with them does not."""
    source = tmp_path / "net.py"
    text = (
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Linear(64, 8), nn.Linear(8, 10)\n"
        "    def forward(self, x):\n"
        "        return self.b(torch.relu(self.a(x.flatten(1))))\n"
        "def build():\n    return Net()\n"
    )
    source.write_text(text)
    run = tmp_path / "run"
    named = {"model": f"{source}:build", "dataset": "digits"}
    execute(TrainConfig(**named, epochs=1), execution=Execution(out=run))  # type: ignore[arg-type]
    config = {"resolution": "3", "model": named["model"], "analysis_samples": 32}
    _contour(run, run, **config)
    assert _num_records(run) == (8, 8)
    source.write_text(text.replace("relu", "sigmoid"))
    _contour(run, run, **config)
    _contour(run, tmp_path / "fresh", **config)
    assert _num_records(run) == (16, 16 // 2)
    assert _outputs(run) == _outputs(tmp_path / "fresh")
    execute(
        ContourConfig(**config),  # type: ignore[arg-type]
        run,
        execution=Execution(out=tmp_path / "fresh", force=True),
    )
    assert _num_records(tmp_path / "fresh") == (8, 8)
