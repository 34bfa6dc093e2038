"""What a user's model may do in place of putting out logits: one error, one hint, no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import SMALL, Lgo
from torch import Tensor, nn

from lgo_cli.errors import first_sentence
from lgo_cli.landscape.alignment import align
from lgo_cli.loss import LossFunction
from lgo_cli.models.building import build_model
from lgo_cli.objective import Objective
from lgo_cli.samples import Samples

SOURCE = """
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(20, 4), nn.Linear(4, 10)
    def forward(self, x):
        return self.b(torch.relu(self.a(x)))

class Normed(Plain):  # by batch statistics in eval mode too
    def forward(self, x):
        return self.b(F.batch_norm(self.a(x), None, None, training=True))

class Tracked(Plain):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
    def forward(self, x):
        return self.b(self.norm(self.a(x)))

class Asserts(Plain):
    def forward(self, x): assert False

class Unwritten(Plain):
    def forward(self, x): raise NotImplementedError

class Two(Plain):
    def forward(self, image, text): return super().forward(image) + text

class TwoToo(Two): pass

class Named(Plain):
    def forward(self, *, pixel_values): return super().forward(pixel_values)

class Within(Plain):
    def forward(self, x): return Two()(x)

class Convolved(nn.Conv2d):
    def __init__(self): super().__init__(3, 10, 8)

class Soft(Plain):
    def forward(self, x): return super().forward(x).softmax(1)

class Keyed(Plain):
    def forward(self, x): return {}["z"]

class Teacher(Plain):
    def forward(self, x):
        if self.training: raise KeyError("teacher")
        return super().forward(x)

class Fixed(Plain):  # to calls of some sizes
    def forward(self, x):
        if len(x) not in (2, 4, 16): raise RuntimeError(f"no room for {len(x)} samples")
        return super().forward(x)

class Short(Plain):  # where a call is of another size
    def forward(self, x): return super().forward(x)[: 1 if len(x) == 3 else None]

class Detached(Plain):
    def forward(self, x): return super().forward(x).detach()

class Switching(Plain):
    def forward(self, x):
        torch.set_grad_enabled(False)
        return super().forward(x)

class Overwriting(Plain):
    def forward(self, x):
        h = torch.sigmoid(self.a(x))
        h += 1
        return self.b(h)

class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.clone()
    @staticmethod
    def backward(ctx, g): raise ValueError("no way back")

class OneWay(Plain):
    def forward(self, x): return Backward.apply(super().forward(x))

class Writing(Plain):
    def forward(self, x):
        x += 1
        return super().forward(x)

class Checkpointed(Plain):
    def forward(self, x):
        if not self.training: return super().forward(x)
        return self.b(checkpoint(torch.relu, self.a(x), use_reentrant=True))

class Odd(Plain):
    def __len__(self): raise TypeError  # as of a compiled one
    def train(self, mode=True): super().train(mode)  # and returns nothing

class Masked(Plain):
    def forward(self, x):
        mask = torch.zeros(11)
        mask[10] = torch.inf
        return F.pad(super().forward(x), (0, 1)) - mask

class Meta(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(4, device="meta"))

class Lazy(Plain):
    def __init__(self):
        super().__init__()
        self.norm = nn.LazyBatchNorm1d(affine=False)

