from __future__ import annotations

import functools
import gc
import io
import os
import pickle
import sys

# Bits differ with the number of threads: every test that compares them runs on one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.testing
from _pytest.assertion import rewrite
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Annotation, Text
from mpl_toolkits.mplot3d import Axes3D
from typer.testing import CliRunner, Result

from lgo_cli.cli import app
from lgo_cli.figures import style
from lgo_cli.figures.catalogue import draw
from lgo_cli.figures.files import save_figure


def _untraced(owner: Any, *names: str) -> None:
    """Keep coverage's tracer out of functions of others: it makes their Python twice as slow too.

    What of ours they call back is not measured there: one line, in drawing.
    """
    for name in names:
        setattr(owner, name, paused(getattr(owner, name)))


def paused(function: Any) -> Any:
    """The function without coverage's tracer, for what others tests measure."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        tracer: Any = sys.gettrace()
        if type(tracer).__name__ != "CTracer":
            return function(*arguments, **options)
        tracer.stop()
        try:
            return function(*arguments, **options)
        finally:
            tracer.start()

    return call


gc.disable()  # while test modules are rewritten and imported
_untraced(rewrite, "rewrite_asserts")
_untraced(ConstrainedLayoutEngine, "execute")
_untraced(
    Figure, "add_axes", "colorbar", "draw_without_rendering", "findobj", "get_tightbbox", "legend",
    "savefig", "subplots",
)  # fmt: skip
_untraced(Axes, "clabel", "contour", "contourf", "get_tightbbox", "inset_axes")
_untraced(Axes3D, "plot_surface")
_untraced(Text, "get_window_extent")
_untraced(Annotation, "get_window_extent")
_untraced(torch.optim.SGD, "step")
_untraced(torch.optim.Adam, "step")

# Each call of the command line would build all commands from their signatures again.
typer.testing._get_command = functools.cache(typer.testing._get_command)  # type: ignore[attr-defined]


def pytest_collection_finish() -> None:
    """What is imported is no garbage: the collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _not_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for the disk: that files are synced, and when, is tested by itself."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@functools.lru_cache(50)
def _drawn(pickled: bytes) -> dict[str, Figure]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "_lay_out", lambda figure: None)
        return paused(draw)(*pickle.loads(pickled))


@functools.lru_cache(100)
def _saved(figure: Figure, format: str, dpi: int) -> bytes:
    handle = io.BytesIO()
    paused(save_figure)(figure, handle, format, dpi // 4)
    return handle.getvalue()


@pytest.fixture(autouse=True, scope="session")
def _drawn_once() -> Iterator[None]:
    """A step draws no picture again of numbers that an earlier test's had: it takes the bytes.

    And it lays out a new one once, when its height is chosen, and not until all is inside, and
    writes it in fewer pixels. Drawing is most of a small step's time; that it gives the same
    bytes, all inside and in as many pixels as asked for, is tested by itself, and real processes
    do all of it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lgo_cli.figures.catalogue.draw", lambda *asked: _drawn(pickle.dumps(asked)))
        patch.setattr(
            "lgo_cli.figures.files.save_figure",
            lambda figure, handle, *how: handle.write(_saved(figure, *how)),
        )
        yield


@pytest.fixture
def untouched_generator() -> Iterator[None]:
    """No code of ours draws from, or seeds, the process's own generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


Lgo = Callable[..., Result]


@pytest.fixture
def lgo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untouched_generator: None) -> Lgo:
    """Run a command line in an empty directory, inside this process."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, code: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, f"exit {result.exit_code}\n{result.stderr}"
        return result

    return run


SMALL = (
    "--model-arg", "hidden=8", "--dataset-arg", "num_train=256", "--dataset-arg", "num_test=128",
    "--epochs", "2", "--batch-size", "32",
)  # fmt: skip
"""Training options of a run that takes a tenth of a second."""


@pytest.fixture(scope="session")
def _small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("small") / "run"
    arguments = ["train", "--out", str(out), "--save-every", "4", *SMALL, "--quiet"]
    before = torch.get_rng_state()
    torch.set_num_threads(1)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert torch.equal(before, torch.get_rng_state())
    return out


@pytest.fixture
def small_run(_small_run: Path, tmp_path: Path) -> Path:
    """A trained run of one's own: a tiny MLP on the synthetic data set, with checkpoints."""
    import shutil

    return Path(shutil.copytree(_small_run, tmp_path / "small"))
