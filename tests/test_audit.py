"""The self-audit: clean on what is right, and naming what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import NETWORKS, dense_hessian, make
from torch import Tensor, nn

from lgo_cli.config import HessianConfig
from lgo_cli.curvature import requested
from lgo_cli.curvature.analysis import analyze_spectrum
from lgo_cli.curvature.audit import Rounding, audit, measure_rounding, takes_differences
from lgo_cli.curvature.folding import Rewritten
from lgo_cli.curvature.kinks import nonsmooth_operations
from lgo_cli.curvature.networks import GaussNewtonOperator, HessianOperator
from lgo_cli.curvature.operators import DenseOperator
from lgo_cli.curvature.spectrum import Setting
from lgo_cli.errors import InputError, NumericsError, UsageError
from lgo_cli.objective import Objective
from lgo_cli.samples import Samples

KINKS = dict.fromkeys(("relu", "convolution", "several classes at once"), ("ReLU",))
NOTHING = Rounding(None, None, "not looked at")


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clean_on_what_is_right(name: str, dtype: str) -> None:
    model, samples, loss = make(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    kind = torch.float32 if dtype == "float32" else torch.float64
    with Objective(model, samples, loss, micro_batch_size=7, dtype=kind) as objective:
        found = analyze_spectrum(objective, HessianConfig(top_k=2, bottom_k=0, dtype=dtype)).audit
    assert found is not None
    assert found.complaints == ()
    assert found.num_matvecs == 3
    assert found.nonsmooth == KINKS.get(name, ())
    assert found.orthogonality is not None
    assert found.orthogonality < 1e-5
    if name in KINKS:
        assert found.finite_difference is None
        assert "kinks of ReLU" in str(found.finite_difference_note)
    else:
        # h² of a third derivative, and eps/h: some 1e-9.
        assert found.finite_difference is not None
        assert found.finite_difference < 1e-6
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


class _Coupled(nn.Module):
    """Normalises by the batch in eval mode too: samples of a batch see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x - x.mean(0)) / (x.std(0) + 0.1))


