"""Results as plain text: what a person reads on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lgo_cli.cli.path_tables import path_rows
from lgo_cli.cli.spectrum_tables import spectrum_rows
from lgo_cli.cli.surface_tables import surface_rows
from lgo_cli.cli.talk import Rows, laid_out
from lgo_cli.results import (
    AnalysisResults,
    ContourResults,
    HessianResults,
    InterpResults,
    TrainResults,
    batchnorm_statistics,
    counted,
    with_accuracy,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lgo_cli.manifest import Manifest


def summary_lines(manifest: Manifest, directory: Path, columns: int | None) -> list[str]:
    """A step's results as aligned lines.

    Args:
        manifest: Of the step.
        directory: Where it stands.
        columns: Of the terminal; `None` if there is none.
    """
    return laid_out(_summary(manifest, directory), columns)


def _summary(manifest: Manifest, directory: Path) -> Rows:
    results, dataset = manifest.results, manifest.called("dataset")
    parameters = counted(results.num_parameters, "parameter")
    rows: Rows = [("model", f"{manifest.called('model')}, {parameters}")]
    if isinstance(results, TrainResults):
        init = manifest.place("init.pth", directory)
        return rows + _train(results, dataset, manifest.called("loss"), init)
    if isinstance(results, AnalysisResults):
        measured = results.measured
        smoothing = (
            f", label smoothing {measured.label_smoothing:g}" if measured.label_smoothing else ""
        )
        several, ignored = measured.labels_per_sample, measured.num_ignored_labels
        labels = f"{several} labels each, " if several > 1 else ""
        labels += f"of which {ignored:,} in all are ignored, " if ignored else ""
        rows.append(
            (
                "objective",
                f"mean {manifest.called('loss')}{smoothing} on "
                f"{counted(measured.num_samples, f'{measured.split} sample')} of {dataset}, "
                f"{labels}{measured.dtype}",
            )
        )
        if measured.batchnorm != "none":
            pairs = isinstance(results, InterpResults) and results.matrix is not None
            words = batchnorm_statistics(measured.model_dump(), pairs=pairs)
            rows.append(("batch norm", f"statistics {words}"))
    if isinstance(results, HessianResults):
        return rows + spectrum_rows(results)
    if isinstance(results, InterpResults):
        ends = {"to": "to"} if results.along == "to" else {}
        return rows + _places(manifest, directory, ends) + path_rows(results)
    if isinstance(results, ContourResults):
        ends = {"A": "to_0", "B": "to_1"}
        return rows + surface_rows(results) + _places(manifest, directory, ends)
    return rows


def _places(manifest: Manifest, directory: Path, inputs: Mapping[str, str]) -> Rows:
    """Where the other checkpoints of a path or plane are, by what each is called."""
    places = {name: manifest.place(key, directory) for name, key in inputs.items()}
    return [(name, place) for name, place in places.items() if place is not None]


def _train(results: TrainResults, dataset: str, loss: str, init: str | None) -> Rows:
    recipe = results.recipe
    if recipe.label_smoothing:
        loss += f", label smoothing {recipe.label_smoothing:g}"
    momentum = f", momentum {recipe.momentum:g}" if recipe.momentum else ""
    nesterov = " (Nesterov)" if recipe.nesterov else ""
    return [
        (
            "data",
            f"{dataset}, {results.num_train_samples:,} training and "
            f"{results.num_test_samples:,} test samples",
        ),
        *([("init", init)] if init else []),
        *([("loss", loss)] if loss != "cross_entropy" else []),
        (
            "recipe",
            f"{recipe.optimizer}, lr {recipe.lr:g} {recipe.schedule}{momentum}{nesterov}, "
            f"weight decay {recipe.weight_decay:g}, batches of {recipe.batch_size}",
        ),
        ("epochs", f"{results.epochs} ({counted(results.num_steps, 'step')})"),
        ("train", f"loss {results.train_loss:.4g}{with_accuracy(results.train_accuracy)}"),
        ("test", f"loss {results.test_loss:.4g}{with_accuracy(results.test_accuracy)}"),
    ]
