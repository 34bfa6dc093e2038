"""Losses of one's own, and binary cross entropy of real-valued targets."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Lgo
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

from lgo_cli.config import HessianConfig, OperatorName
from lgo_cli.curvature.analysis import analyze_spectrum
from lgo_cli.curvature.exact_trace import ExactTrace, exact_trace
from lgo_cli.curvature.kinks import nonsmooth_operations
from lgo_cli.curvature.networks import OPERATORS
from lgo_cli.curvature.operators import ROUNDING_UNITS
from lgo_cli.errors import InputError, NumericsError, UsageError
from lgo_cli.figures.interpolation import draw_interpolation
from lgo_cli.landscape.interpolation import interpolate
from lgo_cli.loss import LossFunction
from lgo_cli.objective import Objective
from lgo_cli.samples import Samples
from lgo_cli.vectors import Block

EXACT = 1e-11
"""A few thousand float64 operations on numbers of order one."""


def focal(outputs: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Of Lin et al. 2017."""
    log_p = F.log_softmax(outputs, dim=-1).gather(1, labels[:, None])[:, 0]
    return -((1 - log_p.exp()) ** gamma) * log_p


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.huber_loss(outputs, targets.to(outputs), reduction="none").sum(dim=1)


def hinge(outputs: Tensor, labels: Tensor) -> Tensor:
    """Linear in the outputs almost everywhere."""
    return (1 + outputs - outputs.gather(1, labels[:, None])).clamp(min=0).sum(dim=1)