def test_samples_that_see_each_other() -> None:
    _, samples, _ = make("relu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _Coupled()
    with Objective(model, samples) as objective:
        found = audit(objective, HessianOperator(objective), NOTHING, ())
        spectrum = analyze_spectrum(objective, HessianConfig(top_k=1))
    assert "samples see each other" in found.complaints[0]
    assert any("the audit found: samples see each other" in text for text in spectrum.warnings)


def test_asymmetry_and_nonlinearity_are_seen() -> None:
    model, samples, loss = make("relu")
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(99, 99, generator=draw, dtype=torch.float64)

    class Bent(DenseOperator):
        def _product(self, vector: Tensor) -> Tensor:
            return self.matrix @ vector + vector.norm()

    with Objective(model, samples, loss) as objective:
        operator = DenseOperator(noise)
        operator.num_matvecs = 5
        skew = audit(objective, operator, NOTHING, ())
        little = audit(objective, DenseOperator(noise + noise.T + 1e-6 * noise), NOTHING, ())
        bent = audit(objective, Bent(noise + noise.T), NOTHING, ())
    assert skew.num_matvecs == 3
    (said,) = [text for text in skew.complaints if "not symmetric" in text]
    assert "a second derivative of the model is wrong" in said
    (said,) = [text for text in little.complaints if "not symmetric" in text]
    assert "wrong" not in said  # a part in float32 may be off by as much
    assert any("not linear" in text for text in bent.complaints)


class _Off(torch.autograd.Function):
    """tanh with a gradient that is right and a second derivative that is off by a share."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.share = share
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        moved = x.detach() + (1 + ctx.share) * (x - x.detach())
        return grad * (1 - torch.tanh(moved) ** 2), None


class _OffTanh(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return _Off.apply(x, self.share)


def test_wrong_second_derivative_differs_from_differences() -> None:
    _, samples, _ = make("relu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 6), _OffTanh(-1.0), nn.Linear(6, 3))  # none is left
    with Objective(model, samples) as objective:
        rounding = measure_rounding(objective, HessianOperator, difference=True)
        found = audit(objective, HessianOperator(objective), rounding, ())
    assert rounding.finite_difference is not None
    assert rounding.finite_difference.gap > 1e-2
    assert "differs from central differences" in found.complaints[-1]


def test_asymmetric_products_are_called_wrong_and_not_rounding() -> None:
    class Lopsided(torch.autograd.Function):
        """A product, one of whose gradients forgets where it comes from."""

        @staticmethod
        def forward(ctx: object, x: Tensor, y: Tensor) -> Tensor:
            ctx.save_for_backward(x, y)  # type: ignore[attr-defined]
            return x * y

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> tuple[Tensor, Tensor]:
            x, y = ctx.saved_tensors  # type: ignore[attr-defined]
            return grad * y, (grad * x.detach()).sum(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(12, 6), nn.Linear(6, 3)
            self.scale = nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(Lopsided.apply(torch.tanh(self.first(x)), self.scale))

    _, samples, _ = make("relu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model()
    for dtype in ("float32", "float64"):
        kind = getattr(torch, dtype)
        with Objective(model, samples, dtype=kind) as objective:
            config = HessianConfig(top_k=2, bottom_k=0, trace=True, dtype=dtype)
            spectrum = analyze_spectrum(objective, config)
        assert not spectrum.converged
        (found,) = [text for text in spectrum.warnings if "audit found: products are" in text]
        assert "not symmetric" in found
        assert "a second derivative of the model is wrong" in found
        (missed,) = [text for text in spectrum.warnings if "did not converge" in text]
        assert "products are not symmetric" in missed
        assert "a second derivative of the model is wrong" in missed
        assert "rounding" not in missed


def test_kinks_are_found_in_functions_too() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 2, 2), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(self.conv(x.view(-1, 1, 3, 4)), 2)
            return self.head(F.leaky_relu(x.flatten(1).abs()))

    _, samples, _ = make("relu")
    with torch.random.fork_rng():
        model = Model()
    with Objective(model, samples) as objective:
        kinks = nonsmooth_operations(objective)
    assert set(kinks) == {"max pooling", "leaky ReLU", "absolute value"}
    assert not takes_differences(HessianOperator, kinks)
    assert takes_differences(HessianOperator, ())
    assert not takes_differences(GaussNewtonOperator, ())


def test_kinks_of_fused_layers_and_of_choices() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.encoder(x.view(-1, 3, 4))
            mask = torch.ones(3, 3, dtype=torch.bool)
            x = F.scaled_dot_product_attention(x, x, x, mask)  # a choice between constants
            return self.head(x.mean(1))

    class Chosen(Model):
        def forward(self, x: Tensor) -> Tensor:
            x = self.head(x.view(-1, 3, 4))
            return torch.where(x > 0, x, x.exp() - 1).amin(1)

    _, samples, _ = make("relu")
    with torch.random.fork_rng():
        models = Model(), Chosen()
    for model, expected in zip(models, ({"ReLU"}, {"where", "minimum"}), strict=True):
        with Objective(model, samples) as objective:
            assert set(nonsmooth_operations(objective)) == expected


def test_input_within_rounding_of_a_kink_is_no_rounding() -> None:
    """Of one sample it is zero in float32 and above zero in float64, where its ReLU is open."""
    model, samples, loss = make("relu")
    linear = model[0]
    single = F.linear(samples.inputs[:4], linear.weight)
    double = F.linear(samples.inputs[:4].double(), linear.weight.double())
    row, unit = ((double - single) > 1e-8).nonzero()[0].tolist()
    with torch.no_grad():
        linear.bias[unit] = -single[row, unit]
    units = []
    for few in (samples.head(4), samples):  # of 128 in a micro-batch four are measured
        with Objective(model, few, loss, micro_batch_size=128) as objective:
            units.append(measure_rounding(objective, HessianOperator, difference=False).units)
    assert units[0] > 1e4
    assert units[1] < 100


def test_rounding_is_what_products_are_off_by_and_the_same_again() -> None:
    """Of a matrix e₀e₀ᵀ that float32 makes 500 units of e₁e₁ᵀ more, and a gradient 1e-3 longer."""
    model, samples, loss = make("relu")
    off = 500 * torch.finfo(torch.float32).eps
    called = []

    class Off(DenseOperator):
        def __init__(self, objective: Objective, **options: Any) -> None:
            diagonal = torch.zeros(objective.dim, dtype=objective.dtype)
            diagonal[0] = 1
            diagonal[1] = off * (objective.dtype == torch.float32)
            super().__init__(torch.diag(diagonal))
            called.append((objective.dtype, options["model"].call))

        def gradient(self) -> Tensor:
            gradient = torch.zeros(self.dim, dtype=self.dtype)
            gradient[0] = 3 + 1e-3 * (self.dtype == torch.float32)
            return gradient

    rewritten = Rewritten(lambda x: x, "another")
    with Objective(model, samples, loss) as objective:
        found = measure_rounding(objective, Off, rewritten, difference=False)  # type: ignore[arg-type]
    assert found.units == pytest.approx(2 * 500, rel=1e-3)
    assert found.gradient == pytest.approx(2 * 1e-3, rel=1e-3)
    # What float64 is to judge is not what judges.
    assert set(called) == {(torch.float32, rewritten.call), (torch.float64, model)}


def test_inputs_of_another_scale_are_no_complaint() -> None:
    _, samples, _ = make("relu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 3))
        large = Samples(4095 * torch.rand_like(samples.inputs), samples.labels)
    with Objective(model, large) as objective:
        rounding = measure_rounding(objective, HessianOperator, difference=True)
    assert rounding.finite_difference is not None
    assert rounding.finite_difference.gap < 1e-4


@pytest.mark.parametrize(("largest", "share"), [(1, 1e-2), (255, 1e-3), (4095, 1e-3), (4095, 1e-2)])
def test_product_that_is_off_by_a_thousandth(largest: int, share: float) -> None:
    """Whatever the inputs' scale; at 4095 the largest step is off by another hundredth."""
    _, samples, _ = make("relu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 10), _OffTanh(0.0), nn.Linear(10, 3))
        large = Samples(largest * torch.rand_like(samples.inputs), samples.labels)
    for wrong, expected in ((0.0, 0), (share, 1)):
        model[1].share = wrong
        with Objective(model, large) as objective:
            rounding = measure_rounding(objective, HessianOperator, difference=True)
            found = audit(objective, HessianOperator(objective), rounding, ())
        assert len([text for text in found.complaints if "central differences" in text]) == expected


def test_model_that_fits_with_large_weights_is_no_complaint() -> None:
    """Its third derivative is large: at a tenth of the first step the truncation is 2e-3 still."""
    _, samples, _ = make("relu", num_samples=200)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 3)
        )
    with torch.no_grad():
        model[-1].weight.mul_(400)
        model[-1].bias.mul_(400)
        outputs = model(samples.inputs)
    clear = outputs.topk(2).values.diff().abs()[:, 0] > 13
    fitted = Samples(samples.inputs[clear], outputs.argmax(1)[clear])
    with Objective(model, fitted) as objective:
        rounding = measure_rounding(objective, HessianOperator, difference=True)
        found = audit(objective, HessianOperator(objective), rounding, ())
    assert found.complaints == ()
    assert found.finite_difference is not None
    assert found.finite_difference < 1e-4


