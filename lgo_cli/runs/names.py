"""Names of what each step writes; known without computing anything."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, get_args

from lgo_cli.config import FigureFormat

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lgo_cli.config import FigureConfig
    from lgo_cli.manifest import Request

PAYLOADS: dict[str, tuple[str, ...]] = {
    "train": ("model.pth", "init.pth", "state.pth", "train.csv"),
    "hessian": ("hessian.npz",),
    "interp": ("interp.npz",),
    "contour": ("contour.npz",),
}
"""Files that hold numbers, the last of them what figures are drawn from; training adds its
checkpoints, and Adam's state at each."""

FIGURES: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "hessian": ("hessian",),
    "interp": ("interp_1d", "interp_matrix"),
    "contour": (
        "contour_2d", "contour_3d", "contour_test", "contour_error", "contour_convexity",
        "contour_bands",
    ),
}  # fmt: skip
"""Figures that a command may draw, without their extension."""

CAPTIONS = {"interp": "interp_caption.txt", "contour": "contour_caption.txt"}
"""Text files beside the figures, written with them."""

_CHECKPOINT = re.compile(r"checkpoints/step-\d{8,}\.pth")
_OPTIMIZER = re.compile(r"optimizer/step-\d{8,}\.pth")


def checkpoint_name(step: int) -> str:
    """Name of the checkpoint after optimiser step `step`."""
    return f"checkpoints/step-{step:08d}.pth"


def optimizer_name(weights: str) -> str:
    """Name of the file with the optimiser's state at some weights of a run, by the weights' name.

    In a folder of its own: `checkpoints/*.pth` are weights, all of them.
    """
    return "state.pth" if weights == "model.pth" else f"optimizer/{weights.rpartition('/')[2]}"


def checkpoint_step(name: str) -> int:
    """The step in a checkpoint's name."""
    return int(name.rpartition("-")[2].removesuffix(".pth"))


def holds_weights(name: str) -> bool:
    """Whether an output of training is a plain state_dict."""
    return name in ("model.pth", "init.pth") or _CHECKPOINT.fullmatch(name) is not None


def saved_step(name: str, num_steps: int) -> int:
    """After how many of a run's optimiser steps a checkpoint of it was saved.

    Args:
        name: `init.pth`, `model.pth` or `step-….pth`.
        num_steps: Of the whole run.
    """
    if name == "init.pth":
        return 0
    return num_steps if name == "model.pth" else checkpoint_step(name)


def drawn(request: Request, figure: FigureConfig) -> tuple[str, ...]:
    """Those of a command's figures that a request draws."""
    config = request.config
    if request.command == "interp":
        return ("interp_matrix",) if config["matrix"] else ("interp_1d",)
    left_out = set()
    if request.command == "contour":
        if not figure.show_cells or config["tolerance"] is None:
            left_out.add("contour_error")
        if not config["test"]:
            left_out.add("contour_test")
        if config["convexity"] is None:
            left_out.add("contour_convexity")
        if config["num_planes"] == 1:
            left_out.add("contour_bands")
    return tuple(name for name in FIGURES[request.command] if name not in left_out)


def figure_names(request: Request, figure: FigureConfig) -> list[str]:
    """File names of a step's figures and of what is written beside them."""
    names = [f"{name}.{figure.format}" for name in drawn(request, figure)]
    return [*names, CAPTIONS[request.command]] if request.command in CAPTIONS else names


def writable(command: str, names: Iterable[str]) -> set[str]:
    """Those of `names` that this step can have written.

    A manifest or claim is only a file: what it lists beside these (`../../thesis.tex`) is never
    ours to replace or remove.
    """
    fixed = {f"{command}.json", *PAYLOADS[command]}
    fixed |= {f"{name}.{form}" for name in FIGURES[command] for form in get_args(FigureFormat)}
    fixed |= {CAPTIONS[command]} if command in CAPTIONS else set()
    return {
        name
        for name in names
        if name in fixed
        or (command == "train" and (_CHECKPOINT.fullmatch(name) or _OPTIMIZER.fullmatch(name)))
    }