class Sparse(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("graph", torch.eye(4).to_sparse())

class Complex(Plain):
    def __init__(self):
        super().__init__()
        self.spectrum = nn.Parameter(torch.ones(4, dtype=torch.complex64))

class Extra(Plain):
    def get_extra_state(self): return {"step": 3}

class Overlapping(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.zeros(1).expand(4))

class Empty(nn.Module):
    def __init__(self):
        super().__init__()
        self.none = nn.Parameter(torch.zeros(0))
    def forward(self, x): return x[:, :10]
"""

DATA = "--dataset synthetic --dataset-arg num_train=33 --dataset-arg num_test=32"
TRAIN = f"{DATA} --batch-size 16 --epochs 1 --out new"
HESSIAN = f"w0.pth {DATA} --micro-batch-size 16 --top-k 1 --out new"
CONTOUR = f"w0.pth {DATA} --micro-batch-size 16 --resolution 2 --out new"
INTERP = f"w0.pth --to w1.pth {DATA} --micro-batch-size 16 --num-points 2 --out new"
CURVE = f"{INTERP} --curve bezier --epochs 1 --batch-size 16"

NO_VARIANCE = "batch norm has no variance in a micro-batch of one sample"
LAST = "choose --micro-batch-size, or the number of samples, so that the last micro-batch has more"
RAISED = "it was raised at net.py:"
NO_GRADIENT = "the model has no gradient: autograd sees no parameter behind its outputs"
OVERWRITTEN = ": one of the variables needed for gradient computation has been modified by an"
NEW = "write y = y + 1 in forward where it has y += 1"
MASKED = "classes that are masked by outputs of -inf have a finite loss in cross entropy alone"
CANNOT = "the model cannot take inputs of shape (20,): "


CASES = [
    ("hessian", "Normed", HESSIAN, 2, NO_VARIANCE, LAST),
    ("contour", "Normed", CONTOUR, 2, NO_VARIANCE, LAST),
    ("interp", "Normed", INTERP, 2, NO_VARIANCE, LAST),
    ("hessian", "Normed", f"{HESSIAN} --analysis-samples 1", 2, NO_VARIANCE, LAST),
    ("train", "Normed", TRAIN.replace("num_test=32", "num_test=1"), 2, NO_VARIANCE, LAST),
    (
        "train", "Tracked", f"{TRAIN} --train-samples 1", 2,
        "batch norm has no variance in a batch of one sample", "train on more than one sample",
    ),
    ("train", "Asserts", TRAIN, 3, f"{CANNOT}AssertionError", RAISED),
    ("hessian", "Unwritten", HESSIAN, 3, f"{CANNOT}NotImplementedError", RAISED),
    ("contour", "Keyed", CONTOUR, 3, f"{CANNOT}KeyError: 'z'", RAISED),
    ("train", "Two", TRAIN, 3, f"{CANNOT}Two.forward() missing 1 required positional argument",
     "a model is called with one tensor: wrap it in a module whose forward splits that"),
    ("train", "TwoToo", TRAIN, 3, f"{CANNOT}Two.forward() missing 1", "a model is called with one"),
    ("train", "Named", TRAIN, 3, f"{CANNOT}Named.forward() takes 1 positional argument but 2 were",
     "wrap it in a module whose forward takes one tensor and passes that on by its name"),
    ("train", "Within", TRAIN, 3, f"{CANNOT}Two.forward() missing 1", "give the data set it was"),
    ("train", "Teacher", TRAIN, 3, "the model fails in training mode: KeyError: 'teacher'",
     RAISED),
    ("interp", "Teacher", CURVE, 3, "the model fails in training mode: KeyError: 'teacher'",
     RAISED),
    ("hessian", "Fixed", HESSIAN, 3, "the model fails: no room for 1 samples", RAISED),
    ("interp", "Fixed", f"{INTERP} --align --micro-batch-size 33", 3,
     "the model fails: no room for 33 samples", RAISED),
    ("contour", "Short", f"{CONTOUR} --analysis-samples 19", 3,
     "the model must return outputs of shape [samples, classes], it returned (1, 10)",
     "return the logits alone"),
    ("train", "Detached", TRAIN, 3, NO_GRADIENT, "leave out detach()"),
    ("hessian", "Switching", HESSIAN, 3, NO_GRADIENT, "leave out detach()"),
    ("hessian", "Detached", HESSIAN, 3, NO_GRADIENT, "leave out detach()"),
    ("train", "Overwriting", TRAIN, 3, f"the model has no gradient{OVERWRITTEN}", NEW),
    ("hessian", "Overwriting", HESSIAN, 3, f"the model has no second derivative{OVERWRITTEN}",
     NEW),
    ("train", "OneWay", TRAIN, 3, "the model has no gradient: no way back", RAISED),
    ("hessian", "OneWay", HESSIAN, 3, "the model has no second derivative: no way back", RAISED),
    ("train", "Writing", TRAIN, 3, "forward writes into its inputs, which are the data",
     "write x = x + 1 in forward where it has x += 1"),
    ("interp", "Checkpointed", CURVE, 3,
     "the model has no gradient through its torch.utils.checkpoint", "use_reentrant=False"),
    ("train", "Masked", f"{TRAIN} --label-smoothing 0.1", 4,
     "training loss is inf before the first step", MASKED),
    ("contour", "Masked", f"{CONTOUR} --label-smoothing 0.1", 4,
     "the loss at the given weights is inf", MASKED),
    ("train", "Meta", TRAIN, 3, "whose buffer scale has no values yet", "give each layer its"),
    ("train", "Lazy", TRAIN, 3, "whose buffer norm.running_mean has no values yet",
     "give each layer its size"),
    ("train", "Sparse", TRAIN, 3, "whose buffer graph is sparse, not plain numbers",
     "keep it dense"),
    ("train", "Complex", TRAIN, 3, "whose parameter spectrum is complex64, in which no loss",
     "keep it as real numbers"),
    ("train", "Extra", TRAIN, 3, "whose state_dict holds a dict as _extra_state",
     "leave out get_extra_state, or quantisation"),
    ("hessian", "Overlapping", HESSIAN.replace("w0", "w2"), 3,
     "w2.pth cannot be put into the model: Error(s) in loading state_dict for Overlapping: ",
     "it was raised at "),
    ("train", "Empty", TRAIN, 2, "the model has no trainable parameter", "lgo train --help"),
]  # fmt: skip


@pytest.fixture
def place(lgo: Lgo, tmp_path: Path) -> Iterator[Path]:
    """A directory with the models above, and two checkpoints of the plain one."""
    (tmp_path / "net.py").write_text(SOURCE)
    for seed in (0, 1):
        plain = build_model("net.py:Plain", {}, (20,), 10, seed)
        torch.save(plain.state_dict(), tmp_path / f"w{seed}.pth")
    yield tmp_path
    torch.set_grad_enabled(True)  # which a model switches off


@pytest.mark.parametrize(
    ("command", "model", "arguments", "code", "message", "hint"),
    CASES,
    ids=[f"{command} {model} {number}" for number, (command, model, *_) in enumerate(CASES)],
)
def test_a_model_that_fails_is_told_so(
    lgo: Lgo, place: Path, command: str, model: str, arguments: str, code: int, message: str,
    hint: str,
) -> None:  # fmt: skip
    state = {**torch.load(place / "w0.pth", weights_only=True), "shift": torch.zeros(4)}
    torch.save(state, place / "w2.pth")
    result = lgo(command, "--model", f"net.py:{model}", *arguments.split(), code=code)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("warning:")]
    assert len(lines) == 2, result.stderr
    assert lines[0].startswith("lgo: error: ")
    assert message in lines[0]
    assert lines[1].replace(f"{place}/", "").startswith(f"hint: {hint}")
    assert not (place / "new" / f"{command}.json").exists()


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [("x.to_sparse()", "a sparse tensor of float32"), ("x.to('meta')", "a meta tensor of float32")],
)
def test_data_without_plain_numbers(lgo: Lgo, place: Path, tensor: str, kind: str) -> None:
    source = "import torch; x, y = torch.ones(4, 20), torch.arange(4)\n"
    (place / "data.py").write_text(f"{source}def make(): return {tensor}, y, x, y\n")
    said = lgo("train", "--model", "net.py:Plain", "--dataset", "data.py:make", code=3).stderr
    assert said.startswith(f"lgo: error: data.py:make: x_train is {kind}, not an array of numbers")


def test_soft_labels_in_bfloat16(lgo: Lgo, place: Path) -> None:
    source = "import torch; x, y = torch.ones(4, 20), torch.eye(4, 10).bfloat16()\n"
    (place / "data.py").write_text(f"{source}def make(): return x, y, x, y\n")
    line = "--model net.py:Plain --dataset data.py:make --epochs 0 --quiet"
    lgo("train", *line.split())


def test_a_models_own_methods_may_return_nothing(lgo: Lgo, place: Path) -> None:
    lgo("train", "--model", "net.py:Odd", *TRAIN.split(), "--quiet")
    lgo("hessian", "--model", "net.py:Odd", *HESSIAN.split(), "--quiet")


def test_batches_of_one_are_trained_on(lgo: Lgo, place: Path) -> None:
    line = "--model net.py:Plain --train-samples 5 --batch-size 1 --epochs 2 --out new"
    lgo("train", *line.split(), "--quiet")
    before, after = (
        torch.load(place / "new" / name, weights_only=True) for name in ("init.pth", "model.pth")
    )
    assert all(not torch.equal(before[name], after[name]) for name in before)


class _Rotary(nn.Module):
    """Turns pairs of features by a buffer of complex numbers, as rotary embeddings do."""

    phases: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("phases", torch.tensor([1j, -1.0]))

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.view_as_complex(x.view(-1, 2, 2)) * self.phases
        out: Tensor = self.linear(torch.view_as_real(turned).flatten(1))
        return out


def test_a_complex_buffer_keeps_its_imaginary_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("from test_users_models import _Rotary\ndef make(): return _Rotary()")
    model = build_model("net.py:make", {}, (4,), 3, seed=0)
    assert torch.equal(dict(model.named_buffers())["phases"], torch.tensor([1j, -1.0]))


def test_a_relu_that_writes_into_the_inputs_is_measured() -> None:
    """What it writes into them at its first pass, it finds at the others."""
    draw = torch.Generator().manual_seed(0)
    samples = Samples(torch.randn(6, 5, generator=draw), torch.arange(6) % 3)
    linear = nn.Linear(5, 3)
    losses = []
    for inplace in (True, False):
        own = Samples(samples.inputs.clone(), samples.labels)
        with Objective(nn.Sequential(nn.ReLU(inplace=inplace), linear), own) as objective:
            losses.append(objective.center.loss)
    assert losses[0] == losses[1]


class _Masks(nn.Module):
    """The last of four classes is masked."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.tensor([0.0, 0.0, 0.0, torch.inf])
        out: Tensor = self.b(torch.relu(self.a(x))) - mask
        return out


def test_masked_classes_are_aligned() -> None:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(16, 5, generator=draw)
    reference, other = _Masks(0), _Masks(1)
    alignment = align(reference, reference.state_dict(), other.state_dict(), inputs)
    assert alignment.num_moved > 0
    assert alignment.output_difference < 1e-14


def test_a_masked_class_has_no_part_in_a_loss_without_smoothing() -> None:
    outputs = torch.tensor([[1.0, 2.0, -torch.inf]], dtype=torch.float64)
    labels = torch.tensor([0])
    assert torch.isfinite(LossFunction()(outputs, labels)).all()
    assert torch.isinf(LossFunction(label_smoothing=0.1)(outputs, labels)).all()
    assert LossFunction.advice(outputs) is not None
    assert LossFunction.advice(outputs[:, :2]) is None


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (AssertionError(), "AssertionError"),
        (NotImplementedError(), "NotImplementedError"),
        (KeyError("z"), "KeyError: 'z'"),
        (RuntimeError("\n\nfirst of\nsecond"), "first of"),
        (RuntimeError("It failed. Set this to go on."), "It failed"),
        (RuntimeError("Errors in Net:\n\tthe first\n\tthe second"), "Errors in Net: the first"),
    ],
)
def test_first_sentence(error: Exception, sentence: str) -> None:
    assert first_sentence(error) == sentence