def gaussian(outputs: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of mean and log-variance: two outputs for one target, and signed."""
    mean, log_variance = outputs.unbind(dim=1)
    return 0.5 * (log_variance + (mean - targets[:, 0].to(mean)) ** 2 * (-log_variance).exp())


def _objective(
    loss: LossFunction, outputs: int, labels: Tensor | None = None, *, kinked: bool = False
) -> Objective:
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(11, 6, generator=draw)
    if labels is None:
        labels = torch.randint(0, outputs, (11,), generator=draw)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        activation = nn.ReLU() if kinked else nn.Tanh()
        model = nn.Sequential(nn.Linear(6, 5), activation, nn.Linear(5, outputs))
    return Objective(model, Samples(x, labels), loss, micro_batch_size=4, dtype=torch.float64)


def _real(*shape: int) -> Tensor:
    return torch.randn(11, *shape, generator=torch.Generator().manual_seed(6))


Function = Callable[[Tensor, Tensor], Tensor]
OWN: dict[str, tuple[Function, int, Tensor | None]] = {
    "focal": (focal, 4, None),
    "huber": (huber, 3, _real(3)),
    "hinge": (hinge, 4, None),
    "gaussian": (gaussian, 2, _real(1)),
}


def _dense(objective: Objective, function: Function, operator: str) -> Tensor:
    """[P, P], ∂²ℓ/∂z² of each sample by itself."""
    names, samples = objective.layout.names, objective.samples
    labels = samples.labels

    def outputs(theta: Tensor) -> Tensor:
        parameters = dict(zip(names, objective.layout.split(theta), strict=True))
        return functional_call(objective.model, parameters, (samples.inputs,))

    def losses(theta: Tensor) -> Tensor:
        return function(outputs(theta), labels)

    theta, n = objective.theta, len(labels)
    if operator == "hessian":
        return jacrev(grad(lambda at: losses(at).mean()))(theta).detach()
    if operator == "empirical-fisher":
        slopes = jacrev(losses)(theta)
        return (slopes.T @ slopes / n).detach()
    jacobian = jacrev(outputs)(theta)

    def alone(z: Tensor, label: Tensor) -> Tensor:
        return function(z[None], label[None])[0]

    pairs = zip(outputs(theta).detach(), labels, strict=True)
    middle = torch.stack([jacrev(grad(alone))(z, label) for z, label in pairs])
    return torch.einsum("nap,nab,nbq->pq", jacobian, middle, jacobian).detach() / n


@pytest.mark.parametrize("operator", ["hessian", "ggn", "empirical-fisher"])
@pytest.mark.parametrize("name", list(OWN))
def test_products_of_ones_own_loss(name: str, operator: OperatorName) -> None:
    function, outputs, labels = OWN[name]
    with _objective(LossFunction(name, function=function), outputs, labels) as objective:
        dense = _dense(objective, function, operator)
        found = OPERATORS[operator](objective)
        columns = [found.matvec(unit) for unit in torch.eye(objective.dim, dtype=dense.dtype)]
    assert float((torch.stack(columns) - dense).norm()) <= EXACT * float(dense.norm())
    assert bool(dense.any()) == ((name, operator) != ("hinge", "ggn"))
    if (name, operator) == ("gaussian", "ggn"):  # which is not convex in the outputs
        assert torch.linalg.eigvalsh(dense)[0] < -1e-3


@pytest.mark.parametrize("operator", ["hessian", "ggn", "empirical-fisher"])
def test_cross_entropy_as_ones_own_has_the_same_numbers(operator: OperatorName) -> None:
    own = LossFunction("mine", function=lambda z, y: F.cross_entropy(z, y, reduction="none"))
    found = []
    for loss in (LossFunction(), own):
        with _objective(loss, 4) as objective:
            config = HessianConfig(operator=operator, top_k=3, trace=True)
            found.append((analyze_spectrum(objective, config), objective.center))
    (known, center), (result, own_center) = found
    assert own_center.loss == pytest.approx(center.loss, rel=1e-14)
    assert own_center.accuracy == center.accuracy
    assert result.eigenpairs.largest.tolist() == pytest.approx(
        known.eigenpairs.largest.tolist(), rel=1e-9
    )
    assert result.trace is not None
    assert known.trace is not None
    assert (result.trace.exact is None) is (operator == "hessian")  # of a network with a tanh
    assert result.trace.value == pytest.approx(known.trace.value, rel=1e-9)
    assert result.trace.rounding == pytest.approx(known.trace.rounding, rel=1e-9)


@pytest.mark.parametrize("operator", ["hessian", "ggn", "empirical-fisher"])
@pytest.mark.parametrize("name", list(OWN))
def test_exact_trace_of_ones_own_loss(name: str, operator: OperatorName) -> None:
    """Of a piecewise linear network; of a loss that is not convex its terms have both signs."""
    function, outputs, labels = OWN[name]
    loss = LossFunction(name, function=function)
    with _objective(loss, outputs, labels, kinked=True) as objective:
        diagonal = _dense(objective, function, operator).diag()
        found = exact_trace(objective, operator, Block.whole(objective.layout))
        parts = [float(part.sum()) for part in diagonal.split(objective.layout.sizes)]
        config = HessianConfig(operator=operator, top_k=1, trace=True)
        reported = analyze_spectrum(objective, config).trace
    assert isinstance(found, ExactTrace), found
    assert found.parts == pytest.approx(parts, rel=EXACT, abs=1e-14)
    assert reported is not None
    signed = (name, operator) in {("gaussian", "hessian"), ("gaussian", "ggn")}
    assert (found.sizes == found.parts) is not signed
    if any(found.sizes):  # rounding is of the terms, however far they cancel
        units = reported.rounding / (sum(found.sizes) * torch.finfo(torch.float64).eps)
        assert ROUNDING_UNITS < units < 1.1 * ROUNDING_UNITS
        assert signed is (sum(found.sizes) > 1.1 * abs(sum(found.parts)))
    assert all(size >= part for size, part in zip(found.sizes, found.parts, strict=True))


def test_there_is_no_fisher_matrix_of_it() -> None:
    with _objective(LossFunction("loss.py:focal", function=focal), 4) as objective:
        operator, vector = OPERATORS["fisher"](objective), torch.ones_like(objective.theta)
        with pytest.raises(UsageError, match="focal says of no distribution which") as error:
            operator.matvec(vector)
    assert error.value.hint == "--operator ggn, or empirical-fisher"


def test_a_loss_in_float32_is_summed_in_float64() -> None:
    loss = LossFunction("mine", function=lambda z, y: focal(z.float(), y))
    z = torch.randn(5, 3, dtype=torch.float64)
    assert loss(z, torch.zeros(5).long()).dtype == torch.float64


def test_kinks_of_ones_own_loss_are_listed() -> None:
    for function, has_kinks in ((hinge, True), (focal, False)):
        with _objective(LossFunction("mine", function=function), 4) as objective:
            assert bool(nonsmooth_operations(objective)) is has_kinks
    with _objective(LossFunction(), 4) as objective:  # PyTorch's own has none
        assert nonsmooth_operations(objective) == ()


def test_accuracy_where_the_outputs_are_classes() -> None:
    z = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])

    def correct(labels: Tensor, outputs: Tensor = z) -> list[float]:
        return LossFunction("mine", function=focal).correct(outputs, labels).tolist()

    assert correct(torch.tensor([0, 0, 0])) == [1, 0, 1]
    assert correct(torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])) == [1, 0, 1]
    # Counts, say, one number for a sample, or as many as there are outputs: nothing is right.
    assert np.isnan(correct(torch.tensor([0, 7, 0]))).tolist() == [False, True, False]
    assert np.isnan(correct(torch.tensor([[0.5], [2.0], [1.0]]))).all()
    assert np.isnan(correct(torch.tensor([0, 0, 0]), z[:, :1])).all()
    assert np.isnan(correct(torch.tensor([[3.0, 0.1], [2.0, 0.1], [5.0, 0.1]]))).all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_heights_in_any_unit_of_ones_own_loss(scale: float) -> None:
    def scaled(outputs: Tensor, labels: Tensor) -> Tensor:
        return scale * focal(outputs, labels)

    alpha, found = np.linspace(0, 1, 11), []
    for dtype in (torch.float64, torch.float32):
        objective = _objective(LossFunction("mine", function=scaled), 4)
        with Objective(
            objective.model, objective.samples.to(objective.device, dtype),
            objective.loss_function, dtype=dtype,
        ) as objective:  # fmt: skip
            target = objective.theta.clone()
            target[:-4] *= -1  # the same function, since tanh is odd
            found.append(interpolate(objective, None, alpha.tolist(), target=target).train)
    exact, rounded = (series.loss for series in found)
    off = rounded - exact
    heights = np.abs(off - (1 - alpha) * off[0] - alpha * off[-1])
    barrier = found[1].barrier
    assert barrier is not None
    assert barrier.value > 0.05 * scale
    with _objective(LossFunction("mine", function=scaled), 4) as objective:
        labels, sensitivity = objective.samples.labels, objective.sensitivity
        allowance = objective.loss_function.rounding_scale(labels, sensitivity)
    assert allowance.constant == allowance.root == 0  # nothing that has no unit
    eps = torch.finfo(torch.float32).eps
    assert 0 < heights.max() <= 8 * eps * allowance.of(rounded.max()) < 1e-3 * barrier.value


@pytest.mark.parametrize(
    ("function", "message", "hint"),
    [
        (
            F.cross_entropy,
            r"mine must return the loss of each sample, a tensor \[2\] here, it returned float64 "
            r"of shape \(\)",
            "reduction='none' leaves out the mean over samples",
        ),
        (
            lambda z, y: z.square(),
            r"it returned float64 of shape \(2, 4\)",
            "losses.flatten(1).mean(dim=1), or their sum, is one for each sample",
        ),
        (lambda z, y: y, r"it returned int64 of shape \(2,\)", "reduction='none' leaves"),
        (lambda z, y: [0.0, 0.0], r"a tensor \[2\] here, it returned a list", None),
        (lambda z, y: z[:, 9], "the loss mine fails: index 9 is out of bounds", "raised at"),
    ],
)
def test_what_is_no_loss(function: Any, message: str, hint: str | None) -> None:
    loss = LossFunction("loss.py:mine", function=function)
    with pytest.raises(InputError, match=message) as error, _objective(loss, 4):
        pass
    assert (error.value.hint or "").find(hint or "") >= 0
    assert (error.value.hint is None) == (hint is None)


def test_a_loss_that_autograd_does_not_see_through() -> None:
    def counted(outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.detach() - labels[:, None]).square().sum(dim=1)

    loss = LossFunction("counted", function=counted)
    with (
        pytest.raises(InputError, match="counted has no gradient: autograd sees no outputs") as e,
        _objective(loss, 4),
    ):
        pass
    assert "detach()" in str(e.value.hint)


class _Hidden(torch.autograd.Function):
    """Focal loss whose backward autograd does not see: it takes the slope for constant."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, labels: Tensor) -> Tensor:
        ctx.save_for_backward(outputs, labels)
        return focal(outputs, labels)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        outputs, labels = ctx.saved_tensors
        with torch.enable_grad():
            z = outputs.detach().requires_grad_()
            (found,) = torch.autograd.grad(focal(z, labels).sum(), z)
        return found * slope[:, None], None


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_a_second_derivative_that_autograd_does_not_see(
    operator: OperatorName, share: float
) -> None:
    def mine(outputs: Tensor, labels: Tensor) -> Tensor:
        seen = focal(outputs, labels)
        return share * _Hidden.apply(outputs, labels) + (1 - share) * seen

    with _objective(LossFunction("mine", function=mine), 4) as objective:
        with pytest.raises(InputError, match="mine has no second derivative by autograd"):
            OPERATORS[operator](objective)
        OPERATORS["empirical-fisher"](objective)


def test_a_loss_that_writes_into_what_it_is_given() -> None:
    def written(outputs: Tensor, labels: Tensor) -> Tensor:
        outputs -= 1
        outputs *= 2
        labels.fill_(1)
        return focal(outputs, labels)

    def same(outputs: Tensor, labels: Tensor) -> Tensor:
        return focal(2 * (outputs - 1), torch.ones_like(labels))

    found = []
    for function in (written, same):
        loss = LossFunction("mine", function=function)
        with _objective(loss, 4) as objective:
            vector = torch.ones(objective.dim, dtype=torch.float64)
            product = OPERATORS["ggn"](objective).matvec(vector)
            found.append((objective.center, product, objective.samples.labels))
    (center, product, labels), (of_same, expected, untouched) = found
    assert center == of_same
    torch.testing.assert_close(product, expected, rtol=EXACT, atol=EXACT)
    assert torch.equal(labels, untouched)
    assert not bool((labels == 1).all())


def test_a_loss_with_random_numbers() -> None:
    def noisy(outputs: Tensor, labels: Tensor) -> Tensor:
        return focal(outputs + torch.randn_like(outputs), labels)

    loss = LossFunction("noisy", function=noisy)
    with pytest.raises(NumericsError, match="not deterministic") as error, _objective(loss, 4):
        pass
    assert error.value.hint == (
        "noisy must give the same loss for the same outputs, without random numbers"
    )


def test_what_one_names_and_smooths() -> None:
    with pytest.raises(UsageError, match="unknown loss 'squared_eror'; did you mean squared_error"):
        LossFunction("squared_eror")
    with pytest.raises(UsageError, match="of lgo's own losses, not of mine"):
        LossFunction("mine", 0.1, focal)
    # It was half the squared distance, without a word.
    with pytest.raises(UsageError, match=r"mine\.py:focal is a name without its function"):
        LossFunction("mine.py:focal")


# Binary cross entropy.


def _targets(*shape: int) -> Tensor:
    return torch.rand(11, *shape, generator=torch.Generator().manual_seed(7)).round(decimals=1)


@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("operator", list(OPERATORS))
def test_binary_cross_entropy_of_real_targets(operator: OperatorName, num_outputs: int) -> None:
    def by_pytorch(outputs: Tensor, targets: Tensor) -> Tensor:
        p, targets = outputs.sigmoid(), targets.to(outputs)
        return -(targets * p.log() + (1 - targets) * (1 - p).log()).sum(dim=1)

    targets = _targets(num_outputs)
    loss = LossFunction("binary_cross_entropy")
    with _objective(loss, num_outputs, targets, kinked=True) as objective:
        same = "ggn" if operator == "fisher" else operator
        dense = _dense(objective, by_pytorch, same)
        found = OPERATORS[operator](objective)
        columns = [found.matvec(unit) for unit in torch.eye(objective.dim, dtype=dense.dtype)]
        trace = exact_trace(objective, operator, Block.whole(objective.layout))
        outputs = objective.model(objective.samples.inputs).detach()
        assert objective.center.loss == pytest.approx(
            float(by_pytorch(outputs, targets).mean()), rel=EXACT
        )
        right = ((outputs > 0) == (targets > 0.5)).double().mean()
        assert 0 < objective.center.accuracy == pytest.approx(float(right), rel=EXACT)
    assert float((torch.stack(columns) - dense).norm()) <= EXACT * float(dense.norm())
    assert isinstance(trace, ExactTrace), trace
    assert trace.of(Block.whole(objective.layout)) == pytest.approx(float(dense.trace()), rel=EXACT)


def test_one_output_and_two_classes_are_one_model() -> None:
    """z for the first against (0, z) in cross entropy: Böhning 1992."""
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0])
    found = []
    binary = LossFunction("binary_cross_entropy")
    with _objective(binary, 1, labels[:, None].float()) as objective:
        found.append(analyze_spectrum(objective, HessianConfig(top_k=3)))
        center = objective.center
        model, samples = objective.model, objective.samples

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = model

        def forward(self, x: Tensor) -> Tensor:
            z = self.one(x)
            return torch.cat([torch.zeros_like(z), z], dim=1)

    with Objective(Two(), Samples(samples.inputs, labels), dtype=torch.float64) as objective:
        found.append(analyze_spectrum(objective, HessianConfig(top_k=3)))
        assert center.loss == pytest.approx(objective.center.loss, rel=1e-13)
        assert center.accuracy == objective.center.accuracy
    one, two = (spectrum.eigenpairs.largest.tolist() for spectrum in found)
    assert one == pytest.approx(two, rel=1e-9)


