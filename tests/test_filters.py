"""What moves, what is held, and which entries are one filter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lgo_cli.config import Normalization
from lgo_cli.filters import roles_of
from lgo_cli.seeding import standard_normal
from lgo_cli.vectors import ParameterLayout, flatten, movements, normalize, root_mean_square


def _seeded(build: type[nn.Module], *args: int, **kwargs: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(*args, **kwargs).double()


@pytest.mark.parametrize(
    ("build", "args", "kwargs", "shape"),
    [
        (nn.Linear, (4, 6), {}, (4,)),
        (nn.Conv1d, (4, 6, 3), {}, (4, 5)),
        (nn.Conv2d, (4, 6, 3), {"groups": 2}, (4, 5, 5)),
        (nn.Conv2d, (4, 8, 3), {"groups": 4}, (4, 5, 5)),
        (nn.ConvTranspose1d, (4, 6, 3), {}, (4, 5)),
        (nn.ConvTranspose2d, (4, 6, 3), {"groups": 2}, (4, 5, 5)),
        (nn.ConvTranspose2d, (4, 4, 3), {"groups": 4}, (4, 5, 5)),
        (nn.ConvTranspose3d, (2, 4, 2), {}, (2, 3, 3, 3)),
    ],
)
def test_a_filter_is_what_one_output_channel_depends_on(
    build: type[nn.Module], args: tuple[int, ...], kwargs: dict[str, int], shape: tuple[int, ...]
) -> None:
    """Oracle: autograd says which weights an output channel sees."""
    layer = _seeded(build, *args, bias=False, **kwargs)
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    role = roles_of(layer)[id(weight)]
    outputs = layer(standard_normal(math.prod(shape), 0).view(1, *shape))[0]
    channels = outputs.view(len(outputs), -1)
    norms = role.norms(weight.detach(), "filter").flatten()
    assert len(norms) == len(channels)
    members = torch.zeros(weight.shape)
    for channel, length in zip(channels, norms, strict=True):
        (slope,) = torch.autograd.grad(channel.square().sum(), weight, retain_graph=True)
        seen = slope != 0
        members += seen
        assert float(weight.detach()[seen].norm()) == pytest.approx(float(length), rel=1e-14)
    # Each weight belongs to one filter.
    assert (members == 1).all()


class _Zoo(nn.Module):
    """One of each."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 4)
        self.position = nn.Parameter(torch.randn(1, 5, 4))
        self.class_token = nn.Parameter(torch.randn(1, 1, 4))
        self.layer_scale = nn.Parameter(torch.randn(4, 1, 1))
        self.gain = nn.Parameter(torch.randn(4, 1))
        self.mixing = nn.Parameter(torch.randn(3, 4))
        self.temperature = nn.Parameter(torch.randn(()))
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.cross = nn.MultiheadAttention(4, 2, kdim=3, vdim=5)
        self.norm = nn.LayerNorm((5, 4))
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.up = nn.ConvTranspose2d(4, 6, 2, groups=2)
        self.lstm = nn.LSTM(4, 3, proj_size=2)
        self.cell = nn.GRUCell(1, 3)
        self.normed = parametrizations.weight_norm(nn.Linear(4, 3))
        self.normed_conv = parametrizations.weight_norm(nn.ConvTranspose2d(4, 2, 3))
        self.activation = nn.PReLU()
        self.single = nn.Linear(1, 3)


