"""One table of tiny networks, each with something that a Hessian product can get wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from conftest import paused
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

from lgo_cli.loss import LossFunction
from lgo_cli.objective import Objective
from lgo_cli.samples import Samples


class Attention(nn.Module):
    """One head over the rows of the input, by the fused kernel's function."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x.view(-1, 3, 4))).chunk(3, dim=-1)
        return self.head(F.scaled_dot_product_attention(q, k, v).mean(1))


class Tied(nn.Module):
    """The same weight before and after, one frozen layer, one that the loss never sees."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(12, 5, bias=False)
        self.frozen = nn.Linear(5, 5)
        self.frozen.requires_grad_(False)
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.frozen(torch.tanh(self.encode(x))))
        return self.head(hidden @ self.encode.weight)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.view(-1, 3, 4))[0][:, -1])


class Padded(nn.Module):
    """Tokens, one of which is padding: its row is used, and autograd holds it fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 2, padding_idx=0)
        self.hidden = nn.Linear(24, 3)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (2 * x).long() % 5
        return self.head(torch.tanh(self.hidden(self.embed(tokens).flatten(1))))


CROSS_ENTROPY = LossFunction()


def _classes(num_samples: int) -> Tensor:
    return torch.randint(0, 3, (num_samples,))


def _several(num_samples: int) -> Tensor:
    """Three labels a sample, of which every fourth sample lacks two."""
    labels = torch.randint(0, 3, (num_samples, 3))
    labels[::4, 1:] = -100
    return labels


@dataclass(frozen=True)
class Network:
    build: Callable[[], nn.Module]
    loss: LossFunction = CROSS_ENTROPY
    labels: Callable[[int], Tensor] = _classes


def _mlp(activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(12, 6), activation(), nn.Linear(6, 3))


def _focal(outputs: Tensor, labels: Tensor) -> Tensor:
    log_p = F.log_softmax(outputs, dim=-1).gather(1, labels[:, None])[:, 0]
    return -((1 - log_p.exp()) ** 1.5) * log_p


NETWORKS = {
    "relu": Network(lambda: _mlp(nn.ReLU)),
    "gelu, smoothed labels": Network(lambda: _mlp(nn.GELU), LossFunction("cross_entropy", 0.1)),
    "squared error": Network(lambda: _mlp(nn.Tanh), LossFunction("squared_error")),
    "linear, squared error": Network(
        lambda: nn.Linear(12, 3), LossFunction("squared_error", 0.2)
    ),
    "batch norm": Network(
        lambda: nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    ),
    "convolution": Network(
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(),
            nn.Flatten(), nn.Linear(18, 3),
        )
    ),
    "attention and layer norm": Network(Attention),
    "tied, frozen and unused": Network(Tied),
    "LSTM": Network(Recurrent),
    "embedding with padding": Network(Padded),
    "several labels": Network(
        lambda: nn.Sequential(
            nn.Linear(12, 12), nn.GELU(), nn.Unflatten(1, (3, 4)), nn.Linear(4, 3)
        ),
        labels=_several,
    ),
    "real targets": Network(
        lambda: nn.Sequential(nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 2)),
        LossFunction("squared_error"),
        labels=lambda num_samples: torch.randn(num_samples, 2),
    ),
    "several classes at once": Network(
        lambda: _mlp(nn.ReLU),
        LossFunction("binary_cross_entropy"),
        labels=lambda num_samples: torch.rand(num_samples, 3).round(),
    ),
    "a loss of one's own": Network(lambda: _mlp(nn.Tanh), LossFunction("focal", function=_focal)),
}  # fmt: skip


def make(name: str, num_samples: int = 40) -> tuple[nn.Module, Samples, LossFunction]:
    """Build a network of the table, with running statistics that are not the initial ones."""
    network = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = network.build()
        inputs = torch.randn(num_samples, 12)
        labels = network.labels(num_samples)
        model.train()
        with torch.no_grad():
            model(2 * inputs + 1)
    return model, Samples(inputs, labels), network.loss


@paused
def fit(model: nn.Module, samples: Samples, loss: LossFunction, num_steps: int) -> None:
    """Train in eval mode by so many steps of Adam; many enough, and the samples are fitted."""
    model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.03, fused=True)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss(model(samples.inputs), samples.labels).mean().backward()
        optimizer.step()
    optimizer.zero_grad()


def dense_hessian(objective: Objective) -> Tensor:
    """The Hessian [P, P] by reverse over reverse through `functional_call`, in float64."""
    model = objective.model
    names = objective.layout.names
    samples = objective.samples

    def loss(theta: Tensor) -> Tensor:
        parameters = dict(zip(names, objective.layout.split(theta), strict=True))
        outputs = functional_call(model, parameters, (samples.inputs,))
        return objective.loss_function(outputs, samples.labels).mean()

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return jacrev(grad(loss))(objective.theta).detach()


def dense_jacobian(objective: Objective, *, of_losses: bool) -> Tensor:
    """∂z/∂θ [N, ..., C, P], or ∂ℓ/∂θ [N, P], of all samples by reverse mode."""
    names = objective.layout.names
    samples = objective.samples

    def outputs(theta: Tensor) -> Tensor:
        parameters = dict(zip(names, objective.layout.split(theta), strict=True))
        z = functional_call(objective.model, parameters, (samples.inputs,))
        return objective.loss_function(z, samples.labels) if of_losses else z

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return jacrev(outputs)(objective.theta).detach()


def dense_ggn(objective: Objective) -> Tensor:
    """The generalised Gauss-Newton matrix [P, P] from the whole Jacobian."""
    jacobian = dense_jacobian(objective, of_losses=False).flatten(1, -2)
    loss, samples = objective.loss_function, objective.samples

    def loss_of_one(z: Tensor, label: Tensor) -> Tensor:
        return loss(z[None], label[None])[0]

    outputs = objective.model(samples.inputs).detach()
    middle = torch.stack(
        [
            jacrev(grad(loss_of_one))(z, label).reshape(z.numel(), -1)
            for z, label in zip(outputs, samples.labels, strict=True)
        ]
    )
    return torch.einsum("nap,nab,nbq->pq", jacobian, middle, jacobian) / len(samples)


class Merging(nn.Linear):
    """As a layer of loralib: in eval mode its own product is added to its weights."""

    def __init__(self, num_inputs: int, num_outputs: int, bias: bool = True) -> None:
        super().__init__(num_inputs, num_outputs, bias)
        self.a = nn.Parameter(torch.randn(2, num_inputs))
        self.b = nn.Parameter(torch.randn(num_outputs, 2))
        self.is_merged = False

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.is_merged is mode:
            self.weight.data += (-1 if mode else 1) * (self.b @ self.a).detach()
            self.is_merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        outputs = super().forward(x)
        return outputs if self.is_merged else outputs + x @ self.a.T @ self.b.T