def test_outputs_that_have_decided_do_not_curve() -> None:
    loss = LossFunction("binary_cross_entropy")
    z = torch.tensor([[-1e3, 3.0, 1e3, -700.0]], dtype=torch.float64)
    assert loss.curving(z).tolist() == [[0, 3, 0, -700]]
    mine = LossFunction("mine", function=focal)
    assert torch.equal(mine.curving(z), z)
    # σ(z)σ(−z) without cancellation, where 1 − σ(z) is zero in float64.
    curved = loss.curve(z.new_full((1, 1), 40.0), z.new_ones(1, 1), z.new_ones(1, 1))
    assert float(curved) == pytest.approx(math.exp(-40), rel=1e-12)


def test_targets_that_are_no_probabilities() -> None:
    targets = _targets(2)
    targets[4, 1] = 1.5
    with (
        pytest.raises(InputError, match=r"has the target 1.5 in row 4, outside \[0, 1\]") as error,
        _objective(LossFunction("binary_cross_entropy"), 2, targets),
    ):
        pass
    assert "--loss squared_error" in str(error.value.hint)


# The command line.

SIGMOID = """
from torch import nn
def build(logits=False):
    return nn.Sequential(nn.Linear(20, 1), nn.Softplus(2, 20) if logits else nn.Sigmoid())
"""