POLICY = """\
tokens.weight: 7 filters along dim 0, one per token
position: 5 filters along dim 1, one per row
class_token: held: vector
layer_scale: held: vector
gain: held: vector
mixing: 3 filters along dim 0, one per row
temperature: held: vector
attention.in_proj_weight: 12 filters along dim 0, one per query, key or value
attention.in_proj_bias: held: vector
attention.bias_k: held: bias
attention.bias_v: held: bias
attention.out_proj.weight: 4 filters along dim 0, one per output
attention.out_proj.bias: held: bias
cross.q_proj_weight: 4 filters along dim 0, one per query, key or value
cross.k_proj_weight: 4 filters along dim 0, one per query, key or value
cross.v_proj_weight: 4 filters along dim 0, one per query, key or value
cross.in_proj_bias: held: vector
cross.out_proj.weight: 4 filters along dim 0, one per output
cross.out_proj.bias: held: bias
norm.weight: held: of a normalisation layer
norm.bias: held: of a normalisation layer
depthwise.weight: 4 filters along dim 0, one per output channel
depthwise.bias: held: bias
up.weight: 3 filters along dim 1 in each of 2 groups, one per output channel
up.bias: held: bias
lstm.weight_ih_l0: 12 filters along dim 0, one per unit of a gate
lstm.weight_hh_l0: 12 filters along dim 0, one per unit of a gate
lstm.bias_ih_l0: held: bias
lstm.bias_hh_l0: held: bias
lstm.weight_hr_l0: 2 filters along dim 0, one per output
cell.weight_ih: 9 filters along dim 0, one per unit of a gate
cell.weight_hh: 9 filters along dim 0, one per unit of a gate
cell.bias_ih: held: bias
cell.bias_hh: held: bias
normed.bias: held: bias
normed.parametrizations.weight.original0: held: vector
normed.parametrizations.weight.original1: 3 filters along dim 0, one per output
normed_conv.bias: held: bias
normed_conv.parametrizations.weight.original0: held: vector
normed_conv.parametrizations.weight.original1: 2 filters along dim 1, one per output channel
activation.weight: held: vector
single.weight: 3 filters along dim 0, one per output
single.bias: held: bias"""


def test_policy_is_spelled_out() -> None:
    layout = ParameterLayout.of(_seeded(_Zoo))
    listed = movements(layout, "filter")
    names = {line.split(": ")[0]: line for line in POLICY.splitlines()}
    assert {row.name: f"{row.name}: {row.treatment}" for row in listed} == names
    assert [row.name for row in listed] == list(layout.names)
    assert [row.shape for row in listed] == [tuple(shape) for shape in layout.shapes]
    by_layer = {row.name: row.treatment for row in movements(layout, "layer")}
    assert by_layer["up.weight"] == "moves, on the scale of the whole tensor"
    assert by_layer["up.bias"] == "held: bias"
    assert {row.treatment for row in movements(layout, "none")} == {
        "moves, on the scale of all parameters together"
    }


def _flat(model: nn.Module) -> Tensor:
    return flatten(p.detach() for p in model.parameters())


@pytest.mark.parametrize("normalization", ["filter", "layer", "none"])
def test_what_the_policy_says_is_what_moves(normalization: Normalization) -> None:
    model = _seeded(_Zoo)
    layout, theta = ParameterLayout.of(model), _flat(model)
    direction = normalize(standard_normal(layout.dim, 0), theta, layout, normalization)
    for row, piece in zip(movements(layout, normalization), layout.split(direction), strict=True):
        assert piece.any() == (row.held is None), row.name
        assert (row.treatment == f"held: {row.held}") == (row.held is not None), row.name


@pytest.mark.parametrize("normalization", ["filter", "layer", "none"])
def test_second_moments_of_random_directions(normalization: Normalization) -> None:
    """E ddᵀ = diag(s²), and the length is the same for every draw."""
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Unflatten(1, (4, 1)),
                          nn.ConvTranspose1d(4, 6, 2, groups=2)).double()  # fmt: skip
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(standard_normal(parameter.numel(), index).view_as(parameter))
    layout, theta = ParameterLayout.of(model), _flat(model)
    scale = root_mean_square(theta, layout, normalization)
    count = 1500
    draws = torch.stack(
        [normalize(standard_normal(layout.dim, 7, k), theta, layout, normalization)
         for k in range(count)]
    )  # fmt: skip
    lengths = draws.norm(dim=1)
    torch.testing.assert_close(lengths, scale.norm().expand(count), rtol=1e-13, atol=0)
    moments = draws.T @ draws / count
    expected = torch.diag(scale.square())
    # An entry's standard deviation over draws is below √2·s_p·s_q; of P²/2 ≈ 1,000 entries the
    # largest deviation stays below 5 standard errors but for 1 in 1,000 seeds.
    room = 5 * math.sqrt(2 / count) * torch.outer(scale, scale) + 1e-15
    assert ((moments - expected).abs() <= room).all()
