from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lgo_cli.errors import InputError, UsageError
from lgo_cli.models.building import build_model, parameter_counts
from lgo_cli.models.registry import MODELS, recipe_of, resolve_model
from lgo_cli.models.resnet import BasicBlock, ResNet

IMAGE = (3, 32, 32)


def _mlp(seed: int = 0, **arguments: object) -> nn.Module:
    return build_model("mlp", arguments, (20,), 10, seed)  # type: ignore[arg-type]


def _same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(name == other and torch.equal(x, y) for (name, x), (other, y) in pairs)


# --- names and arguments


@pytest.mark.parametrize("name", MODELS)
def test_resolved_arguments_are_complete_and_stable(name: str) -> None:
    arguments = resolve_model(name, {})
    assert set(arguments) == set(MODELS[name].args.model_fields)
    assert resolve_model(name, arguments) == arguments
    assert all(field.description for field in MODELS[name].args.model_fields.values())


@pytest.mark.parametrize(
    ("given", "hidden"),
    [
        (64, [64]),
        ("64", [64]),
        ("64,32", [64, 32]),
        ("64, 32,", [64, 32]),
        ([5, 6], [5, 6]),
        ("", []),
        ([], []),
    ],
)
def test_hidden_widths(given: object, hidden: list[int]) -> None:
    assert resolve_model("mlp", {"hidden": given})["hidden"] == hidden  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("name", "arguments", "message", "hint"),
    [
        ("mpl", {}, "unknown model 'mpl'; did you mean mlp?", "file.py:factory"),
        ("ResNet20", {}, "did you mean resnet20?", "mlp, logistic, resnet20"),
        ("resnet21", {}, "did you mean resnet20?", ""),
        ("resnet152", {}, "did you mean resnet110?", ""),
        ("restnet56", {}, "did you mean resnet56?", ""),
        ("net.py", {}, "names a file, but no function in it", "--model net.py:FUNCTION"),
        ("mlp", {"hiden": 5}, "hiden: mlp has no such argument; did you mean hidden?", "dropout="),
        ("mlp", {"hidden": "64,a"}, "hidden: must be widths like 256,128, got '64,a'", ""),
        ("mlp", {"hidden": True}, "hidden: must be widths like 256,128, got True", ""),
        ("mlp", {"hidden": -5}, "hidden: must be widths like 256,128, got -5", ""),
        ("mlp", {"hidden": 0}, "input should be greater than or equal to 1, got 0", ""),
        ("mlp", {"activation": "elu"}, "input should be 'relu', 'tanh' or 'gelu', got 'elu'", ""),
        ("mlp", {"dropout": 1}, "--model-arg dropout: input should be less than 1, got 1", ""),
        ("mlp", {"batch_norm": "yes"}, "batch_norm: input should be a valid boolean", ""),
        ("resnet20", {"width": 0}, "width: input should be greater than 0", "shortcuts=true"),
        ("logistic", {"x": 1}, "x: logistic has no such argument", "logistic takes no arguments"),
    ],
)
def test_what_is_unknown_is_named(
    name: str, arguments: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_model(name, arguments)  # type: ignore[arg-type]
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_recipes() -> None:
    recipe = recipe_of("resnet56")
    assert (recipe.lr, recipe.momentum, recipe.weight_decay) == (0.1, 0.9, 1e-4)
    assert (recipe.batch_size, recipe.epochs, recipe.augment) == (128, 164, "crop-flip")
    # 64k steps of 128 samples, the drops at 32k and 48k.
    assert recipe.epochs == math.ceil(64_000 * 128 / 50_000)
    assert recipe.milestones == (32 / 64, 48 / 64)
    assert recipe_of("net.py:build") is recipe_of("mlp")
    with pytest.raises(UsageError):
        recipe_of("resnet21")


# --- building


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [
        ("mlp", {}, (20,)),
        ("mlp", {"batch_norm": True, "dropout": 0.5, "activation": "tanh"}, (1, 8, 8)),
        ("logistic", {}, (1, 8, 8)),
        ("resnet20", {"width": 0.25}, (1, 8, 8)),
        ("resnet20", {"width": 0.25, "shortcuts": False}, (3, 5, 7)),
    ],
)
def test_initialised_from_the_seed_alone(
    name: str, arguments: dict[str, object], shape: tuple[int, ...]
) -> None:
    models = []
    for disturbance, seed in ((1, 0), (2, 0), (1, 1)):
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(disturbance)
            models.append(build_model(name, arguments, shape, 7, seed))  # type: ignore[arg-type]
    first, again, other = models
    assert _same(first, again)
    assert not _same(first, other)
    assert first.training
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in first.parameters())
    assert first.eval()(torch.zeros(2, *shape)).shape == (2, 7)