def test_probabilities_are_no_logits(lgo: Lgo, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(SIGMOID)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 20)).astype("float32"), rng.uniform(size=80).astype("float32")
    np.savez("one.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    asked = ("--model", "net.py:build", "--dataset", "one.npz", "--epochs", 1)
    binary = lgo("train", *asked, "--loss", "binary_cross_entropy")
    assert "all are in [0, 1]), which binary_cross_entropy takes for logits" in binary.stderr
    logits = ("--model-arg", "logits=true", "--loss", "binary_cross_entropy")
    assert "probabilities" not in lgo("train", *asked, *logits).stderr
    assert "probabilities" not in lgo("train", *asked, "--loss", "squared_error").stderr


MINE = '''
"""A loss beside which another file lies."""
import json
from pathlib import Path
import torch
import torch.nn.functional as F
from factor import FACTOR


def focal(outputs, labels, gamma=2.0):
    log_p = F.log_softmax(outputs, dim=-1).gather(1, labels[:, None])[:, 0]
    return -FACTOR * ((1 - log_p.exp()) ** gamma) * log_p


class Weighted:
    def __init__(self, file):
        self.weights = torch.tensor(json.loads(Path(file).read_text()))

    def __call__(self, outputs, labels):
        each = F.cross_entropy(outputs, labels, reduction="none")
        return self.weights.to(outputs)[labels] * each
'''
SMALL = ("--model-arg", "hidden=6", "--epochs", 1, "--train-samples", 128)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    Path("factor.py").write_text("FACTOR = 1.0\n")


def _manifest(path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path).read_text())
    return found


