"""Three third-party curvature libraries behind one call, to be compared with `lgo hessian`.

Each peer gets the same model, samples and k, and gives the k largest eigenvalues of the Hessian of
the mean cross entropy over all samples, the number of Hessian-vector products that it took and the
time. A product is one multiplication of the whole data set's Hessian with one vector, however many
micro-batches that takes; it is counted at the library's own entry point.

The libraries come with the extra `bench`; none is imported before its peer is called.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Settings = Mapping[str, Any]
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class PeerResult:
    """What a peer found.

    Attributes:
        values: k eigenvalues, descending by value; -inf at the end for each that was not found,
            which makes its error infinite.
        num_products: Hessian-vector products over all samples.
        seconds: From the model and tensors to the numbers, without the library's import.
    """

    values: list[float]
    num_products: int
    seconds: float


Peer = Callable[[nn.Module, Tensor, Tensor, int, Settings], PeerResult]


class _Counter:
    """Counts the products as they are asked for."""

    def __init__(self) -> None:
        self.products = 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, each call of it counted as one product."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.products += 1
            return function(*args, **kwargs)

        return counted


def _merged(settings: Settings, **defaults: Any) -> dict[str, Any]:
    """The settings over the defaults; the mark `default` of a schedule is dropped."""
    given = {name: value for name, value in settings.items() if name != "default"}
    if unknown := sorted(given.keys() - defaults.keys()):
        raise ValueError(f"unknown settings {unknown}; there are {sorted(defaults)}")
    return defaults | given


def _batches(inputs: Tensor, labels: Tensor, batch_size: int | None) -> list[Batch]:
    size = batch_size or len(inputs)
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def _largest(values: Iterable[float], k: int) -> list[float]:
    """The k largest, descending; -inf for those that are missing."""
    found = sorted((float(v) for v in values if math.isfinite(v)), reverse=True)[:k]
    return found + [-math.inf] * (k - len(found))


def _library(name: str) -> Any:
    """A module of a peer, without what it warns of while it is imported.

    Raises:
        ImportError: If it is not installed.
    """
    with warnings.catch_warnings():
        # curvlinops 3.0 imports linear_operator, which still uses torch.jit.script; so does what
        # torch itself loads at its first jvp, and that is no part of the time either
        warnings.simplefilter("ignore")
        one = torch.ones(())
        torch.func.jvp(torch.sin, (one,), (one,))
        return import_module(name)


@contextmanager
def _prepared(model: nn.Module, seed: int) -> Iterator[None]:
    """Seed, no old gradients, the model's dtype as default; all of it put back at the end."""
    if any(module.training for module in model.modules()):
        raise ValueError("the model must be in eval mode")
    parameters = list(model.parameters())
    gradients = [p.grad for p in parameters]
    dtype = torch.get_default_dtype()
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            # PyHessian differentiates param.grad; the cycle it is warned of is cut below
            warnings.filterwarnings("ignore", message=r"Using backward\(\) with create_graph=True")
            torch.manual_seed(seed)
            torch.set_default_dtype(parameters[0].dtype)
            model.zero_grad(set_to_none=True)
            yield
    finally:
        torch.set_default_dtype(dtype)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient


def pyhessian(
    model: nn.Module, inputs: Tensor, labels: Tensor, k: int, settings: Settings
) -> PeerResult:
    """PyHessian's power iteration, one eigenvalue after the other.

    Its eigenvalues are the largest by magnitude: where a negative one is among them, the k largest
    by value take `surplus` more of them.

    One batch of everything by default: the gradient's graph is then made once and kept, so that a
    product is one backward pass. With `batch_size`, micro-batches weighted by their sizes, and
    each product makes the gradients anew.

    Args:
        model: In eval mode.
        inputs: All samples.
        labels: Their classes.
        k: How many eigenvalues.
        settings: `maxIter` (iterations for each eigenvalue), `tol` (relative change of the
            eigenvalue at which to stop), `surplus`, `batch_size`, `seed`.
    """
    module = _library("pyhessian.hessian")  # the package hides it behind its class
    s = _merged(settings, maxIter=100, tol=1e-3, surplus=0, batch_size=None, seed=0)
    counter = _Counter()
    start = time.perf_counter()
    with _prepared(model, s["seed"]):
        batches = _batches(inputs, labels, s["batch_size"])
        whole = len(batches) == 1
        entry = module.hessian_vector_product
        with mock.patch.object(module, "hessian_vector_product", counter.around(entry)):
            computation = module.hessian(
                model,
                nn.CrossEntropyLoss(),
                data=batches[0] if whole else None,
                dataloader=None if whole else batches,
                cuda=inputs.is_cuda,
            )
            over_batches = counter.around(computation.dataloader_hv_product)
            computation.dataloader_hv_product = over_batches
            values, _ = computation.eigenvalues(
                maxIter=s["maxIter"], tol=s["tol"], top_n=k + s["surplus"]
            )
    return PeerResult(_largest(values, k), counter.products, time.perf_counter() - start)


def curvlinops(
    model: nn.Module, inputs: Tensor, labels: Tensor, k: int, settings: Settings
) -> PeerResult:
    """SciPy's eigsh (ARPACK) on curvlinops' HessianLinearOperator, as its documentation shows.

    The k largest by value. One batch of everything by default; with `batch_size`, micro-batches
    weighted by their sizes.

    Args:
        model: In eval mode.
        inputs: All samples.
        labels: Their classes.
        k: How many eigenvalues, fewer than there are parameters.
        settings: `tol` (residual over eigenvalue; 0 is the machine's precision), `ncv` (Lanczos
            vectors kept, raised to 2k + 1 where it is less; None is SciPy's max(2k + 1, 20)),
            `maxiter` (restarts; None is SciPy's ten times the parameters), `check_deterministic`
            (the operator's own check, two of the products), `batch_size`, `seed`.
    """
    import numpy as np

    linear_operator = _library("curvlinops").HessianLinearOperator
    arpack = _library("scipy.sparse.linalg")
    s = _merged(
        settings, tol=0.0, ncv=None, maxiter=None, check_deterministic=False, batch_size=None,
        seed=0,
    )  # fmt: skip
    counter = _Counter()

    class Counted(linear_operator):
        def _matmat(self, M: list[Tensor]) -> list[Tensor]:
            counter.products += M[0].shape[-1]
            return super()._matmat(M)

    start = time.perf_counter()
    with _prepared(model, s["seed"]):
        operator = Counted(
            model,
            nn.CrossEntropyLoss(),
            [p for p in model.parameters() if p.requires_grad],
            _batches(inputs, labels, s["batch_size"]),
            check_deterministic=s["check_deterministic"],
            num_data=len(inputs),
        ).to_scipy()
        size = operator.shape[0]
        try:
            values, _ = arpack.eigsh(
                operator,
                k=k,
                which="LA",
                tol=s["tol"],
                ncv=s["ncv"] and min(max(s["ncv"], 2 * k + 1), size),
                maxiter=s["maxiter"],
                v0=np.random.default_rng(s["seed"]).uniform(-1, 1, size),
            )
        except arpack.ArpackNoConvergence as error:
            values = error.eigenvalues
    return PeerResult(_largest(values, k), counter.products, time.perf_counter() - start)