def test_part_in_float32_leaves_differences_undecided() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(12, 10), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = F.layer_norm(self.first(x).float(), (10,)).to(x.dtype)
            return self.head(torch.tanh(hidden))

    _, samples, _ = make("relu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model()
    for dtype in (torch.float32, torch.float64):
        with Objective(model, samples, dtype=dtype) as objective:
            rounding = measure_rounding(objective, HessianOperator, difference=True)
            found = audit(objective, HessianOperator(objective), rounding, ())
        assert not [text for text in found.complaints if "central differences" in text]
        assert not any("derivative" in text for text in found.complaints)
        assert found.finite_difference is None
        assert "a part of the model computes in float32" in str(found.finite_difference_note)


def test_model_that_runs_in_float32_only() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(12, 3)
            self.scale = torch.full((12, 12), 0.1)  # neither parameter nor buffer

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(x @ self.scale))

    _, samples, _ = make("relu")
    with torch.random.fork_rng():
        model = Model()
    with Objective(model, samples) as objective:
        rounding = measure_rounding(objective, HessianOperator, difference=True)
        found = audit(objective, HessianOperator(objective), rounding, ())
        warnings = analyze_spectrum(objective, HessianConfig(top_k=1, halves=True)).warnings
    assert rounding.units is None
    (said,) = [text for text in warnings if "rounding of outputs only" in text]
    assert "the model does not run in float64" in said
    assert "does not run in float64" in str(found.finite_difference_note)
    assert found.complaints == ()