def test_a_softmax_at_the_end_is_warned_of_where_logits_are_meant(lgo: Lgo, place: Path) -> None:
    line = ("train", *TRAIN.split(), "--epochs", 0, "--model", "net.py:Soft")
    said = "warning: the model puts out probabilities (none is negative, they sum to one), which"
    assert said in lgo(*line).stderr
    assert said not in lgo(*line, "--loss", "squared_error").stderr
    assert said not in lgo(*line[:-1], "net.py:Plain").stderr


@pytest.mark.parametrize(
    ("model", "more"),
    [("Plain", ", or flatten them in forward: x.flatten(1)"), ("Convolved", "")],
)
def test_a_dense_model_of_images_is_told_to_flatten_them(
    lgo: Lgo, place: Path, model: str, more: str
) -> None:
    line = ("train", "--model", f"net.py:{model}", "--dataset", "digits", "--epochs", 0)
    hint = f"give the data set it was made for: --dataset{more}"
    assert lgo(*line, code=3).stderr.endswith(f"hint: {hint}\n")


QUANTISED = """
import torch
import torch.ao.quantization as quantization

class Quantised(torch.nn.Module):
    def __init__(self, called, resting):
        super().__init__()
        self.resting = resting
        self.inner = torch.nn.Sequential(torch.nn.Linear(20, 8), torch.nn.Linear(8, 10))
        self.inner.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        quantization.prepare_qat(self.inner, inplace=True)
        if called:
            self.inner(torch.zeros(2, 20))

    def forward(self, x):
        return self.inner(x)

    def train(self, mode=True):
        super().train(mode)
        if self.resting:
            self.apply(quantization.enable_observer if mode else quantization.disable_observer)
        return self
"""