def test_ones_own_loss_from_training_to_the_surface(lgo: Lgo, mine: None) -> None:
    named = ("--loss", "mine.py:focal", "--loss-arg", "gamma=1")
    assert "loss    mine.py:focal\n" in lgo("train", *SMALL, *named).stdout
    assert (
        "loss    cross_entropy, label smoothing 0.1\n"
        in lgo("train", *SMALL, "--label-smoothing", 0.1, "--out", "smoothed").stdout
    )
    refused = lgo("hessian", code=2)
    assert "this run's loss is code, outputs/../mine.py:focal, which" in refused.stderr.replace(
        "mine.py:focal, which", "outputs/../mine.py:focal, which", 1
    )
    assert "say --loss mine.py:focal, or --trust-code" in refused.stderr
    found = lgo("hessian", "--top-k", 1, "--trace", "--operator", "ggn", "--trust-code")
    assert "mean mine.py:focal on 128 train samples" in found.stdout
    assert "(closed form; 10 backward passes)" in found.stdout
    assert (
        "up to date" in lgo("hessian", *named, "--top-k", 1, "--trace", "--operator", "ggn").stderr
    )
    lgo("interp", *named, "--num-points", 5)
    lgo("contour", *named, "--resolution", 5)
    assert "verified: train, hessian, interp, contour" in lgo("verify", "outputs").stdout
    train, hessian = _manifest("outputs/train.json"), _manifest("outputs/hessian.json")
    assert train["request"]["config"]["loss"] == "loss.py:focal"
    assert train["request"]["config"]["loss_arg"] == {"gamma": 1}
    assert {"loss.py", "loss.py/factor.py"} <= set(train["request"]["inputs"])
    assert train["results"]["recipe"]["loss"] == "loss.py:focal"
    assert " mine.py:focal " in lgo("table", "outputs").stdout
    assert hessian["results"]["measured"]["loss"] == "loss.py:focal"
    assert "Loss: mean focal (a user's loss), without weight" in Path(
        "outputs/contour_caption.txt"
    ).read_text().replace("\n", " ")
    assert str(Path.cwd()) not in json.dumps([train["request"], train["results"]])
    # Another loss, or another argument of it, is another objective; cells are not taken over.
    other = ("--loss", "mine.py:focal", "--loss-arg", "gamma=2", "--resolution", 5)
    before = _manifest("outputs/contour.json")["results"]
    lgo("contour", *other, "--out", "other")
    after = _manifest("other/contour.json")["results"]
    assert after["loss_at_center"] < before["loss_at_center"]
    lgo("contour", *other[:2], "--loss-arg", "gamma=2", "--resolution", 5)
    assert _manifest("outputs/contour.json")["results"]["loss_max"] == after["loss_max"]
    shown = lgo("show", "outputs").stderr + lgo("show", "outputs").stdout
    assert "with another --loss-arg than train" in shown


