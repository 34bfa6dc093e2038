"""Embeddings by which autograd does not differentiate: what they spoil is named, or not stated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Lgo
from small_networks import make
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from lgo_cli.config import HessianConfig
from lgo_cli.curvature.analysis import analyze_spectrum
from lgo_cli.curvature.embeddings import false_derivatives
from lgo_cli.landscape.interpolation import LossPath, interpolate
from lgo_cli.loss import LossFunction
from lgo_cli.objective import Objective
from lgo_cli.samples import Samples

H = 1e-2

PADDING = "row 0 of embed is padding, which autograd holds fixed"
SCALED = "embed scales its gradients by frequency"


def _padded() -> tuple[nn.Module, Samples, LossFunction]:
    return make("embedding with padding")


def _scaled() -> tuple[nn.Module, Samples, LossFunction]:
    model, samples, loss = make("embedding with padding")
    model.embed.padding_idx, model.embed.scale_grad_by_freq = None, True
    return model, samples, loss


def _line(
    network: tuple[nn.Module, Samples, LossFunction], change: Callable[[Tensor], object]
) -> tuple[LossPath, float]:
    """A line along a direction that was changed, and the fourth-order difference of its losses."""
    with Objective(*network, dtype=torch.float64) as objective:
        draw = torch.Generator().manual_seed(2)
        d = torch.randn(objective.dim, generator=draw, dtype=torch.float64)
        change(d)
        alphas = [i * H for i in range(-2, 3)]
        path = interpolate(objective, None, alphas, direction=d / d.norm())
    return path, float(np.array([-1, 16, -30, 16, -1]) @ path.train.loss) / (12 * H**2)


@pytest.mark.parametrize(
    ("build", "num_false", "reason"), [(_padded, 2, PADDING), (_scaled, 10, SCALED)]
)
def test_no_curvature_along_what_autograd_does_not_differentiate_by(
    build: Callable[[], tuple[nn.Module, Samples, LossFunction]], num_false: int, reason: str
) -> None:
    path, _ = _line(build(), lambda d: None)
    assert path.curvature_at_origin is None
    assert path.num_matvecs == 0
    assert path.warnings == (f"no curvature at 0: {reason}, and the path moves it",)

    path, difference = _line(build(), lambda d: d[:num_false].zero_())
    # h⁴/90 = 1e-10 of a sixth derivative of the order of one, and 4 eps/h² = 1e-11.
    assert path.curvature_at_origin == pytest.approx(difference, abs=1e-8)
    assert path.num_matvecs == 1
    assert path.warnings == ()


def test_where_they_are() -> None:
    model, samples, _ = _padded()
    embed = model.embed
    with Objective(model, samples) as objective:
        assert [each.entries for each in false_derivatives(objective)] == [slice(0, 2)]
    rows = torch.ones(5, 2)  # weight norm has no row of zeros
    model.embed = weight_norm(nn.Embedding.from_pretrained(rows, freeze=False, padding_idx=3))
    with Objective(model, samples) as objective:  # any entry may be behind a row
        assert [each.entries for each in false_derivatives(objective)] == [slice(0, objective.dim)]
    model.embed = embed.requires_grad_(False)
    with Objective(model, samples) as objective:
        assert false_derivatives(objective) == []


@pytest.mark.parametrize(
    ("build", "warning"),
    [
        (_padded, f"{PADDING}: its curvature as an input counts as zero"),
        (_scaled, f"{SCALED}: they are no derivatives, and neither is its curvature"),
    ],
)
def test_spectrum_names_them(
    build: Callable[[], tuple[nn.Module, Samples, LossFunction]], warning: str
) -> None:
    with Objective(*build(), dtype=torch.float64) as objective:
        found = analyze_spectrum(objective, HessianConfig(top_k=1, bottom_k=0))
    assert warning in found.warnings


CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.embed = nn.Embedding(5, 2, padding_idx=0)
        self.head = nn.Linear(2, num_classes)

    def forward(self, x):
        return self.head(self.embed(x).mean(1).tanh())
"""


def test_lines_and_planes_name_them_where_products_are_taken(lgo: Lgo) -> None:
    tokens = np.random.default_rng(0).integers(0, 5, (40, 6))
    Path("net.py").write_text(CODE)
    data = {"x_train": tokens, "y_train": tokens[:, 0] % 3}
    np.savez("tokens.npz", **data, x_test=tokens, y_test=data["y_train"])
    lgo("train", "--model", "net.py:Net", "--dataset", "tokens.npz", "--epochs", 1, "-q")
    for command, *line in (
        ("interp", "--direction", "eigen", "--num-points", 3),
        ("contour", "--resolution", 3, "--convexity", 2),
    ):
        said = lgo(command, *line, "--trust-code").stderr
        assert said.count(f"warning: {PADDING}: its curvature as an input counts as zero\n") == 1
