"""Models by name: what they are, what they take, how they were trained when published.

Free of torch: names and arguments are checked before anything heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from lgo_cli.arguments import find_named, resolve_arguments
from lgo_cli.config import Augmentation, OptimizerName, Schedule, Strict
from lgo_cli.factories import parse_factory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

Width = Annotated[int, Field(ge=1, le=1_000_000)]
Activation = Literal["relu", "tanh", "gelu"]


class LogisticArgs(Strict):
    """`logistic` takes no arguments."""


class MlpArgs(Strict):
    """Arguments of `mlp`."""

    hidden: tuple[Width, ...] = Field(
        (256, 128), description="widths of the hidden layers; empty for a linear model"
    )
    activation: Activation = Field("relu", description="relu, tanh or gelu")
    batch_norm: bool = Field(False, description="batch norm before each activation")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="probability of dropping a hidden unit in training"
    )

    @field_validator("hidden", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Read `64`, `256,128` and JSON lists; a command line has no tuples."""
        if isinstance(value, list | tuple):
            return tuple(value)
        words = str(value).replace(",", " ").split()
        if not all(word.isdecimal() for word in words):
            raise ValueError(f"must be widths like 256,128, got {value!r}")
        return tuple(map(int, words))


class ResNetArgs(Strict):
    """Arguments of the `resnet` family."""

    shortcuts: bool = Field(True, description="identity shortcuts; false removes them all")
    width: Annotated[float, Field(gt=0, le=64)] = Field(
        1.0, description="factor on the 16, 32 and 64 channels"
    )


@dataclass(frozen=True)
class PublishedRecipe:
    """How to train a model unless the user says otherwise.

    Attributes:
        epochs: Passes over the training split.
        batch_size: Samples per step.
        optimizer: Update rule.
        lr: Learning rate at the start.
        momentum: Of SGD.
        weight_decay: L2 coefficient, on all parameters.
        schedule: How the rate falls.
        milestones: Fractions of the training after which schedule `step` drops.
        gamma: Factor of each drop.
        augment: What is done to training images.
    """

    epochs: int
    batch_size: int
    optimizer: OptimizerName
    lr: float
    momentum: float
    weight_decay: float
    schedule: Schedule
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    augment: Augmentation = "none"


GENERIC = PublishedRecipe(
    epochs=20,
    batch_size=64,
    optimizer="sgd",
    lr=0.05,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="step",
)
"""lgo's own, for small problems: of the MLP, of logistic regression and of the user's own models.
SGD with momentum, two drops of the rate. On Fashion-MNIST the MLP reaches
88 % in 5 epochs, which no constant rate does; a cosine would end near rate zero, where no stability
threshold means anything."""

HE_2016 = PublishedRecipe(
    epochs=164,
    batch_size=128,
    optimizer="sgd",
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    schedule="step",
    milestones=(0.5, 0.75),
    gamma=0.1,
    augment="crop-flip",
)
"""Of He et al. 2016, Deep Residual Learning, section 4.2: 64k steps of batch 128 (164 epochs of
CIFAR), rate 0.1 divided by 10 at 32k and 48k steps. For resnet110 the paper starts at rate 0.01 for
about 400 steps: --warmup-epochs 1."""


@dataclass(frozen=True)
class ModelSpec:
    """One model.

    Attributes:
        name: What the user says.
        summary: One line.
        args: Accepted arguments with their defaults.
        builder: `module:function`, called with the input shape, the number of classes, the
            arguments and what is fixed.
        recipe: How it is trained by default.
        fixed: What the name itself decides.
    """

    name: str
    summary: str
    args: type[Strict]
    builder: str
    recipe: PublishedRecipe
    fixed: Mapping[str, int] = field(default_factory=dict)


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec(
            "mlp",
            "multilayer perceptron on flattened inputs",
            MlpArgs,
            "lgo_cli.models.mlp:mlp",
            GENERIC,
        ),
        ModelSpec(
            "logistic",
            "multinomial logistic regression, one linear layer",
            LogisticArgs,
            "lgo_cli.models.mlp:logistic",
            GENERIC,
        ),
        *(
            ModelSpec(
                f"resnet{depth}",
                f"residual network of {depth} layers for small images, He et al. 2016",
                ResNetArgs,
                "lgo_cli.models.resnet:resnet",
                HE_2016,
                {"depth": depth},
            )
            for depth in (20, 32, 44, 56, 110)
        ),
    )
}


OTHERS = "file.py:factory, package.module:factory"


def resolve_model(model: str, model_arg: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Check a model's name and complete its arguments.

    Args:
        model: A name in `MODELS`, or a factory's reference.
        model_arg: The user's `key=value` pairs, values as in JSON.

    Returns:
        All arguments, defaults filled in, as JSON values. A factory's pass through.

    Raises:
        UsageError: if the name or an argument is unknown, or a value is not accepted.
    """
    if parse_factory(model) is not None:
        return dict(model_arg)
    spec = find_named("model", model, MODELS, OTHERS)
    return resolve_arguments("model", model, spec.args, model_arg)


def recipe_of(model: str) -> PublishedRecipe:
    """Published recipe of a model; the generic one for a factory's.

    Raises:
        UsageError: if the name is unknown.
    """
    if parse_factory(model) is not None:
        return GENERIC
    return find_named("model", model, MODELS, OTHERS).recipe