def test_dropout_that_ignores_eval_mode_is_refused_by_name() -> None:
    class Drop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5)

    _, samples, _ = make("relu")
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(12, 6), nn.Tanh(), Drop(), nn.Linear(6, 3))
    with (
        pytest.raises(NumericsError, match="the module that differs is 2"),
        Objective(model, Samples(samples.inputs, samples.labels)),
    ):
        pass


def test_sparse_embedding_is_refused_by_name() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 2, sparse=True), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed((2 * x).long() % 5).mean(1))

    _, samples, _ = make("relu")
    with torch.random.fork_rng():
        model = Model()
    with (
        Objective(model, samples) as objective,
        pytest.raises(InputError, match="embed is an embedding with sparse=True"),
    ):
        analyze_spectrum(objective, HessianConfig(top_k=1))


def test_warning_of_a_warm_start_is_given_once() -> None:
    model, samples, loss = make("relu")
    with Objective(model, samples, loss) as objective:
        nothing = Setting(warm_start=torch.zeros(1, objective.dim))
        config = HessianConfig(top_k=1, layers=("0.*",), halves=True, audit=False)
        warnings = analyze_spectrum(objective, config, nothing).warnings
    assert warnings.count("--warm-start has nothing in these layers: a cold start") == 1
    assert sum("warm-start" in text for text in warnings) == 1


def test_what_cannot_be_is_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_late(*args: object, **options: object) -> None:
        raise AssertionError

    monkeypatch.setattr(requested, "fold", too_late)
    model, samples, loss = make("relu", num_samples=1)
    with Objective(model, samples, loss) as objective:
        with pytest.raises(UsageError, match="--halves needs two samples"):
            analyze_spectrum(objective, HessianConfig(halves=True))
        with pytest.raises(UsageError, match="--max-basis 5 is too few"):
            analyze_spectrum(objective, HessianConfig(top_k=1, max_basis=5))
        none = {"top_k": 0, "bottom_k": 0, "max_basis": 5}
        with pytest.raises(UsageError, match="--max-basis 5 is too few"):
            analyze_spectrum(objective, HessianConfig(per_layer=True, **none))


def test_padding_row_is_named() -> None:
    model, samples, loss = make("embedding with padding")
    with Objective(model, samples, loss) as objective:
        found = analyze_spectrum(objective, HessianConfig(top_k=1, bottom_k=0))
    assert any("row 0 of embed is padding" in warning for warning in found.warnings)
    with Objective(model, samples, loss) as objective:
        rows = dense_hessian(objective)[:2]
    assert not rows.any()
