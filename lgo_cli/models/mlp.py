"""Fully connected networks: the multilayer perceptron and logistic regression."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lgo_cli.models.registry import Activation

_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
}


def mlp(
    input_shape: tuple[int, ...],
    num_classes: int,
    hidden: Sequence[int] = (256, 128),
    activation: Activation = "relu",
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Multilayer perceptron on flattened inputs.

    Hidden weights are drawn from N(0, 2 / fan_in) before ReLU and GELU (He et al. 2015, eq. 10) and
    from U(±√(6 / (fan_in + fan_out))) before tanh (Glorot & Bengio 2010, eq. 16); the output layer,
    which no rectifier follows, by the latter always. Biases are zero, and a layer before batch
    norm, which would remove a bias, has none.

    Args:
        input_shape: Shape of one sample.
        num_classes: Number of outputs.
        hidden: Widths of the hidden layers.
        activation: Nonlinearity of the hidden layers.
        batch_norm: Whether batch norm stands before each activation.
        dropout: Probability of dropping a hidden unit in training.

    Returns:
        A plain `nn.Sequential`: its state_dict loads wherever the same layers are stacked.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    width = math.prod(input_shape)
    for index, size in enumerate(hidden, start=1):
        linear = nn.Linear(width, size, bias=not batch_norm)
        if activation == "tanh":
            nn.init.xavier_uniform_(linear.weight)
        else:
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layers[f"linear{index}"] = linear
        if batch_norm:
            layers[f"norm{index}"] = nn.BatchNorm1d(size)
        else:
            nn.init.zeros_(linear.bias)
        layers[f"{activation}{index}"] = _ACTIVATIONS[activation]()
        if dropout > 0:
            layers[f"dropout{index}"] = nn.Dropout(dropout)
        width = size
    output = nn.Linear(width, num_classes)
    nn.init.xavier_uniform_(output.weight)
    nn.init.zeros_(output.bias)
    layers["output"] = output
    return nn.Sequential(layers)


def logistic(input_shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """Multinomial logistic regression: an `mlp` without hidden layers, initialised likewise.

    Its loss is convex, so that the Hessian has no negative eigenvalue anywhere.

    Args:
        input_shape: Shape of one sample.
        num_classes: Number of outputs.
    """
    return mlp(input_shape, num_classes, hidden=())