def test_a_loss_that_was_edited_is_another(lgo: Lgo, mine: None) -> None:
    lgo("train", *SMALL, "--loss", "mine.py:focal")
    Path("factor.py").write_text("FACTOR = 2.0\n")
    refused = lgo("hessian", "--trust-code", code=3)
    assert "factor.py is not the file that the run was trained with" in refused.stderr
    assert "--loss" in refused.stderr
    named = lgo("hessian", "--loss", "mine.py:focal", "--top-k", 1)
    assert "the loss's code has changed since the run: factor.py" in named.stderr
    assert "with another loss.py/factor.py than train" in lgo("show", "outputs").stdout
    # What a manifest recorded is not asked of code that is named.
    again = ("hessian", "--config", "outputs/hessian.json", "--out", "again")
    Path("factor.py").write_text("FACTOR = 3.0\n")
    assert (
        "factor.py is not the loss.py/factor.py that" in lgo(*again, "--trust-code", code=3).stderr
    )
    lgo(*again, "--loss", "mine.py:focal")
    assert "outputs  verified" not in lgo("verify", "outputs", code=3).stdout


def test_files_of_its_arguments_and_a_class(lgo: Lgo, mine: None) -> None:
    Path("weights.txt").write_text(json.dumps([1.0] * 5 + [3.0] * 5))
    named = ("--loss", "mine.py:Weighted", "--loss-arg", "file=weights.txt")
    lgo("train", *SMALL, *named)
    lgo("hessian", "--trust-code", "--top-k", 1)
    Path("weights.txt").write_text(json.dumps([1.0] * 10))
    refused = lgo("hessian", "--trust-code", "--top-k", 1, code=3)
    assert "weights.txt is not the file that the run was trained with" in refused.stderr
    assert "--loss-arg" in refused.stderr