def hessian_eigenthings(
    model: nn.Module, inputs: Tensor, labels: Tensor, k: int, settings: Settings
) -> PeerResult:
    """hessian-eigenthings' Lanczos without restarts, or its power iteration with deflation.

    Lanczos gives the k largest by value (`which` LA; the library's own default is LM, by
    magnitude). It always takes all of its steps, its `tol` only sets a flag. Power iteration gives
    the k largest by magnitude, as PyHessian's does.

    One batch of everything by default. The library gives every micro-batch the same weight; with
    `batch_size` the loss itself therefore carries the weights, so that a smaller last one counts
    right.

    Args:
        model: In eval mode.
        inputs: All samples.
        labels: Their classes.
        k: How many eigenvalues.
        settings: `algorithm` (lanczos or power), `batch_size`, `seed`. Lanczos: `extra` (steps
            above the library's default of 2k; never more than there are parameters),
            `reorthogonalize` (None is the library's default: up to 50 steps), `which`. Power:
            `max_iter` (iterations for each eigenvalue), `tol`, `surplus` (as for PyHessian).
    """
    library = _library("hessian_eigenthings")
    s = _merged(
        settings, algorithm="lanczos", extra=0, reorthogonalize=None, which="LA", max_iter=100,
        tol=1e-4, surplus=0, batch_size=None, seed=0,
    )  # fmt: skip
    counter = _Counter()
    start = time.perf_counter()
    with _prepared(model, s["seed"]):
        batches = _batches(inputs, labels, s["batch_size"])
        weight = len(batches) / len(inputs)

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return F.cross_entropy(model(batch[0]), batch[1], reduction="sum") * weight

        operator = library.HessianOperator(model, batches, loss)
        operator.matvec = counter.around(operator.matvec)
        if s["algorithm"] == "lanczos":
            result = library.lanczos(
                operator,
                k=k,
                max_iter=min(2 * k + s["extra"], operator.size),
                tol=s["tol"],
                reorthogonalize=s["reorthogonalize"],
                which=s["which"],
                seed=s["seed"],
            )
        elif s["algorithm"] == "power":
            result = library.deflated_power_iteration(
                operator,
                k=k + s["surplus"],
                max_iter=s["max_iter"],
                tol=s["tol"],
                seed=s["seed"],
            )
        else:
            raise ValueError(f"algorithm={s['algorithm']!r} is neither lanczos nor power")
        values = result.eigenvalues.tolist()
    return PeerResult(_largest(values, k), counter.products, time.perf_counter() - start)


PEERS: dict[str, Peer] = {
    "PyHessian": pyhessian,
    "curvlinops": curvlinops,
    "hessian-eigenthings": hessian_eigenthings,
}

SCHEDULES: dict[str, list[dict[str, Any]]] = {
    "PyHessian": [
        {"maxIter": 100, "tol": 1e-1},
        {"maxIter": 100, "tol": 3e-2},
        {"maxIter": 100, "tol": 1e-2},
        {"maxIter": 100, "tol": 3e-3},
        {"maxIter": 100, "tol": 1e-3, "default": True},
        {"maxIter": 200, "tol": 3e-4},
        {"maxIter": 300, "tol": 1e-4},
        {"maxIter": 500, "tol": 3e-5},
        {"maxIter": 1000, "tol": 1e-5},
        {"maxIter": 1000, "tol": 1e-6},
        {"maxIter": 1000, "tol": 1e-6, "surplus": 5},
    ],
    "curvlinops": [
        {"tol": 3e-1, "ncv": 5},
        {"tol": 1e-1, "ncv": 5},
        {"tol": 1e-1, "ncv": 10},
        {"tol": 3e-2, "ncv": 10},
        {"tol": 1e-2, "ncv": 10},
        {"tol": 3e-2, "ncv": 15},
        {"tol": 1e-1},
        {"tol": 3e-2},
        {"tol": 1e-2},
        {"tol": 1e-3},
        {"tol": 1e-4},
        {"tol": 1e-6},
        {"tol": 0.0, "default": True},
    ],
    "hessian-eigenthings": [
        {"extra": 0, "default": True},
        *(
            {"extra": extra, "reorthogonalize": True}
            for extra in (2, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 52, 64, 80, 100, 128, 192, 256)
        ),
    ],
}
"""Per peer, settings from the cheapest to the dearest; `default` marks the library's own (but for
which end of the spectrum is asked for). Walk up until the eigenvalues are good enough. Neighbours
may change places by a few products, as ARPACK's restarts fall."""
