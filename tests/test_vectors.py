from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lgo_cli import checkpoint
from lgo_cli.config import Normalization
from lgo_cli.errors import InputError, UsageError
from lgo_cli.runs.directions import read_directions
from lgo_cli.seeding import derive_seed, rademacher, standard_normal
from lgo_cli.vectors import (
    Block,
    ParameterLayout,
    combine,
    cosine,
    fix_sign_,
    flatten,
    norm,
    normalize,
)


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.frozen = nn.Linear(3, 3)
        self.frozen.requires_grad_(False)
        self.norm = nn.LayerNorm((2, 3))
        self.up = nn.ConvTranspose1d(2, 4, 3)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embedding.weight


def test_layout_counts_tied_once_and_frozen_not_at_all() -> None:
    layout = ParameterLayout.of(_Tied())
    assert layout.names == (
        "embedding.weight", "norm.weight", "norm.bias", "up.weight", "up.bias", "head.bias",
    )  # fmt: skip
    # LayerNorm's weight is a matrix here, and still has no filters.
    assert [role.dim for role in layout.roles] == [0, None, None, 1, None, None]
    assert layout.dim == 15 + 6 + 6 + 24 + 4 + 5


def test_a_file_has_one_value_for_each_tied_parameter(tmp_path: Path) -> None:
    path, model = tmp_path / "tied.pth", _Tied()
    state = model.state_dict()
    checkpoint.save(state, path)
    assert checkpoint.load_fitting(path, model).keys() == state.keys()
    assert len(read_directions([path, path], model)) == 2
    # PyTorch would take the last, a flat vector the first.
    checkpoint.save({**state, "head.weight": state["head.weight"] + 1}, path)
    refusal = "embedding.weight and head.weight are one parameter of the model, but differ in"
    with pytest.raises(InputError, match=refusal):
        checkpoint.load_fitting(path, model)
    with pytest.raises(InputError, match=refusal):
        read_directions([path, path], model)


def test_split_is_the_inverse_of_flatten_and_a_view() -> None:
    model = _Tied()
    layout = ParameterLayout.of(model)
    theta = flatten(p.detach() for p in model.parameters() if p.requires_grad)
    pieces = layout.split(theta)
    assert torch.equal(flatten(pieces), theta)
    pieces[0][0, 0] = 7.0
    assert theta[0] == 7.0


def test_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(UsageError, match="no trainable parameter"):
        ParameterLayout.of(nn.ReLU())


def test_filter_norms_equal_the_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 2, 2))
    with torch.no_grad():
        model[0].weight[1] = 0.0  # a dead filter stays where it is
    layout = ParameterLayout.of(model)
    theta = flatten(p.detach() for p in model.parameters())
    direction = normalize(standard_normal(layout.dim, 0).float(), theta, layout, "filter")
    pieces = dict(zip(layout.names, layout.split(direction), strict=True))
    # float32 products and sums of 27 terms: a few ulps.
    torch.testing.assert_close(
        pieces["0.weight"].flatten(1).norm(dim=1), model[0].weight.flatten(1).norm(dim=1)
    )
    torch.testing.assert_close(
        pieces["2.weight"].transpose(0, 1).flatten(1).norm(dim=1),
        model[2].weight.transpose(0, 1).flatten(1).norm(dim=1),
    )
    assert not pieces["0.weight"][1].any()
    for name in ("0.bias", "1.weight", "1.bias", "2.bias"):
        assert not pieces[name].any()


@pytest.mark.parametrize("normalization", ["filter", "layer", "none"])
def test_direction_of_zero_stays_zero(normalization: Normalization) -> None:
    """As the gradient of a part that the loss does not see."""
    model = nn.Linear(3, 2)
    theta = flatten(p.detach() for p in model.parameters())
    found = normalize(torch.zeros(8), theta, ParameterLayout.of(model), normalization)
    assert not found.any()  # nor NaN


def test_products_of_float32_vectors_are_taken_in_float64() -> None:
    huge = torch.tensor([3e30, 4e30])  # whose squares float32 does not hold
    assert norm(huge) == pytest.approx(5e30, rel=1e-6)
    assert cosine(huge, huge) == pytest.approx(1)


def test_combine_is_computed_from_the_origin() -> None:
    origin, a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])
    out = torch.full((2,), torch.nan)
    assert combine(origin, [(0.5, a), (-1.0, b)], out).tolist() == [1.5, -1.0]
    assert combine(origin, [], out).tolist() == [1.0, 2.0]
    assert origin.tolist() == [1.0, 2.0]


def test_cosine_and_sign() -> None:
    a = torch.tensor([3.0, -4.0])
    assert cosine(a, -2 * a) == pytest.approx(-1, abs=1e-15)
    assert cosine(a, torch.zeros(2)) == 0.0
    ties = torch.tensor([[-2.0, 2.0], [2.0, -2.0]])
    for vectors in (a.clone(), -a):
        assert fix_sign_(vectors) is vectors
        assert vectors.tolist() == [-3.0, 4.0]
    assert fix_sign_(ties).tolist() == [[2.0, -2.0], [2.0, -2.0]]


def test_streams_are_independent_and_stable() -> None:
    assert derive_seed(0, "a", 1) != derive_seed(0, "a", 2) != derive_seed(1, "a", 2)
    assert derive_seed(0, "a", "b") != derive_seed(0, "ab")
    assert 0 <= derive_seed(0, "hessian", "start") < 2**63
    assert torch.equal(standard_normal(5, 3, "x"), standard_normal(5, 3, "x"))
    signs = rademacher(10_000, 0, "x")
    assert set(signs.tolist()) == {-1.0, 1.0}
    # The mean of n signs has standard error 1/√n = 0.01; 4 of them.
    assert abs(float(signs.mean())) < 0.04


def test_a_parameter_without_entries_is_no_block() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ParameterList([nn.Parameter(torch.zeros(0))]))
    blocks = Block.whole(ParameterLayout.of(model)).modules()
    assert {name: block.dim for name, block in blocks.items()} == {"0": 8}