def test_a_manifest_names_a_loss_that_is_trusted(lgo: Lgo, mine: None) -> None:
    lgo("train", *SMALL, "--loss", "mine.py:focal")
    lgo("hessian", "--loss", "mine.py:focal", "--top-k", 1)
    refused = lgo("hessian", "--config", "outputs/hessian.json", "--out", "again", code=2)
    assert "names code, mine.py:focal, which runs only if you name it" in refused.stderr
    lgo("hessian", "--config", "outputs/hessian.json", "--out", "again", "--trust-code")
    assert Path("again/hessian.npz").read_bytes() == Path("outputs/hessian.npz").read_bytes()
    Path("mine.py").write_text(MINE.replace("gamma=2.0", "gamma=3.0"))
    shutil.rmtree("again")
    lgo("hessian", "--config", "outputs/hessian.json", "--out", "again", "--trust-code", code=3)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--loss", "focl"), 2, "unknown loss 'focl'"),
        (("--loss", "squared-error"), 2, "did you mean squared_error?"),
        (("--loss", "cross_entropy", "--loss-arg", "gamma=2"), 2, "cross_entropy takes no arg"),
        (("--loss", "mine.py"), 2, "--loss mine.py names a file, but no function in it"),
        (("--loss", "mine.py:none"), 3, "mine.py has no callable 'none'"),
        (("--loss", "other.py:focal"), 3, "no such Python file: other.py"),
        (
            ("--loss", "mine.py:focal", "--loss-arg", "g=2"),
            2,
            "mine.py:focal cannot be called with (outputs, labels): got an unexpected keyword",
        ),
        (
            ("--loss", "mine.py:focal", "--label-smoothing", 0.1),
            2,
            "a label smoothing of 0.1 is of lgo's own losses, not of focal",
        ),
        (("--loss", "mine.py:Weighted"), 2, "missing a required argument: 'file'"),
    ],
)
def test_losses_that_are_refused(
    lgo: Lgo, mine: None, options: tuple[Any, ...], code: int, message: str
) -> None:
    refused = lgo("train", *SMALL, *options, code=code)
    assert message in refused.stderr
    assert not Path("outputs/train.json").exists()


HINGE = """
import torch
from torch import nn
def net(num_classes):
    return nn.Sequential(nn.Linear(20, 1))
def hinge(outputs, labels):
    return (1 - (2 * (labels % 2) - 1) * outputs[:, 0]).clamp(min=0)
"""


def test_outputs_are_what_ones_own_loss_takes(lgo: Lgo, tmp_path: Path) -> None:
    """One for labels of ten classes, say."""
    (tmp_path / "margin.py").write_text(HINGE)
    named = ("--model", "margin.py:net", "--loss", "margin.py:hinge")
    trained = lgo("train", *named, "--epochs", 1)
    assert "the data have" not in trained.stderr
    assert "accuracy" not in trained.stdout
    lgo("interp", *named, "--num-points", 3)
    results = _manifest("outputs/interp.json")["results"]
    figure = draw_interpolation(dict(np.load("outputs/interp.npz")), results)
    assert "mean loss (hinge)" in [axes.get_ylabel() for axes in figure.axes]


def test_binary_classification_by_one_output(lgo: Lgo, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 5)).astype("float32")
    y = (x[:, 0] + x[:, 1] > 0).astype("int64")
    split = {"x_train": x[:120], "y_train": y[:120], "x_test": x[120:], "y_test": y[120:]}
    np.savez("two.npz", **split)
    one = {key: value.astype("float32") for key, value in split.items()}
    np.savez("one.npz", **one)
    asked = ("--model-arg", "hidden=8", "--epochs", 20, "--loss", "binary_cross_entropy")
    trained = lgo("train", "--dataset", "one.npz", *asked)
    assert "accuracy" in trained.stdout
    results = _manifest("outputs/train.json")["results"]
    assert results["train_accuracy"] > 0.8
    hessian = lgo("hessian", "--top-k", 2, "--trace", "--operator", "fisher")
    assert "exact" in hessian.stdout
    lgo("contour", "--resolution", 5)
    caption = Path("outputs/contour_caption.txt").read_text().replace("\n", " ")
    assert "Loss: mean binary cross entropy (nats), without weight decay" in caption
    refused = lgo("train", "--dataset", "one.npz", *asked[:-1], "cross_entropy", code=3)
    assert "those in [0, 1] by binary_cross_entropy too" in refused.stderr
    # One against the others, with two classes: twice an output's.
    lgo("train", "--dataset", "two.npz", *asked, "--out", "two")
    assert _manifest("two/train.json")["results"]["train_accuracy"] > 0.8