@pytest.mark.filterwarnings("ignore:Please use quant_min:UserWarning")
@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
def test_quantisation_aware_training_is_told_what_an_analysis_needs(
    lgo: Lgo, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(QUANTISED)

    def trained(called: bool, resting: bool) -> str:
        out = f"{called}-{resting}"
        told = f"--model-arg called={called} --model-arg resting={resting}".lower().split()
        lgo("train", "--model", "net.py:Quantised", *told, *SMALL[2:], "--out", out, "--quiet")
        return out

    few = ("--analysis-samples", 64, "--trust-code")
    error = lgo("hessian", trained(False, False), *few, code=3).stderr
    assert "weight_fake_quant.scale has shape (8,), the model wants (1,)" in error
    assert "hint: are these buffers resized by a call, as in quantisation-aware training? " in error
    assert error.endswith("in its factory, and keep its ranges in eval mode: disable_observer\n")
    error = lgo("hessian", trained(True, False), *few, code=4).stderr
    assert "hint: forward changes the buffer inner.0.weight_fake_quant.scale and inner.0." in error
    assert " more, which it may in training mode only: if self.training\n" in error
    run = trained(True, True)
    assert "kinks of quantisation ignored" in lgo("hessian", run, "--verbose", *few).stderr
    assert "self-check" in lgo("contour", run, "--resolution", 5, *few).stdout
