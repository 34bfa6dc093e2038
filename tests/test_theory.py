"""The claims of theory.md, each checked by numbers.

What concerns an estimator of lgo is checked in the estimator's own tests. Here everything is a
closed form, a quadratic, an exhaustive enumeration or a network of 26 parameters in float64, where
sums of a few hundred terms round to below 1e-12 relative (`EXACT`).
"""

from __future__ import annotations

import ast
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from markdown_it import MarkdownIt
from torch import Tensor, nn

Array = np.ndarray[Any, Any]

ROOT = Path(__file__).parents[1]
EXACT = 1e-10
"""Relative tolerance of an identity in float64: rounding of 1e-13 with room for conditioning."""

INPUTS, HIDDEN, CLASSES, SAMPLES = 3, 4, 2, 20
SIZES = [HIDDEN * INPUTS, HIDDEN, CLASSES * HIDDEN, CLASSES]
"""Of W₁, b₁, W₂, b₂ in the flat vector of the tiny network."""


def _normal(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


X = _normal(SAMPLES, INPUTS, seed=1)
Y = (_normal(SAMPLES, seed=2) > 0).long()
THETA = _normal(sum(SIZES), seed=3)


def _outputs(theta: Tensor, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    w1, b1, w2, b2 = torch.split(theta, SIZES)
    hidden = activation(x @ w1.view(HIDDEN, INPUTS).T + b1)
    outputs: Tensor = hidden @ w2.view(CLASSES, HIDDEN).T + b2
    return outputs


def _half_square(outputs: Tensor, labels: Tensor) -> Tensor:
    targets = F.one_hot(labels, CLASSES).to(outputs)
    return 0.5 * (outputs - targets).square().sum(dim=1).mean()


def _relu_loss(theta: Tensor) -> Tensor:
    return F.cross_entropy(_outputs(theta, X, torch.relu), Y)


def _relu_square(theta: Tensor) -> Tensor:
    return _half_square(_outputs(theta, X, torch.relu), Y)


def _tanh_loss(theta: Tensor) -> Tensor:
    return F.cross_entropy(_outputs(theta, X, torch.tanh), Y)


def _hessian(loss: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    # Reverse over reverse, as lgo does it; it asks a scalar as well as a vector.
    matrix: Tensor = torch.func.jacrev(torch.func.grad(loss))(theta).detach()
    return (matrix + matrix.mT) / 2 if matrix.ndim else matrix


def _sample_loss(index: int) -> Callable[[Tensor], Tensor]:
    sample = slice(index, index + 1)
    return lambda theta: F.cross_entropy(_outputs(theta, X[sample], torch.tanh), Y[sample])


def _gradient(loss: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    gradient: Tensor = torch.func.grad(loss)(theta).detach()
    return gradient


def _scales(first: Tensor | float) -> Tensor:
    """Diagonal A: unit i's incoming weights and bias times aᵢ, its outgoing weights over aᵢ."""
    a = torch.as_tensor(first, dtype=torch.float64).expand(HIDDEN)
    outgoing = (1 / a).expand(CLASSES, HIDDEN)
    incoming = a[:, None].expand(HIDDEN, INPUTS)
    return torch.cat([incoming.flatten(), a, outgoing.flatten(), torch.ones(CLASSES).double()])


def _symmetric(size: int, seed: int) -> Array:
    matrix = np.random.default_rng(seed).standard_normal((size, size))
    return (matrix + matrix.T) / 2


def _positive(size: int, seed: int) -> Array:
    root = np.random.default_rng(seed).standard_normal((size, size))
    return root @ root.T / size


def _assert_mean(values: Array, expected: float, k: float = 4) -> None:
    """The mean of independent draws, at k standard errors; they must resolve one tenth of it."""
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert abs(values.mean() - expected) <= k * error
    assert k * error <= 0.1 * abs(expected)


# 1. Objective


def test_cross_entropy_with_label_smoothing() -> None:
    logits, labels, s = 2 * _normal(6, 4), torch.arange(6) % 4, 0.3
    target = (1 - s) * F.one_hot(labels, 4).double() + s / 4
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=s)
    torch.testing.assert_close(losses, -(target * logits.log_softmax(1)).sum(1), rtol=EXACT, atol=0)

    def loss(f: Tensor) -> Tensor:
        return F.cross_entropy(f[None], labels[:1], label_smoothing=s)

    p = logits[0].softmax(0)
    torch.testing.assert_close(_gradient(loss, logits[0]), p - target[0], rtol=0, atol=EXACT)
    curvature = torch.diag(p) - torch.outer(p, p)  # no target in it
    torch.testing.assert_close(_hessian(loss, logits[0]), curvature, rtol=0, atol=EXACT)
    # The least loss is the entropy of the target, not zero.
    entropy = -(target[0] * target[0].log()).sum()
    torch.testing.assert_close(loss(target[0].log()), entropy, rtol=EXACT, atol=0)
    assert (losses > entropy).all()


def test_squared_error_convention() -> None:
    outputs, labels = _normal(6, CLASSES), torch.arange(6) % CLASSES
    one_hot = F.one_hot(labels, CLASSES).double()
    torch.testing.assert_close(
        _half_square(outputs, labels),
        CLASSES / 2 * F.mse_loss(outputs, one_hot),
        rtol=EXACT,
        atol=0,
    )
    curvature = _hessian(lambda f: _half_square(f[None], labels[:1]), outputs[0])
    torch.testing.assert_close(curvature, torch.eye(CLASSES).double(), rtol=0, atol=EXACT)


def test_standard_error_squared_is_unbiased() -> None:
    losses = np.array([0.1, 0.5, 2.0, 7.0])
    draws = losses[np.array(list(itertools.product(range(4), repeat=3)))]  # all 64 samples of 3
    estimates = draws.var(axis=1, ddof=1) / 3
    assert estimates.mean() == pytest.approx(draws.mean(axis=1).var(), rel=EXACT)


# 2. Gradient, Hessian and kinks


def test_double_backward_is_the_hessian_product() -> None:
    theta, v = THETA.clone().requires_grad_(), _normal(len(THETA), seed=4)
    (gradient,) = torch.autograd.grad(_tanh_loss(theta), theta, create_graph=True)
    (product,) = torch.autograd.grad(gradient @ v, theta)
    dense = torch.func.jacrev(torch.func.grad(_tanh_loss))(THETA)
    torch.testing.assert_close(dense, dense.T, rtol=0, atol=EXACT)
    torch.testing.assert_close(product, dense @ v, rtol=0, atol=EXACT)


def test_gauss_newton_and_the_rest() -> None:
    def network(theta: Tensor) -> Tensor:
        return _outputs(theta, X, torch.tanh)

    jacobian = torch.func.jacrev(network)(THETA)
    p = network(THETA).softmax(1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    gauss_newton = torch.einsum("ncp,ncd,ndq->pq", jacobian, inner, jacobian) / SAMPLES
    slopes = p - F.one_hot(Y, CLASSES)
    rest = _hessian(lambda theta: (slopes * network(theta)).sum() / SAMPLES, THETA)
    dense = _hessian(_tanh_loss, THETA)
    torch.testing.assert_close(dense, gauss_newton + rest, rtol=0, atol=EXACT)
    # G is never indefinite, H is here.
    assert torch.linalg.eigvalsh(gauss_newton)[0] > -EXACT
    assert torch.linalg.eigvalsh(dense)[0] < -1e-3

    # Where the squared error is zero, nothing but G is left.
    goal = network(THETA)
    at_zero = _hessian(lambda theta: 0.5 * (network(theta) - goal).square().sum(), THETA)
    outer = torch.einsum("ncp,ncq->pq", jacobian, jacobian)
    torch.testing.assert_close(at_zero, outer, rtol=0, atol=EXACT)


def test_gauss_newton_of_cross_entropy_is_the_fisher() -> None:
    def network(theta: Tensor) -> Tensor:
        return _outputs(theta, X, torch.tanh)

    jacobian = torch.func.jacrev(network)(THETA)
    p = network(THETA).softmax(1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    gauss_newton = torch.einsum("ncp,ncd,ndq->pq", jacobian, inner, jacobian) / SAMPLES
    fisher, empirical = torch.zeros(2, len(THETA), len(THETA), dtype=torch.float64)
    for label in range(CLASSES):  # the model's own distribution of labels
        score = torch.einsum("nc,ncp->np", p - F.one_hot(torch.tensor(label), CLASSES), jacobian)
        fisher += torch.einsum("n,np,nq->pq", p[:, label], score, score) / SAMPLES
        chosen = score[label == Y]
        empirical += chosen.T @ chosen / SAMPLES
    torch.testing.assert_close(fisher, gauss_newton, rtol=0, atol=EXACT)
    # The data's labels give another matrix, the one of the gradient noise.
    assert (empirical - fisher).norm() > 0.1 * fisher.norm()


def test_kinks_hide_curvature() -> None:
    kinks = (torch.arange(1000).double() + 0.5) / 1000

    def loss(theta: Tensor) -> Tensor:
        return torch.relu(theta - kinks).mean()

    theta, h = torch.tensor(0.5, dtype=torch.float64), 0.1
    assert float(_hessian(loss, theta)) == 0
    second = float(loss(theta + h) - 2 * loss(theta) + loss(theta - h)) / h**2
    # One kink of slope 1/N every 1/N: a curvature of one, by a sum of 2hN = 200 kinks.
    assert second == pytest.approx(1, abs=1 / 200)


# 3. Sharpness and flatness


def test_sharpest_perturbation_is_the_top_eigenvector() -> None:
    H, rho = _symmetric(6, 0), 0.1
    values, vectors = np.linalg.eigh(H)
    steps = np.random.default_rng(1).standard_normal((10_000, 6))
    steps *= rho / np.linalg.norm(steps, axis=1, keepdims=True)
    rises = 0.5 * np.einsum("ni,ij,nj->n", steps, H, steps)
    top = rho * vectors[:, -1]
    most = 0.5 * top @ H @ top
    assert most == pytest.approx(0.5 * rho**2 * values[-1], rel=EXACT)
    assert 0.8 * most < rises.max() <= most


def test_average_sharpness_is_half_the_trace() -> None:
    """L = Σ cos θᵢ, by Gauss-Hermite quadrature, whose error of 40 nodes is below rounding."""
    theta = np.array([0.3, 1.2, 2.9])
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()

    def excess(sigma: float) -> float:
        return float((np.cos(theta[:, None] + sigma * nodes) @ weights - np.cos(theta)).sum())

    trace = -np.cos(theta).sum()
    errors = [excess(sigma) - 0.5 * sigma**2 * trace for sigma in (0.2, 0.1)]
    # The next term is σ⁴/8·ΣL'''' (= 3σ⁴/4!): halving σ divides it by 16, and the one after
    # is σ²/6 of it, below 1 %.
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.01)
    assert errors[1] == pytest.approx(0.1**4 / 8 * np.cos(theta).sum(), rel=0.01)


def test_adaptive_sharpness_is_invariant() -> None:
    A = _scales(torch.tensor([0.2, 1.0, 3.0, 5.0]))

    def plain(theta: Tensor) -> float:
        return float(torch.linalg.eigvalsh(_hessian(_relu_loss, theta))[-1])

    def adaptive(theta: Tensor) -> float:
        T = theta.abs()
        return float(torch.linalg.eigvalsh(T[:, None] * _hessian(_relu_loss, theta) * T)[-1])

    assert float(_relu_loss(A * THETA)) == pytest.approx(float(_relu_loss(THETA)), rel=EXACT)
    assert adaptive(A * THETA) == pytest.approx(adaptive(THETA), rel=EXACT)
    assert abs(plain(A * THETA) / plain(THETA) - 1) > 0.5


# 4. Invariances


def _signs(values: Tensor) -> Counter[int]:
    """Of eigenvalues, those that rounding may have made of a zero counted as zero."""
    known = values.abs() > 100 * torch.finfo(values.dtype).eps * values.abs().max()
    return Counter((values.sign() * known).int().tolist())


def test_rescaling_changes_curvature_and_not_the_function() -> None:
    dense = _hessian(_relu_square, THETA)
    first = slice(0, SIZES[0] + SIZES[1])
    block_top = float(torch.linalg.eigvalsh(dense[first, first])[-1])
    assert block_top > 0
    signs = _signs(torch.linalg.eigvalsh(dense))
    for alpha in (1e-3, 0.1, 3.0):
        A = _scales(alpha)
        moved = A * THETA
        outputs = _outputs(moved, X, torch.relu)
        torch.testing.assert_close(outputs, _outputs(THETA, X, torch.relu), rtol=0, atol=1e-12)
        there = _hessian(_relu_square, moved)
        # H(Aθ) = A⁻¹H(θ)A⁻¹ for diagonal A, entries compared on the scale of the original.
        torch.testing.assert_close(A[:, None] * there * A, dense, rtol=0, atol=1e-12)
        values = torch.linalg.eigvalsh(there)
        # The largest eigenvalue grows without bound as α goes to zero.
        assert float(values[-1]) >= block_top / alpha**2 * (1 - EXACT)
        if alpha > 0.01:  # below, eigenvalues near zero drown in the rounding of large ones
            assert _signs(values) == signs
    gradient = _gradient(_relu_square, THETA)
    torch.testing.assert_close(
        _scales(0.1) * _gradient(_relu_square, _scales(0.1) * THETA), gradient, rtol=0, atol=1e-12
    )


def test_symmetry_bends_no_loss_at_a_critical_point() -> None:
    """t = Tθ is tangent to the rescalings of one unit: ∇L·t = 0, and H t = −T∇L."""
    gradient, dense = _gradient(_relu_loss, THETA), _hessian(_relu_loss, THETA)
    for unit in range(HIDDEN):
        a = torch.ones(HIDDEN).double()
        a[unit] = math.e
        T = _scales(a).log()  # +1 on what enters the unit, −1 on what leaves it, 0 elsewhere
        assert float(gradient @ (T * THETA)) == pytest.approx(0, abs=1e-12)
        torch.testing.assert_close(dense @ (T * THETA), -T * gradient, rtol=0, atol=1e-12)


def test_permuted_units_keep_the_spectrum() -> None:
    order = torch.tensor([2, 0, 3, 1])
    permuted = _permuted(THETA, order)
    assert not torch.equal(permuted, THETA)
    assert float(_relu_loss(permuted)) == pytest.approx(float(_relu_loss(THETA)), rel=EXACT)
    there, here = (torch.linalg.eigvalsh(_hessian(_relu_loss, t)) for t in (permuted, THETA))
    torch.testing.assert_close(there, here, rtol=0, atol=1e-12)


def _permuted(theta: Tensor, order: Tensor) -> Tensor:
    w1, b1, w2, b2 = torch.split(theta, SIZES)
    return torch.cat(
        [
            w1.view(HIDDEN, INPUTS)[order].flatten(),
            b1[order],
            w2.view(CLASSES, HIDDEN)[:, order].flatten(),
            b2,
        ]
    )


# 5. Filter normalisation


def _filters() -> list[slice]:
    """Rows of W₁ and of W₂."""
    starts = [(0, HIDDEN, INPUTS), (SIZES[0] + SIZES[1], CLASSES, HIDDEN)]
    return [slice(s + i * n, s + (i + 1) * n) for s, rows, n in starts for i in range(rows)]


def _filter_normalised(drawn: Tensor, theta: Tensor) -> Tensor:
    scaled = torch.zeros_like(drawn)
    for part in _filters():
        length = torch.linalg.vector_norm(drawn[..., part], dim=-1, keepdim=True)
        scaled[..., part] = drawn[..., part] * theta[part].norm() / length
    return scaled


def test_filter_normalisation_undoes_layers_and_not_units() -> None:
    drawn, steps = _normal(len(THETA), seed=5), (0.1, 1.0)

    def line(theta: Tensor, direction: Tensor) -> Tensor:
        return torch.stack([_relu_loss(theta + t * direction) for t in steps])

    here = line(THETA, _filter_normalised(drawn, THETA))
    layerwise = _scales(0.1) * THETA
    there = line(layerwise, _filter_normalised(drawn, layerwise))
    torch.testing.assert_close(there, here, rtol=EXACT, atol=0)
    # Unnormalised, the same two networks look different …
    assert (line(layerwise, drawn) / line(THETA, drawn) - 1).abs().max() > 0.1
    # … and so they do normalised, once units are scaled unequally: a filter of the next layer
    # then holds weights of several scales.
    unitwise = _scales(torch.tensor([0.1, 1.0, 3.0, 10.0])) * THETA
    elsewhere = line(unitwise, _filter_normalised(drawn, unitwise))
    assert (elsewhere / here - 1).abs().max() > 0.1


def test_curvature_along_filter_normalised_directions() -> None:
    dense = _hessian(_tanh_loss, THETA)
    directions = _filter_normalised(_normal(100_000, len(THETA), seed=6), THETA)
    filters = [
        (part, float(THETA[part].norm()) ** 2, part.stop - part.start) for part in _filters()
    ]
    lengths = directions.square().sum(1)
    total = sum(square for _, square, _ in filters)
    torch.testing.assert_close(lengths, torch.full_like(lengths, total), rtol=EXACT, atol=0)

    mean = sum(square / n * float(dense[p, p].trace()) for p, square, n in filters)
    variance = 0.0
    for p, square, n in filters:
        block = dense[p, p]
        spread = n * float(block.square().sum()) - float(block.trace()) ** 2
        variance += 2 * square**2 * spread / (n**2 * (n + 2))
    for (p, square_p, n_p), (q, square_q, n_q) in itertools.permutations(filters, 2):
        variance += 2 * square_p * square_q * float(dense[p, q].square().sum()) / (n_p * n_q)
    curvatures = torch.einsum("np,pq,nq->n", directions, dense, directions).numpy()
    _assert_mean(curvatures, mean)
    _assert_mean((curvatures - mean) ** 2, variance)


# 6. Lines and barriers


def _barrier(loss: Callable[[Any], float], a: Any, b: Any, num_points: int = 1001) -> float:
    ends = loss(a), loss(b)
    alphas = np.linspace(0, 1, num_points)
    rises = [loss((1 - t) * a + t * b) - ((1 - t) * ends[0] + t * ends[1]) for t in alphas]
    return float(max(rises))


@pytest.mark.parametrize("sign", [1, -1])
def test_barrier_of_a_quadratic(sign: int) -> None:
    H = sign * _positive(4, 2)
    a, b = np.random.default_rng(3).standard_normal((2, 4))
    d = b - a
    found = _barrier(lambda t: float(0.5 * t @ H @ t), a, b)
    # A grid of 1,001 points has the maximum, at one half; a convex loss has no barrier.
    assert found == pytest.approx(max(0.0, -d @ H @ d / 8), rel=EXACT, abs=1e-12)
    assert (found > 0.1) == (sign < 0)


def test_barrier_on_a_grid_is_a_lower_bound() -> None:
    def ridge(t: float) -> float:
        return math.exp(-(((t - 0.3) / 0.01) ** 2))

    assert _barrier(ridge, 0.0, 1.0) == pytest.approx(1, abs=1e-3)
    assert _barrier(ridge, 0.0, 1.0, num_points=6) < 1e-3  # steps of 0.2 pass it by


def test_barrier_on_a_line_and_none_along_an_arc() -> None:
    def ring(point: Array) -> float:
        return float((point @ point - 1) ** 2)

    a, b = np.array([1.0, 0.0]), np.array([-1.0, 0.0])
    assert _barrier(ring, a, b) == pytest.approx(1, rel=EXACT)
    angles = np.linspace(0, math.pi, 101)
    assert max(ring(np.array([math.cos(t), math.sin(t)])) for t in angles) < 1e-30


def test_barrier_between_a_network_and_its_permutation() -> None:
    theta = THETA
    for _ in range(500):
        theta = theta - 0.5 * _gradient(_relu_loss, theta)
    other = _permuted(theta, torch.tensor([1, 2, 3, 0]))
    ends = [float(_relu_loss(t)) for t in (theta, other)]
    assert ends[0] == pytest.approx(ends[1], rel=EXACT)
    assert _barrier(lambda t: float(_relu_loss(t)), theta, other, 51) > 0.1


# 7. Planes


def _random_pairs(num: int, size: int, seed: int) -> tuple[Array, Array]:
    """Orthonormal pairs of uniform directions, two [num, size]."""
    u, v = np.random.default_rng(seed).standard_normal((2, num, size))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    v -= (u * v).sum(axis=1, keepdims=True) * u
    return u, v / np.linalg.norm(v, axis=1, keepdims=True)


def test_random_plane_shows_the_mean_eigenvalue() -> None:
    size = 20
    values = np.concatenate([[50.0, 10.0], np.linspace(-1, 1, size - 2)])
    trace, squares = values.sum(), (values**2).sum()
    u, v = _random_pairs(100_000, size, 4)
    curvatures = u**2 @ values
    mean = trace / size
    _assert_mean(curvatures, mean)
    variance = 2 / (size + 2) * values.var()
    assert variance == pytest.approx(
        2 * (size * squares - trace**2) / (size**2 * (size + 2)), rel=EXACT
    )
    _assert_mean((curvatures - mean) ** 2, variance)
    mixed = (u * v) @ values
    assert abs(mixed.mean()) <= 4 * mixed.std() / math.sqrt(len(mixed))
    _assert_mean(
        mixed**2, (size * squares - trace**2) / (size * (size - 1) * (size + 2))
    )  # E (uᵀHv)²
    assert curvatures.max() < values[0]
    # Without normalisation: tr H, and the variance of a Gaussian probe.
    z = np.random.default_rng(5).standard_normal((100_000, size))
    _assert_mean(z**2 @ values, trace)
    _assert_mean((z**2 @ values - trace) ** 2, 2 * squares)


def test_convex_plane_through_a_saddle() -> None:
    """H = diag(1, …, 1, −c): the share of random planes on which the saddle looks like a bowl."""
    size, c = 20, 9.0
    u, v = _random_pairs(20_000, size, 6)
    lowest = 1 - (1 + c) * (u[:, -1] ** 2 + v[:, -1] ** 2)
    # The restricted matrix is I − (1 + c)wwᵀ, w the last entries of u and v.
    values = np.append(np.ones(size - 1), -c)
    plane = np.array(
        [[u[0] @ (values * u[0]), u[0] @ (values * v[0])], [0.0, v[0] @ (values * v[0])]]
    )
    assert np.linalg.eigvalsh(plane, UPLO="U")[0] == pytest.approx(lowest[0], abs=1e-12)
    share = 1 - (c / (1 + c)) ** ((size - 2) / 2)
    assert 0.61 < share < 0.62
    error = math.sqrt(share * (1 - share) / len(lowest))
    assert abs((lowest > 0).mean() - share) <= 4 * error


def test_plane_shows_no_more_than_the_spectrum_holds() -> None:
    H = _symmetric(12, 7)
    values = np.linalg.eigvalsh(H)
    for u, v in zip(*_random_pairs(200, 12, 8), strict=True):
        low, high = np.linalg.eigvalsh(np.stack([u, v]) @ H @ np.stack([u, v]).T)
        # Cauchy's interlacing, both ends of both.
        assert values[0] <= low <= values[-2]
        assert values[1] <= high <= values[-1]
    _, vectors = np.linalg.eigh(H)
    top = vectors[:, -2:]
    np.testing.assert_allclose(np.linalg.eigvalsh(top.T @ H @ top), values[-2:], rtol=EXACT)


def test_principal_plane_of_a_random_walk() -> None:
    num_steps, size = 60, 20_000
    walk = np.random.default_rng(9).standard_normal((num_steps, size)).cumsum(axis=0)
    k = np.arange(1, num_steps + 1)
    expected = 1 / (4 * np.sin((2 * k - 1) * math.pi / (4 * num_steps + 2)) ** 2)
    np.testing.assert_allclose(
        expected, np.linalg.eigvalsh(np.minimum.outer(k, k).astype(float))[::-1], rtol=EXACT
    )
    found = np.linalg.eigvalsh(walk @ walk.T)[::-1]
    # An eigenvalue of the Gram matrix fluctuates by √(2/P) of itself, and so does the sum they are
    # divided by: 2/√P at most together, taken four times.
    shares = found[:2] / found.sum()
    np.testing.assert_allclose(shares, expected[:2] / expected.sum(), rtol=8 / math.sqrt(size))
    limit = np.array([8, 8 / 9]) / math.pi**2
    np.testing.assert_allclose(expected[:2] / expected.sum(), limit, rtol=1e-3)
    assert limit.sum() > 0.9


# 8. Stability of gradient descent


def test_descent_lemma() -> None:
    x, labels = X.numpy(), 2 * Y.numpy() - 1
    K = np.linalg.eigvalsh(x.T @ x / SAMPLES)[-1] / 4  # σ' ≤ 1/4

    def loss(theta: Array) -> float:
        return float(np.logaddexp(0, -labels * (x @ theta)).mean())

    draw = np.random.default_rng(10)
    for _ in range(200):
        theta, eta = 3 * draw.standard_normal(INPUTS), draw.uniform(0, 4) / K
        g = -x.T @ (labels / (1 + np.exp(labels * (x @ theta)))) / SAMPLES
        bound = loss(theta) - eta * (1 - eta * K / 2) * g @ g
        assert loss(theta - eta * g) <= bound + 1e-14
    # It is sharp: on the quadratic of curvature K both sides are equal.
    g, eta = 2.0 * K, 1.7 / K
    assert 0.5 * K * (2.0 - eta * g) ** 2 == pytest.approx(
        0.5 * K * 4.0 - eta * (1 - eta * K / 2) * g * g, rel=EXACT
    )


def test_one_step_descends_below_two_over_eta() -> None:
    H, eta = _symmetric(5, 11), 2.0
    outcomes = set()
    for theta in np.random.default_rng(12).standard_normal((200, 5)):
        g = H @ theta
        after = theta - eta * g
        descends = after @ H @ after < theta @ H @ theta
        assert descends == (g @ H @ g / (g @ g) < 2 / eta)
        outcomes.add(bool(descends))
    assert outcomes == {True, False}


METHODS: dict[str, Callable[[float], float]] = {
    "gradient descent": lambda beta: 2.0,
    "heavy ball": lambda beta: 2 + 2 * beta,
    "Nesterov": lambda beta: (2 + 2 * beta) / (1 + 2 * beta),
}
"""Thresholds on ηλ."""


def _final_size(lam: float, lr: float, beta: float, nesterov: bool, decay: float = 0.0) -> float:
    """|θ| after 400 steps of torch's SGD on ½λθ² from θ = 1."""
    theta = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD(
        [theta], lr=lr, momentum=beta, nesterov=nesterov, weight_decay=decay
    )
    for _ in range(400):
        theta.grad = lam * theta.detach()
        optimizer.step()
    return float(theta.detach().abs())


def _check_both_sides(method: str, beta: float) -> None:
    lr = 0.3
    threshold = METHODS[method](beta) / lr
    # The slowest of these shrinks and grows by 2 % a step near its threshold: 0.98⁴⁰⁰ = 3e-4.
    assert _final_size(0.99 * threshold, lr, beta, method == "Nesterov") < 1e-2
    assert _final_size(1.01 * threshold, lr, beta, method == "Nesterov") > 1e2


def test_gradient_descent_threshold() -> None:
    _check_both_sides("gradient descent", 0.0)


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_heavy_ball_threshold(beta: float) -> None:
    _check_both_sides("heavy ball", beta)


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_nesterov_threshold(beta: float) -> None:
    _check_both_sides("Nesterov", beta)


@pytest.mark.parametrize("method", METHODS)
def test_thresholds_are_the_spectral_radius_of_the_iteration(method: str) -> None:
    for beta in (0.0, 0.3, 0.9, 0.99) if method != "gradient descent" else (0.0,):
        threshold = METHODS[method](beta)

        def radius(x: float, beta: float = beta) -> float:  # x = ηλ
            if method == "Nesterov":
                polynomial = [1, -(1 + beta) * (1 - x), beta * (1 - x)]
            else:
                polynomial = [1, -(1 + beta - x), beta]
            return float(np.abs(np.roots(polynomial)).max())

        # Everything between 0 and the threshold is stable, nothing outside.
        for share in np.linspace(1e-3, 1 - 1e-3, 50):
            assert radius(share * threshold) < 1
        for x in (-0.1, 1.001 * threshold, 2 * threshold):
            assert radius(x) > 1
        # At the threshold a root is −1: the iterates flip their sign at each step.
        assert radius(threshold) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_coupled_weight_decay_adds_to_the_curvature(method: str) -> None:
    beta, lr = (0.0 if method == "gradient descent" else 0.5), 0.3
    threshold = METHODS[method](beta) / lr
    for decay, stable in ((0.02, True), (0.04, False)):
        size = _final_size(
            0.97 * threshold, lr, beta, method == "Nesterov", decay=decay * threshold
        )
        assert size < 1e-2 if stable else size > 1e2


def test_preconditioned_threshold_of_averaged_momentum() -> None:
    """Adam with its second moments held still."""
    H, D, beta, eta = _positive(3, 13), np.array([0.1, 1.0, 4.0]), 0.9, 0.01
    sharpness = np.linalg.eigvalsh(H / np.sqrt(np.outer(D, D)))[-1]
    assert (2 + 2 * beta) / (1 - beta) == pytest.approx(38, rel=EXACT)
    for share, stable in ((0.99, True), (1.01, False)):
        scale = share * 38 / eta / sharpness
        theta, m = np.ones(3), np.zeros(3)
        for _ in range(2000):
            m = beta * m + (1 - beta) * scale * H @ theta
            theta = theta - eta * m / D
        # The slowest stable mode, of the smallest eigenvalue, is the last to go.
        assert np.abs(theta).max() < 0.1 if stable else np.abs(theta).max() > 1e2


# 9. Edge of stability


@pytest.mark.parametrize(("sharpness", "stays"), [(9.9, True), (10.5, False), (16.0, False)])
def test_descent_leaves_a_minimum_that_is_too_sharp(sharpness: float, stays: bool) -> None:
    """L = ½(xy − 1)²: minima on xy = 1, of sharpness x² + y²."""
    eta = 0.2  # 2/η = 10
    x = math.sqrt((sharpness + math.sqrt(sharpness**2 - 4)) / 2)
    y = 1 / x
    x += 1e-3
    losses = []
    for _ in range(20_000):
        r = x * y - 1
        x, y = x - eta * r * y, y - eta * r * x
        losses.append(r * r / 2)
    assert losses[-1] < 1e-20
    assert x * x + y * y < 2 / eta
    assert (max(losses) > 1e3 * losses[0]) == (not stays)
    # Undisturbed it moves by no more than the disturbance: 2xδ = 0.006 of sharpness.
    assert (abs(x * x + y * y - sharpness) < 0.01) == stays


# 10. Noise of stochastic gradient descent


def _sample_gradients() -> Array:
    gradients = torch.stack([_gradient(_sample_loss(i), THETA) for i in range(6)])
    return np.asarray(gradients[:, :5].numpy())


def test_covariance_of_a_batch_gradient() -> None:
    g = _sample_gradients()
    N, B = len(g), 2
    C = np.cov(g.T, ddof=0)

    def covariance(batches: list[tuple[int, ...]]) -> Array:
        means = g[np.array(batches)].mean(axis=1)
        np.testing.assert_allclose(means.mean(axis=0), g.mean(axis=0), rtol=EXACT, atol=1e-14)
        return np.cov(means.T, ddof=0)

    with_replacement = covariance(list(itertools.product(range(N), repeat=B)))
    np.testing.assert_allclose(with_replacement, C / B, rtol=EXACT, atol=1e-14)
    without = covariance(list(itertools.combinations(range(N), B)))
    np.testing.assert_allclose(without, (N - B) / (N - 1) * C / B, rtol=EXACT, atol=1e-14)


def test_batches_of_one_epoch_are_anticorrelated() -> None:
    g = _sample_gradients()
    N, B = len(g), 2
    C = np.cov(g.T, ddof=0)
    order = np.array(list(itertools.permutations(range(N))))
    batches = (g - g.mean(axis=0))[order].reshape(len(order), N // B, B, -1).mean(axis=2)
    cross = np.einsum("np,nq->pq", batches[:, 0], batches[:, 2]) / len(order)
    np.testing.assert_allclose(cross, -C / (N - 1), rtol=EXACT, atol=1e-14)
    # Over an epoch at one point the noise adds up to nothing.
    np.testing.assert_allclose(batches.sum(axis=1), 0, atol=1e-14)


def _stationary(M: Array, Q: Array) -> Array:
    """Σ = MΣMᵀ + Q."""
    n = len(M)
    return np.linalg.solve(np.eye(n * n) - np.kron(M, M), Q.ravel()).reshape(n, n)


def test_stationary_covariance_is_exact_in_discrete_time() -> None:
    H, S, eta = _positive(3, 14), _positive(3, 15), 0.4
    values, vectors = np.linalg.eigh(H)
    assert eta * values[-1] < 2
    pair = values[:, None] + values - eta * np.outer(values, values)
    closed = vectors @ (eta * (vectors.T @ S @ vectors) / pair) @ vectors.T
    np.testing.assert_allclose(_stationary(np.eye(3) - eta * H, eta**2 * S), closed, rtol=EXACT)
    np.testing.assert_allclose(
        H @ closed + closed @ H - eta * H @ closed @ H, eta * S, rtol=EXACT, atol=1e-13
    )
    # And it is where independent chains go. The slowest mode decays by (1 − ηλ)^(2t).
    chains, root = np.zeros((20_000, 3)), np.linalg.cholesky(S)
    draw = np.random.default_rng(16)
    steps = math.ceil(math.log(1e-4) / (2 * math.log(1 - eta * values[0])))
    assert steps < 1000
    for _ in range(steps):
        chains -= eta * (chains @ H + draw.standard_normal((20_000, 3)) @ root.T)
    error = np.sqrt((np.outer(closed.diagonal(), closed.diagonal()) + closed**2) / len(chains))
    assert (
        np.abs(chains.T @ chains / len(chains) - closed) <= 4 * error + 1e-4 * closed.max()
    ).all()


def test_no_stationary_state_above_the_threshold() -> None:
    for share, bounded in ((0.99, True), (1.01, False)):
        variance, lam, eta, s = 0.0, 3.0, share * 2 / 3.0, 0.1
        for _ in range(2000):
            variance = (1 - eta * lam) ** 2 * variance + eta**2 * s
        # The memory of the start, 0.98²ᵗ, is gone.
        limit = eta * s / (lam * (2 - eta * lam))
        assert (variance == pytest.approx(limit, rel=EXACT)) == bounded


def test_small_step_limit_of_the_stationary_covariance() -> None:
    H, S = _positive(3, 14), _positive(3, 15)
    n = np.eye(3)
    errors = []
    for eta in (1e-2, 5e-3):
        limit = np.linalg.solve(np.kron(H, n) + np.kron(n, H), eta * S.ravel()).reshape(3, 3)
        exact = _stationary(n - eta * H, eta**2 * S)
        errors.append(np.linalg.norm(exact - limit) / np.linalg.norm(limit))
    # A relative error of order η: half the step, half the error, up to the next order.
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.02)
    assert errors[0] < 1e-2 * np.linalg.eigvalsh(H)[-1]


def test_excess_loss_of_the_stationary_state() -> None:
    H, S = _positive(4, 17), _positive(4, 18)
    values, vectors = np.linalg.eigh(H)
    noise = (vectors.T @ S @ vectors).diagonal()
    for eta in (0.5, 1e-3):
        excess = 0.5 * np.trace(H @ _stationary(np.eye(4) - eta * H, eta**2 * S))
        assert excess == pytest.approx(0.5 * (eta * noise / (2 - eta * values)).sum(), rel=EXACT)
        ratio = excess / (eta / 4 * np.trace(S))
        # Between 1 and 1/(1 − ηλmax/2), whatever the curvature.
        assert 1 < ratio < 1 / (1 - eta * values[-1] / 2)


def test_noise_shaped_like_the_hessian() -> None:
    H, c, eta = _positive(4, 17), 0.3, 0.5
    closed = eta * c * np.linalg.inv(2 * np.eye(4) - eta * H)
    np.testing.assert_allclose(
        _stationary(np.eye(4) - eta * H, eta**2 * c * H), closed, rtol=EXACT, atol=1e-14
    )
    eta = 1e-4
    excess = 0.5 * np.trace(H @ _stationary(np.eye(4) - eta * H, eta**2 * c * H))
    # To first order in ηλmax/2.
    assert excess == pytest.approx(eta * c * np.trace(H) / 4, rel=eta * np.linalg.eigvalsh(H)[-1])


def test_stationary_variance_with_momentum() -> None:
    eta, lam, s = 0.2, 3.0, 0.7
    for beta in (0.0, 0.5, 0.9):
        # State (θ, v): v ← βv + λθ + ξ, θ ← θ − ηv.
        M = np.array([[1 - eta * lam, -eta * beta], [lam, beta]])
        noise = np.array([-eta, 1.0])
        found = _stationary(M, s * np.outer(noise, noise))[0, 0]
        closed = eta * s * (1 + beta) / (lam * (1 - beta) * (2 * (1 + beta) - eta * lam))
        assert found == pytest.approx(closed, rel=EXACT)
        small = 1e-6
        M = np.array([[1 - small * lam, -small * beta], [lam, beta]])
        noise = np.array([-small, 1.0])
        found = _stationary(M, s * np.outer(noise, noise))[0, 0]
        # Plain descent with η/(1 − β), to first order in η; solving loses 1/(ηλ) of 1e-16.
        assert found == pytest.approx(small / (1 - beta) * s / (2 * lam), rel=1e-5)


def test_batches_lower_the_stable_curvature() -> None:
    h = np.array([0.5, 1.0, 4.0, 2.5, 0.0, 1.0])  # curvatures of the samples, all minimal at 0
    N, mean, spread = len(h), h.mean(), h.var()
    for B in (1, 2, 3, N):
        kappa = (N - B) / (B * (N - 1))
        batch = h[np.array(list(itertools.combinations(range(N), B)))].mean(axis=1)
        for eta in (0.3, 0.9):
            growth = ((1 - eta * batch) ** 2).mean()
            assert growth == pytest.approx(
                (1 - eta * mean) ** 2 + kappa * eta**2 * spread, rel=EXACT
            )
        limit = 2 / (mean + kappa * spread / mean)
        for share, stable in ((0.99, True), (1.01, False)):
            assert (((1 - share * limit * batch) ** 2).mean() < 1) == stable
        assert (limit < 2 / mean * (1 - EXACT)) == (B < N)


def _per_sample(kind: str) -> Array:
    """Hessians [5, 3, 3] of five samples with a positive definite mean."""
    draw = np.random.default_rng(32)
    if kind == "indefinite":
        matrices = draw.standard_normal((5, 3, 3))
        matrices += matrices.swapaxes(1, 2)
        return np.asarray(matrices - matrices.mean(axis=0) + np.diag([0.3, 1.0, 2.0]))
    roots = draw.standard_normal((5, {"rank one": 1, "rank two": 2}[kind], 3))
    return np.asarray(np.einsum("nki,nkj->nij", roots, roots))


def _stochastic_sharpness(matrices: Array, B: int) -> float:
    """Λ_B, as the largest eigenvalue of the second moment's matrices [9, 9]."""
    H, N = matrices.mean(axis=0), len(matrices)
    kappa = (N - B) / (B * (N - 1))
    spread = sum(np.kron(h - H, h - H) for h in matrices) / N
    values, vectors = np.linalg.eigh((np.kron(H, np.eye(3)) + np.kron(np.eye(3), H)) / 2)
    root = vectors / np.sqrt(values)
    return float(np.linalg.eigvalsh(root.T @ (np.kron(H, H) + kappa * spread) @ root)[-1])


@pytest.mark.parametrize("kind", ["indefinite", "rank one", "rank two"])
def test_mean_square_stability_of_batches(kind: str) -> None:
    matrices = _per_sample(kind)
    H, N = matrices.mean(axis=0), len(matrices)
    values, vectors = np.linalg.eigh(H)
    top = vectors[:, -1]
    spread = np.var([top @ h @ top for h in matrices])
    sharpness = [_stochastic_sharpness(matrices, B) for B in range(1, N + 1)]
    assert (np.diff(sharpness) < 0).all()
    assert sharpness[-1] == pytest.approx(values[-1], rel=EXACT)
    for B in range(1, N + 1):
        kappa = (N - B) / (B * (N - 1))
        assert sharpness[B - 1] >= (values[-1] + kappa * spread / values[-1]) * (1 - EXACT)
        batches = [matrices[list(b)].mean(axis=0) for b in itertools.combinations(range(N), B)]
        for share, stable in ((0.99, True), (1.01, False)):
            steps = [np.eye(3) - share * 2 / sharpness[B - 1] * h for h in batches]
            # E θθᵀ as a vector, over all batches there are.
            moment = sum(np.kron(a, a) for a in steps) / len(steps)
            assert (np.abs(np.linalg.eigvals(moment)).max() < 1) == stable


@pytest.mark.parametrize(("kind", "rank"), [("rank one", 1), ("rank two", 2)])
def test_small_batches_bound_the_trace(kind: str, rank: int) -> None:
    matrices = _per_sample(kind)
    H, N = matrices.mean(axis=0), len(matrices)
    trace, square = np.trace(H), (H**2).sum()
    squares = (matrices**2).sum(axis=(1, 2)).mean()
    for B in range(1, N + 1):
        kappa = (N - B) / (B * (N - 1))
        sharpness = _stochastic_sharpness(matrices, B)
        exact = ((1 - kappa) * square + kappa * squares) / trace
        assert sharpness >= exact >= (1 - kappa) * square / trace + kappa * trace / rank
    # It says more than λ₁ does.
    assert trace > rank * np.linalg.eigvalsh(H)[-1] * (1.01 if rank == 1 else 0.5)
    assert _stochastic_sharpness(matrices, 1) >= trace / rank


def test_time_of_escape_over_a_barrier() -> None:
    """L = (x² − 1)²/4 from −1 to 1: h = 2, h' = 1, ΔL = 1/4."""
    x = np.linspace(-3, 1, 40_001)
    loss, errors = (x**2 - 1) ** 2 / 4, []
    for noise in (0.05, 0.025):  # ηs
        # The mean time to 1 from y is the integral over z from y of 2/(ηs) e^{2L(z)/(ηs)} times
        # that over w up to z of e^{−2L(w)/(ηs)}; exponents are taken from the barrier's top.
        weights = np.exp(-2 * loss / noise)
        below = np.concatenate([[0], np.cumsum((weights[1:] + weights[:-1]) / 2)]) * (x[1] - x[0])
        rates = np.exp(2 * (np.minimum(loss, 1) - 0.25) / noise) * below
        time = 2 / noise * np.trapezoid(rates[x >= -1], x[x >= -1])
        errors.append(time / (2 * math.pi / math.sqrt(2 * 1)) - 1)
    # Right to first order in ηs/ΔL.
    assert errors[0] < 0.05
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)


# 11. Lanczos


def _lanczos(H: Array, v: Array, m: int, orthogonalise: bool = True) -> tuple[Array, Array, Array]:
    """T [m, m], the norms β₁ … β_m and the basis [P, m]."""
    Q = np.zeros((len(v), m + 1))
    Q[:, 0] = v / np.linalg.norm(v)
    alphas, betas = np.zeros(m), np.zeros(m)
    for j in range(m):
        w = H @ Q[:, j]
        alphas[j] = Q[:, j] @ w
        w -= alphas[j] * Q[:, j] + (betas[j - 1] * Q[:, j - 1] if j else 0)
        if orthogonalise:
            for _ in range(2):
                w -= Q[:, : j + 1] @ (Q[:, : j + 1].T @ w)
        betas[j] = np.linalg.norm(w)
        Q[:, j + 1] = w / betas[j]
    T = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
    return T, betas, Q[:, :m]


def test_residual_bounds_the_distance_to_an_eigenvalue() -> None:
    H = _symmetric(20, 19)
    values = np.linalg.eigvalsh(H)
    draw = np.random.default_rng(20)
    for y in draw.standard_normal((200, 20)):
        theta = draw.uniform(*values[[0, -1]])  # any number at all
        residual = np.linalg.norm(H @ y - theta * y) / np.linalg.norm(y)
        assert np.abs(values - theta).min() <= residual
    # No smaller bound holds for all: here it is attained.
    H, y = np.diag([-1.0, 1.0]), np.array([1.0, 1.0]) / math.sqrt(2)
    assert np.linalg.norm(H @ y) == pytest.approx(1, rel=EXACT)


def test_residual_of_a_ritz_pair_costs_no_product() -> None:
    H = _symmetric(30, 21)
    values = np.linalg.eigvalsh(H)
    T, betas, Q = _lanczos(H, np.random.default_rng(22).standard_normal(30), 12)
    ritz, S = np.linalg.eigh(T)
    Y = Q @ S
    residuals = np.linalg.norm(H @ Y - ritz * Y, axis=0)
    np.testing.assert_allclose(residuals, betas[-1] * np.abs(S[-1]), rtol=0, atol=1e-12)
    # Inside the spectrum, from below at the top and from above at the bottom.
    assert (ritz[::-1] <= values[::-1][:12] + 1e-12).all()
    assert (ritz >= values[:12] - 1e-12).all()
    # Squared over the gap: far better once converged, for both ends.
    for index in (0, -1):
        nearest = np.abs(values - ritz[index]).argmin()
        gap = np.abs(np.delete(values, nearest) - ritz[index]).min()
        error = abs(values[nearest] - ritz[index])
        assert error <= residuals[index] ** 2 / gap
        assert residuals[index] < gap


def test_krylov_space_knows_no_shift() -> None:
    H, v = _symmetric(20, 23), np.random.default_rng(24).standard_normal(20)
    ritz = np.linalg.eigvalsh(_lanczos(H, v, 8)[0])
    for shift in (-100.0, 100.0):
        moved = np.linalg.eigvalsh(_lanczos(H + shift * np.eye(20), v, 8)[0])
        # A power iteration would go to the other end; rounding is of the shift's size.
        np.testing.assert_allclose(moved - shift, ritz, rtol=0, atol=1e-9)


def test_ghosts_appear_without_reorthogonalisation() -> None:
    H = np.diag(np.append(np.linspace(0, 1, 199), 100.0))
    v = np.random.default_rng(25).standard_normal(200)
    copies, losses = {}, {}
    for orthogonalise in (True, False):
        T, _, Q = _lanczos(H, v, 60, orthogonalise)
        copies[orthogonalise] = int((np.abs(np.linalg.eigvalsh(T) - 100) < 1e-6).sum())
        losses[orthogonalise] = np.abs(Q.T @ Q - np.eye(60)).max()
    assert copies[True] == 1 < copies[False]
    assert losses[True] < 1e-13
    assert losses[False] > 0.5


def test_krylov_space_holds_one_copy_of_a_repeated_eigenvalue() -> None:
    values = np.array([5.0, 5.0, 5.0, 2.0, -1.0, -1.0])
    T, betas, _ = _lanczos(np.diag(values), np.arange(1.0, 7), 3)
    np.testing.assert_allclose(np.linalg.eigvalsh(T), [-1, 2, 5], rtol=EXACT)
    assert betas[-1] < 1e-12 < betas[:-1].min()


# 12. Hutchinson's trace


def _probe_values(H: Array, atoms: Array, chances: Array) -> tuple[float, float]:
    """Mean and variance of zᵀHz over every vector of independent entries."""
    n = len(H)
    z = np.array(list(itertools.product(atoms, repeat=n)))
    weights = np.array([math.prod(c) for c in itertools.product(chances, repeat=n)])
    values = np.einsum("ni,ij,nj->n", z, H, z)
    mean = float(weights @ values)
    return mean, float(weights @ (values - mean) ** 2)


def test_trace_estimate_and_its_variance() -> None:
    H = _symmetric(7, 26)
    diagonal = (H.diagonal() ** 2).sum()
    off = (H**2).sum() - diagonal
    signs = _probe_values(H, np.array([-1.0, 1.0]), np.array([0.5, 0.5]))
    np.testing.assert_allclose(signs, (np.trace(H), 2 * off), rtol=EXACT)
    # Entries ±√3 or 0 have the Gaussian's fourth moment 3, and thereby its variance.
    atoms, chances = math.sqrt(3) * np.array([-1.0, 0.0, 1.0]), np.array([1, 4, 1]) / 6
    gaussian = _probe_values(H, atoms, chances)
    np.testing.assert_allclose(gaussian, (np.trace(H), 2 * off + 2 * diagonal), rtol=EXACT)
    exact = _probe_values(np.diag(H.diagonal()), np.array([-1.0, 1.0]), np.array([0.5, 0.5]))
    assert exact[1] == pytest.approx(0, abs=1e-20)


# 13. Stochastic Lanczos quadrature


def test_gauss_rule_is_exact_up_to_degree_2m_minus_1() -> None:
    H, v, m = _symmetric(15, 27) / 3, np.random.default_rng(28).standard_normal(15), 4
    v /= np.linalg.norm(v)
    T, betas, _ = _lanczos(H, v, m)
    nodes, S = np.linalg.eigh(T)
    weights = S[0] ** 2
    assert weights.sum() == pytest.approx(1, rel=EXACT)
    for degree in range(2 * m):
        moment = v @ np.linalg.matrix_power(H, degree) @ v
        assert weights @ nodes**degree == pytest.approx(moment, rel=1e-9, abs=1e-12)
    missing = v @ np.linalg.matrix_power(H, 2 * m) @ v - weights @ nodes ** (2 * m)
    assert missing == pytest.approx((betas**2).prod(), rel=1e-9)
    assert missing > 0


def test_density_integrates_to_one_and_has_the_mean_eigenvalue() -> None:
    """Vectors of signs have the sphere's second moments, and moments of μ are quadratic in v."""
    H, m = _symmetric(6, 29), 2
    moments = []
    for signs in itertools.product([-1.0, 1.0], repeat=6):
        nodes, S = np.linalg.eigh(_lanczos(H, np.array(signs), m)[0])
        moments.append([S[0] ** 2 @ nodes**degree for degree in range(2 * m + 1)])
    mean = np.mean(moments, axis=0)
    expected = [np.trace(np.linalg.matrix_power(H, degree)) / 6 for degree in range(2 * m + 1)]
    np.testing.assert_allclose(mean[: 2 * m], expected[: 2 * m], rtol=EXACT, atol=1e-12)
    assert mean[2 * m] < 0.99 * expected[2 * m]


def test_distribution_function_of_one_vector() -> None:
    """The share below a point is vᵀΠv, Π a projector of rank k: of the first k, without loss."""
    size = 8
    squares = np.random.default_rng(31).standard_normal((100_000, size)) ** 2
    shares = squares.cumsum(axis=1) / squares.sum(axis=1, keepdims=True)
    bound = 1 / (2 * (size + 2))
    for rank in range(1, size):
        share, mean = shares[:, rank - 1], rank / size
        variance = 2 / (size + 2) * mean * (1 - mean)
        _assert_mean(share, mean)
        _assert_mean((share - mean) ** 2, variance)
        assert variance == pytest.approx(bound) if 2 * rank == size else variance < bound


def test_nodes_do_not_count_negative_eigenvalues() -> None:
    """One eigenvalue of a thousand is negative: half of the nodes of the two-point rule are."""
    values = np.append(np.ones(999), -40.0)
    nodes, S = np.linalg.eigh(_lanczos(np.diag(values), np.ones(1000), 2)[0])
    assert (nodes < 0).mean() == 0.5
    assert S[0][nodes < 0] ** 2 == pytest.approx(1 / 1000, rel=1e-9)


def test_smoothing_widens_by_its_own_variance() -> None:
    nodes, weights, width = np.array([-1.0, 0.5, 3.0]), np.array([0.2, 0.5, 0.3]), 0.4
    grid = np.linspace(-6, 8, 4001)  # 12 widths beyond the nodes, and 100 points a width
    bumps = np.exp(-0.5 * ((grid[:, None] - nodes) / width) ** 2) / (width * math.sqrt(2 * math.pi))
    density = bumps @ weights * (grid[1] - grid[0])
    mean = weights @ nodes
    assert density.sum() == pytest.approx(1, rel=EXACT)
    assert density @ grid == pytest.approx(mean, rel=EXACT)
    variance = weights @ (nodes - mean) ** 2
    assert density @ (grid - mean) ** 2 == pytest.approx(variance + width**2, rel=EXACT)


# 14. Curvature on a subset


def test_subsets_spread_the_spectrum() -> None:
    N = 6
    per_sample = np.stack([_hessian(_sample_loss(i), THETA).numpy() for i in range(N)])
    largest, smallest, traces = [], [], []
    for size in range(1, N + 1):
        subsets = [per_sample[list(s)].mean(axis=0) for s in itertools.combinations(range(N), size)]
        values = np.linalg.eigvalsh(np.stack(subsets))
        largest.append(values[:, -1].mean())
        smallest.append(values[:, 0].mean())
        traces.append(values.sum(axis=1).mean())
    # The means over all subsets of a size: strictly, since samples differ.
    assert (np.diff(largest) < 0).all()
    assert (np.diff(smallest) > 0).all()
    np.testing.assert_allclose(traces, traces[-1], rtol=EXACT)
    halves = [per_sample[:3].mean(axis=0), per_sample[3:].mean(axis=0)]
    tops = [np.linalg.eigvalsh(half)[-1] for half in halves]
    assert largest[-1] <= np.mean(tops)


# 15. Batch normalisation


def _normalised_loss(
    w: Tensor, eps: float = 0.0, frozen: bool = False, scale: Tensor | float = 1.0
) -> Tensor:
    """Squared error of two units with batch norm, by batch or by fixed statistics."""
    z = X @ w.view(2, INPUTS).T
    if frozen:
        mean, variance = torch.tensor([0.1, -0.2]).double(), torch.tensor([0.9, 1.4]).double()
    else:
        mean, variance = z.mean(0), z.var(0, correction=0)
    return _half_square(scale * (z - mean) / (variance + eps).sqrt(), Y)


def _scaled_normalised_loss(w_and_scale: Tensor) -> Tensor:
    return _normalised_loss(w_and_scale[:-2], scale=w_and_scale[-2:])


def test_batch_statistics_make_weights_scale_free() -> None:
    w = _normal(2 * INPUTS, seed=7)
    gradient, dense = _gradient(_normalised_loss, w), _hessian(_normalised_loss, w)
    assert float(gradient @ w) == pytest.approx(0, abs=1e-13)
    torch.testing.assert_close(dense @ w, -gradient, rtol=0, atol=1e-12)
    torch.testing.assert_close(_gradient(_normalised_loss, 3 * w), gradient / 3, rtol=0, atol=1e-13)
    torch.testing.assert_close(_hessian(_normalised_loss, 3 * w), dense / 9, rtol=0, atol=1e-13)
    # Beside another parameter only the block of w goes with the square.
    both = torch.cat([w, _normal(2, seed=8)])
    power = torch.tensor([1.0] * len(w) + [0.0] * 2).double()
    mixed = _hessian(_scaled_normalised_loss, both) * 3 ** -(power + power[:, None])
    both = both * 3**power
    torch.testing.assert_close(_hessian(_scaled_normalised_loss, both), mixed, rtol=0, atol=1e-13)
    assert float(mixed[: len(w), len(w) :].abs().max()) > 1e-3
    # With ε only nearly, with frozen statistics not at all.
    near = abs(float(_gradient(lambda t: _normalised_loss(t, eps=1e-3), w) @ w))
    assert 1e-8 < near < 1e-2
    assert abs(float(_gradient(lambda t: _normalised_loss(t, frozen=True), w) @ w)) > 0.1


def test_decay_sets_the_norm_of_scale_free_weights() -> None:
    """Gradients of a fixed length at unit norm, orthogonal to w and over its norm elsewhere."""
    eta, decay, length = 0.1, 0.01, 2.0
    draw = np.random.default_rng(33)
    for first in (0.5, 20.0):
        w = draw.standard_normal(30)
        w *= first / np.linalg.norm(w)
        for _ in range(10_000):
            size = np.linalg.norm(w)
            g = draw.standard_normal(30)
            g -= (g @ w) / size**2 * w
            g *= length / np.linalg.norm(g) / size
            turned = w - eta * g
            w = turned - eta * decay * w
        # The start is forgotten by (1 − ηω)^(4t), and ηω = 1e-3 is the next order.
        assert np.linalg.norm(w) ** 4 == pytest.approx(eta * length**2 / (2 * decay), rel=2e-3)
        rate = eta / np.linalg.norm(w) ** 2
        assert rate == pytest.approx(math.sqrt(2 * eta * decay) / length, rel=2e-3)
        # The direction turns by that rate times the gradient at unit norm.
        cosine = turned @ (turned + eta * g) / np.linalg.norm(turned) / size
        assert math.tan(math.acos(cosine)) == pytest.approx(rate * length, rel=2e-3)


def test_policies_of_batch_norm_have_different_curvature() -> None:
    w = _normal(2 * INPUTS, seed=7)
    z = (X @ w.view(2, INPUTS).T).detach()
    mean, deviation = z.mean(0), z.std(0, correction=0)

    def frozen_at_w(t: Tensor) -> Tensor:
        return _half_square((X @ t.view(2, INPUTS).T - mean) / deviation, Y)

    # Same loss where the statistics were taken, another Hessian.
    assert float(frozen_at_w(w)) == pytest.approx(float(_normalised_loss(w)), rel=EXACT)
    there, here = _hessian(frozen_at_w, w), _hessian(_normalised_loss, w)
    assert (there - here).norm() > 0.1 * there.norm()


def test_frozen_batch_norm_is_part_of_the_layer_before() -> None:
    norm = nn.BatchNorm1d(2).double().eval()
    mean, variance = _normal(2, seed=0), torch.tensor([0.5, 2.0]).double()
    state = {"weight": _normal(2, seed=1), "bias": _normal(2, seed=2)}
    norm.load_state_dict(
        {
            **state,
            "running_mean": mean,
            "running_var": variance,
            "num_batches_tracked": torch.tensor(1),
        }
    )
    weight, bias = _normal(2, INPUTS, seed=8), _normal(2, seed=9)
    scale = state["weight"] / (variance + norm.eps).sqrt()
    folded = F.linear(X, scale[:, None] * weight, scale * (bias - mean) + state["bias"])
    normalised = norm(F.linear(X, weight, bias)).detach()
    torch.testing.assert_close(normalised, folded, rtol=0, atol=1e-13)


# 16. Initialisation


def test_initial_weights_keep_the_second_moment() -> None:
    fan_in, num_units = 50, 40_000
    draw = np.random.default_rng(30)
    x = draw.standard_normal(fan_in)
    for gain, kept in ((2.0, 1.0), (1.0, 0.5)):
        w = math.sqrt(gain / fan_in) * draw.standard_normal((num_units, fan_in))
        _assert_mean(np.maximum(w @ x, 0) ** 2, kept * float(x @ x) / fan_in)
    # U(±a) with a² = 6/(n + n') has variance a²/3 = 2/(n + n').
    limit = math.sqrt(6 / (fan_in + 30))
    weights = nn.init.xavier_uniform_(
        torch.empty(30, fan_in), generator=torch.Generator().manual_seed(0)
    )
    assert 0.99 * limit < float(weights.abs().max()) <= limit
    _assert_mean(weights.double().numpy().ravel() ** 2, 2 / (fan_in + 30))


# 17. Flatness and generalisation


def test_confidence_flattens_the_loss_and_changes_no_decision() -> None:
    x = X[X[:, 0].abs() > 0.3].numpy()
    labels, theta = np.sign(x[:, 0]), np.array([1.0, 0.0, 0.0])
    margin = (labels * (x @ theta)).min()
    assert margin > 0
    tops = []
    for scale in (1.0, 10.0, 100.0):
        z = scale * (x @ theta)
        assert (np.sign(z) == labels).all()
        p = 1 / (1 + np.exp(-z))
        tops.append(np.linalg.eigvalsh((x * (p * (1 - p))[:, None]).T @ x / len(x))[-1])
        assert tops[-1] <= math.exp(-scale * margin) * (x**2).sum(axis=1).max()
    assert tops[0] > 10 * tops[1] > 1000 * tops[2]


# The document


def test_every_test_named_in_the_document_exists_and_none_is_left_out() -> None:
    text = (ROOT / "theory.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/\w+\.py)::(\w+)`", text))
    assert len(re.findall(r"tests/\w+\.py::", text)) == len(
        re.findall(r"`tests/\w+\.py::\w+`", text)
    )
    defined = {
        (path, node.name)
        for path in {path for path, _ in named}
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert named <= defined, f"no such test: {sorted(named - defined)}"
    ours = {name for path, name in defined if path == "tests/test_theory.py"}
    missing = ours - {name for path, name in named if path == "tests/test_theory.py"}
    assert not missing, f"not mentioned in theory.md: {sorted(missing)}"


def test_what_is_cited_is_listed_and_what_is_listed_is_cited() -> None:
    text = (ROOT / "theory.md").read_text(encoding="utf-8")
    body, references = (re.sub(r"\s+", " ", part) for part in text.split("## References\n"))
    listed = re.findall(r"- (\w[^,(]*), [^(]*\((\d{4})\)\.", references)
    assert len(listed) == references.count(" - ")
    # "Chen & Hallman 2022", "Jordan et al. 2023", "Shoemake's (1985)", "*Nesterov* (1983; …)".
    author = r"[A-Z][\w-]+(?: [A-Z]\w+)?"
    others = rf"(?:, {author})*(?:,? & {author})?(?: et al\.)?"
    cited = set(re.findall(rf"({author}){others}(?:'s|\*)? \(?((?:19|20)\d\d)\b", body))
    assert cited == set(listed)


def test_formulas_and_contents_survive_markdown() -> None:
    """A backslash before punctuation, a pair of underscores or a dash may turn into something else.

    Where a formula has been parsed as Markdown before anything sees it as a formula, as on GitHub.
    """
    text = (ROOT / "theory.md").read_text(encoding="utf-8")
    num_formulas = 0
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type != "inline":
            continue
        parts = [child for child in token.children or [] if child.type != "code_inline"]
        shown = "".join("\n" if part.type == "softbreak" else part.content for part in parts)
        source = re.sub(r"`[^`]*`", "", token.content)
        assert source.count("$") % 2 == 0, source
        for formula in re.findall(r"\$\$.+?\$\$|\$[^$]+\$", source, flags=re.DOTALL):
            num_formulas += 1
            assert re.sub(r"\n\s*", "\n", formula) in shown, formula
            assert formula.startswith("$$") or "\n" not in formula, formula
    assert num_formulas > 500
    # GitHub refuses some macros.
    assert not re.findall(r"\\(?:operatorname|mbox|phantom|newcommand|def)\b", text)
    headings = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert sorted(re.findall(r"\]\(#([^)]+)\)", text)) == sorted(anchors)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\(theory\.md#([^)]+)\)", readme)) <= set(anchors)