def test_mlp_layers() -> None:
    model = _mlp(hidden="8,6", batch_norm=True, dropout=0.1, activation="gelu")
    assert [name for name, _ in model.named_children()] == [
        "flatten", "linear1", "norm1", "gelu1", "dropout1",
        "linear2", "norm2", "gelu2", "dropout2", "output",
    ]  # fmt: skip
    # 20·8 + 2·8, 8·6 + 2·6, 6·10 + 10: batch norm makes the biases redundant.
    assert sum(p.numel() for p in model.parameters()) == 176 + 60 + 70
    assert len(list(_mlp(hidden="").parameters())) == 2


@pytest.mark.parametrize(
    ("activation", "variance"),
    [
        ("relu", lambda fan_in, fan_out: 2 / fan_in),
        ("gelu", lambda fan_in, fan_out: 2 / fan_in),
        ("tanh", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
    ],
)
def test_mlp_initialisation(activation: str, variance: Callable[[int, int], float]) -> None:
    model = build_model("mlp", {"hidden": [300, 200], "activation": activation}, (400,), 10, seed=0)
    state = model.state_dict()
    for name, expected in (
        ("linear1", variance(400, 300)),
        ("linear2", variance(300, 200)),
        ("output", 2 / (200 + 10)),
    ):
        weight = state[f"{name}.weight"]
        # Relative standard error of a variance: √(2/n) for Gaussian entries, less for uniform.
        assert float(weight.var()) == pytest.approx(expected, rel=4 * math.sqrt(2 / weight.numel()))
        assert not state[f"{name}.bias"].any()
        assert abs(float(weight.mean())) < 4 * math.sqrt(expected / weight.numel())


def test_logistic_is_the_mlp_without_hidden_layers() -> None:
    logistic = build_model("logistic", {}, (20,), 10, 3)
    assert _same(logistic, _mlp(seed=3, hidden=""))


# --- residual networks


def test_parameter_counts() -> None:
    counts = parameter_counts()
    assert list(counts) == list(MODELS)
    assert counts["mlp"] == (20 * 256 + 256 + 256 * 128 + 128 + 1290, "20 inputs, 10 classes")
    assert counts["logistic"][0] == 210
    # He et al. 2016, table 6: 0.27M, 0.46M, 0.66M, 0.85M and 1.7M.
    assert counts["resnet20"] == (269_722, "3x32x32 inputs, 10 classes")
    assert [round(counts[f"resnet{depth}"][0] / 1e6, 2) for depth in (32, 44, 56)] == [
        0.46, 0.66, 0.85,
    ]  # fmt: skip
    assert round(counts["resnet110"][0] / 1e6, 1) == 1.7


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_depth_counts_layers_on_the_longest_path(depth: int) -> None:
    model = build_model(f"resnet{depth}", {"width": 0.1}, IMAGE, 10, 0)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth  # option A shortcuts have no layers


def test_stages_halve_the_image() -> None:
    model = build_model("resnet20", {}, IMAGE, 10, 0).eval()
    x = torch.zeros(1, 16, 32, 32)
    for stage, shape in (("layer1", (16, 32)), ("layer2", (32, 16)), ("layer3", (64, 8))):
        x = getattr(model, stage)(x)
        assert x.shape == (1, shape[0], shape[1], shape[1])


def _random_images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _zero_block(num_in: int, num_out: int, stride: int, shortcut: bool) -> BasicBlock:
    with torch.random.fork_rng():
        block = BasicBlock(num_in, num_out, stride, shortcut).eval()
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    return block


def test_shortcut_is_option_a() -> None:
    """With weights of zero only the shortcut is left: every second pixel, zeros for channels."""
    x = _random_images(2, 4, 5, 8)
    out = _zero_block(4, 6, stride=2, shortcut=True)(x)
    assert out.shape == (2, 6, 3, 4)
    assert torch.equal(out[:, :4], x[:, :, ::2, ::2])
    assert not out[:, 4:].any()
    assert torch.equal(_zero_block(4, 4, stride=1, shortcut=True)(x), x)
    assert not _zero_block(4, 4, stride=1, shortcut=False)(x).any()


def test_without_shortcuts_the_parameters_are_the_same() -> None:
    with_shortcuts = build_model("resnet20", {"width": 0.5}, IMAGE, 10, 0)
    without = build_model("resnet20", {"width": 0.5, "shortcuts": False}, IMAGE, 10, 0)
    assert _same(with_shortcuts, without)
    x = _random_images(2, *IMAGE)
    assert not torch.allclose(with_shortcuts.eval()(x), without.eval()(x))


@pytest.mark.parametrize(
    ("width", "channels"), [(0.001, [1, 1, 1]), (0.3, [5, 10, 19]), (2, [32, 64, 128])]
)
def test_width_is_rounded_and_at_least_one(width: float, channels: list[int]) -> None:
    model = build_model("resnet20", {"width": width}, (1, 4, 4), 3, 0)
    assert isinstance(model, ResNet)
    stages = (model.layer1, model.layer2, model.layer3)
    assert [stage[0].conv1.out_channels for stage in stages] == channels  # type: ignore[union-attr]
    assert model.eval()(torch.zeros(2, 1, 4, 4)).shape == (2, 3)


def test_resnet_initialisation() -> None:
    model = build_model("resnet20", {}, IMAGE, 10, 0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach()
            expected = 2 / (module.in_channels * 9)  # fan_in
            assert float(weight.var()) == pytest.approx(
                expected, rel=4 * math.sqrt(2 / weight.numel())
            )
        elif isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert not module.bias.any()


@pytest.mark.parametrize("shape", [(20,), (28, 28), (3, 3, 8)])
def test_resnet_refuses_what_is_no_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"resnet32 takes images .* have shape") as caught:
        build_model("resnet32", {}, shape, 10, 0)
    assert "--dataset digits" in (caught.value.hint or "")


def test_depth_must_fit() -> None:
    with pytest.raises(UsageError, match=r"6n \+ 2 layers, not 21"):
        ResNet(3, 10, depth=21)


# --- factories

FACTORY = """
import torch
from torch import nn

def linear(input_shape, num_classes, bias=True):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0], num_classes, bias=bias)).double()
def fixed():
    return nn.Linear(20, 10)
def nothing(num_classes):
    pass
def a_class():
    return nn.Linear
def lazy():
    return nn.LazyLinear(10)
def meta():
    return nn.Linear(20, 10, device="meta")
def fails():
    raise ZeroDivisionError("oh")
"""


@pytest.fixture
def factory(tmp_path: Path) -> Callable[..., nn.Module]:
    path = tmp_path / "net.py"
    path.write_text(FACTORY)
    return lambda name, seed=0, **arguments: build_model(
        f"{path}:{name}", arguments, (20,), 10, seed
    )


def test_factories(factory: Callable[..., nn.Module]) -> None:
    model = factory("linear")
    assert model.training
    assert model.get_submodule("1").weight.dtype == torch.float32
    assert _same(model, factory("linear"))
    assert not _same(model, factory("linear", seed=1))
    assert len(list(factory("linear", bias=False).parameters())) == 1
    assert isinstance(factory("fixed"), nn.Linear)
    assert isinstance(build_model("torch.nn:Linear", {"in_features": 2, "out_features": 3},
                                  (2,), 3, 0), nn.Linear)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nothing", InputError, "returned a NoneType, not an nn.Module"),
        ("a_class", InputError, "returned the class Linear, not an nn.Module"),
        ("lazy", InputError, "parameter weight has no values yet"),
        ("meta", InputError, "parameter weight has no values yet"),
        ("fails", InputError, "ZeroDivisionError"),
        ("absent", InputError, "no callable 'absent'"),
    ],
)
def test_bad_factories(
    factory: Callable[..., nn.Module], name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        factory(name)


def test_factory_with_unknown_argument(factory: Callable[..., nn.Module]) -> None:
    with pytest.raises(UsageError, match="cannot be called: got an unexpected keyword"):
        factory("fixed", depth=3)
