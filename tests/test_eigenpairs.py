"""What a search is told: precision of vectors, memory, copies, a place to begin, a second look."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matrices import with_spectrum
from small_networks import NETWORKS, dense_hessian, make
from torch import Tensor

from lgo_cli.curvature.audit import measure_rounding
from lgo_cli.curvature.basis import Basis
from lgo_cli.curvature.eigenpairs import (
    Eigenpairs,
    _clusters,
    _has_top_space,
    _rechecked,
    extreme_eigenpairs,
)
from lgo_cli.curvature.lanczos import Lanczos, Ritz, improved_by_gaps
from lgo_cli.curvature.networks import HessianOperator
from lgo_cli.curvature.operators import DenseOperator, ShiftedOperator
from lgo_cli.curvature.search import Search, Wanted, basis_limit, ranked_errors
from lgo_cli.curvature.trace import estimate_trace
from lgo_cli.errors import MachineError, UsageError
from lgo_cli.objective import Objective
from lgo_cli.progress import SILENT
from lgo_cli.seeding import standard_normal


def of(*values: float, bulk: Tensor) -> Tensor:
    return torch.cat([torch.tensor(values, dtype=torch.float64), bulk.double()])


SPECTRA = {
    "isolated": of(50, 30, 10, -4, bulk=torch.linspace(-1, 1, 116)),
    "clustered": of(10, 9.999, 9.99, -5, bulk=torch.linspace(0, 1, 116)),
    "repeated": of(5, 5, 5, 3, 2, 2, -1, -1, bulk=torch.linspace(-0.3, 0.5, 112)),
    "indefinite": torch.cat([torch.linspace(1, 20, 60), -torch.linspace(1, 40, 60)]),
    "rank-deficient": of(7, 3, 1, -2, bulk=torch.zeros(116)),
    "graded": torch.logspace(-12, 0, 120),
}


def check_bounds(matrix: Tensor, pairs: Eigenpairs, *, cluster: float = 0.0) -> tuple[int, int]:
    """Every interval holds an eigenvalue, none is skipped; how many error estimates hold."""
    truth = torch.linalg.eigvalsh(matrix.double())
    distances = (truth[:, None] - pairs.values).abs().amin(dim=0)
    assert (distances <= pairs.residual_bounds).all()
    k = pairs.top_k
    ranked = torch.cat([truth.flip(0)[:k], truth[: len(pairs.values) - k]])
    errors = (pairs.values - ranked).abs()
    scales = ranked.abs().clamp(min=0.01 * float(truth.abs().max()))
    assert (errors <= 2e-3 * scales + cluster).all()
    return int((errors <= pairs.error_estimates).sum()), len(errors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_bounds_hold_and_none_is_skipped(dtype: torch.dtype) -> None:
    """A part of tests/benchmarks/bounds.py, which goes through 200 seeds."""
    held = total = 0
    for name, values in SPECTRA.items():
        for seed in range(6):
            matrix = with_spectrum(values, seed, dtype)
            wanted = Wanted(4, 2, seed=seed, multiplicity=name == "repeated")
            pairs = extreme_eigenpairs(DenseOperator(matrix), wanted)
            assert pairs.converged
            good, count = check_bounds(matrix, pairs)
            held, total = held + good, total + count
    assert held >= 0.95 * total


def outliers(seed: int) -> Tensor:
    """Twelve random ones above a bulk, in which some pair or other lies close."""
    draw = np.random.default_rng(seed)
    values = np.sort(np.r_[draw.uniform(0, 0.9, 388), draw.uniform(1, 10, 12)])
    return torch.from_numpy(values)


def test_largest_is_not_taken_for_the_next_while_its_residual_stalls() -> None:
    """A part of tests/benchmarks/bounds.py; at two steps in a row, 8 of these ended at another."""
    missed = 0
    for seed in range(100):
        values = outliers(seed)
        pairs = extreme_eigenpairs(DenseOperator(torch.diag(values)), Wanted(1, seed=seed))
        assert pairs.converged
        missed += abs(float(pairs.values[0] / values[-1]) - 1) > 2e-3
    assert missed <= 1


@pytest.mark.parametrize("name", list(NETWORKS))
def test_bounds_hold_on_float32_networks(name: str) -> None:
    model, samples, loss = make(name)
    with Objective(model, samples, loss, dtype=torch.float64) as objective:
        truth = torch.linalg.eigvalsh(dense_hessian(objective))
    with Objective(model, samples, loss) as objective:
        units = measure_rounding(objective, HessianOperator, difference=False).units
        operator = HessianOperator(objective)
        # What any operator is allowed suffices for these; a measured allowance is no less.
        for seed, operator.measured_rounding in ((0, None), (0, units), (1, units), (2, units)):
            pairs = extreme_eigenpairs(operator, Wanted(4, 2, seed=seed))
            assert pairs.converged
            distances = (truth[:, None] - pairs.values).abs().amin(dim=0)
            assert (distances <= pairs.residual_bounds).all()
            # The outermost are those of their rank.
            ends = torch.stack([pairs.largest[0] - truth[-1], pairs.smallest[0] - truth[0]]).abs()
            assert (ends <= pairs.residual_bounds[[0, 4]]).all()


def test_close_eigenvalues_are_passed_over_unless_multiplicity_is_asked_for() -> None:
    """Where the smallest comes up with the largest, a run that wants it too is no longer."""
    missed = {False: 0, True: 0}
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        others = 2.4 * torch.rand(3, generator=generator, dtype=torch.float64)
        outliers = torch.cat([torch.tensor([3.18, 3.13, 3.13 * (1 - 1e-4)]).double(), others])
        values = torch.cat([outliers, -0.98 * outliers, torch.zeros(88, dtype=torch.float64)])
        gradient = values.abs() * torch.randn(100, generator=generator, dtype=torch.float64)
        for multiplicity in missed:
            wanted = Wanted(3, 1, seed=seed, guess=gradient, multiplicity=multiplicity)
            pairs = extreme_eigenpairs(DenseOperator(torch.diag(values)), wanted)
            assert pairs.converged
            missed[multiplicity] += bool((pairs.largest - outliers[:3]).abs().max() > 0.01)
    assert missed[False] >= 3
    assert missed[True] == 0


def test_repeated_eigenvalues_are_found_only_when_asked() -> None:
    matrix = with_spectrum(SPECTRA["repeated"], 0)
    once = extreme_eigenpairs(DenseOperator(matrix), Wanted(3, 1))
    np.testing.assert_allclose(once.largest[:3], [5, 3, 2], rtol=1e-3)
    assert not once.checked_multiplicity
    operator = DenseOperator(matrix)
    all_copies = extreme_eigenpairs(operator, Wanted(4, 2, multiplicity=True))
    np.testing.assert_allclose(all_copies.largest, [5, 5, 5, 3], rtol=1e-3)
    np.testing.assert_allclose(all_copies.smallest, [-1, -1], rtol=1e-3)
    assert all_copies.checked_multiplicity
    assert all_copies.num_matvecs == operator.num_matvecs
    assert all_copies.num_multiplicity_matvecs >= once.num_matvecs
    # The third comes up in a third run, as the second had changed some of them.
    three = extreme_eigenpairs(DenseOperator(matrix), Wanted(3, multiplicity=True))
    np.testing.assert_allclose(three.largest, 5, rtol=1e-3)
    # The copies cannot be told apart, and it is said.
    assert (0, 1, 2) in all_copies.clusters
    assert (4, 5) in all_copies.clusters
    # The space that they span is the eigenspace.
    vectors = all_copies.eigenvectors[:3]
    residual = vectors @ matrix - 5 * vectors
    assert float(residual.norm()) < 0.05


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_a_second_run_finds_of_what_the_first_left_counts_once(dtype: torch.dtype) -> None:
    """A basis that spans all of the space has nothing left behind, and the norm of the matrix."""
    for seed in range(4):
        values = standard_normal(20, seed, "pairs").repeat(2)
        matrix = with_spectrum(values, seed, dtype)
        pairs = extreme_eigenpairs(
            DenseOperator(matrix), Wanted(4, 3, seed=seed, multiplicity=True, max_matvecs=200)
        )
        assert pairs.converged
        assert pairs.process is not None
        assert pairs.process.is_complete
        known = float(matrix.double().square().sum())
        assert pairs.process.squared_norm == pytest.approx(known, rel=1e-6)
        check_bounds(matrix, pairs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_bounds_hold_after_a_second_run_that_restarts(dtype: torch.dtype) -> None:
    """What couples kept vectors to the next is no part of what the first run left behind."""
    for seed in range(6):
        matrix = with_spectrum(standard_normal(40, seed, "plain"), seed, dtype)
        process = Lanczos(DenseOperator(matrix), standard_normal(40, seed, "start"), seed)
        for round_ in range(5):
            for _ in range(8):
                process.step()
            ritz = process.ritz()
            vectors = process.vectors(ritz.coefficients).double()
            residuals = vectors @ matrix.double() - torch.from_numpy(ritz.values)[:, None] * vectors
            assert (residuals.norm(dim=1).numpy() <= ritz.residuals + 1e-13).all()
            # Which is no asymmetry either: all there is of that is rounding.
            assert process.asymmetry <= 100 * torch.finfo(dtype).eps * ritz.scale
            # With what was left behind at its bound, the norm is one too.
            known = float((vectors @ matrix.double()).square().sum())
            assert process.squared_norm >= known * (1 - 1e-5)
            if round_ in (0, 2):  # what is left behind adds up
                process.begin_anew()
            else:
                process.restart(ritz, np.r_[0:4, process.size - 4 : process.size])


def test_what_the_largest_cost_is_told_apart_from_what_the_smallest_did() -> None:
    matrix = with_spectrum(of(50, 30, 10, bulk=torch.linspace(-0.1, 0.1, 117)), 0)
    both = extreme_eigenpairs(DenseOperator(matrix), Wanted(3, 1))
    alone = extreme_eigenpairs(DenseOperator(matrix), Wanted(3, 0))
    assert both.num_largest_matvecs is not None
    # Alone they end at the second step in a row at which all are within their tolerance.
    assert both.num_largest_matvecs == alone.num_matvecs - 1 < both.num_matvecs / 2
    assert alone.num_largest_matvecs is None
    missed = extreme_eigenpairs(DenseOperator(matrix), Wanted(3, 1, max_matvecs=4))
    assert not missed.converged
    assert missed.num_largest_matvecs is None


def test_what_the_largest_cost_is_counted_from_where_they_stay() -> None:
    """The second looks converged long before the largest, which the start hardly sees, comes up."""
    diagonal = torch.tensor([9.0, 5.0, *torch.linspace(-1, 1, 98).tolist()]).double()
    start = torch.full((100,), 0.1, dtype=torch.float64)
    start[:2] = torch.tensor([1e-9, 1.0])
    search, twin = (Lanczos(DenseOperator(torch.diag(diagonal)), start) for _ in range(2))
    with SILENT.task("eigenvalues", None, "products") as task:
        found = Search(search, Wanted(1, 1), 100, 100, task)
        found.run()
    assert found.largest_since is not None
    while twin.num_steps < found.largest_since:
        twin.step()
    assert twin.ritz().values[-1] == pytest.approx(9, rel=1e-3)


def test_ends_are_mirror_images() -> None:
    """The smallest of −H cost what the largest of H cost, and are as good."""
    for seed, k in ((6, 1), (22, 2)):  # where a warm start at the second has to be left
        matrix = torch.diag(outliers(seed)[200:])
        second = torch.eye(200, dtype=torch.float64)[-2:-1]
        for options in ({}, {"warm_start": second}, {"max_basis": 20}, {"multiplicity": True}):
            top = extreme_eigenpairs(DenseOperator(matrix), Wanted(k, 0, seed=seed, **options))
            bottom = extreme_eigenpairs(DenseOperator(-matrix), Wanted(0, k, seed=seed, **options))
            assert bottom.num_matvecs == top.num_matvecs
            np.testing.assert_allclose(bottom.smallest, -top.largest, rtol=1e-10)
            np.testing.assert_allclose(
                bottom.error_estimates, top.error_estimates, rtol=1e-3, atol=1e-12
            )


def test_a_simple_spectrum_costs_one_more_run_to_check() -> None:
    matrix = with_spectrum(SPECTRA["isolated"], 0)
    once = extreme_eigenpairs(DenseOperator(matrix), Wanted(3, 0))
    checked = extreme_eigenpairs(DenseOperator(matrix), Wanted(3, 0, multiplicity=True))
    torch.testing.assert_close(once.values, checked.values, rtol=1e-4, atol=0)
    assert once.num_matvecs <= checked.num_multiplicity_matvecs <= 2 * once.num_matvecs


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("indefinite", torch.float64), ("indefinite", torch.float32), ("edge", torch.float64)],
)
def test_restarts_keep_bounds_and_memory(name: str, dtype: torch.dtype) -> None:
    edge = torch.linspace(0, 1, 120) ** 2
    for seed in range(3):
        matrix = with_spectrum(SPECTRA.get(name, edge), seed, dtype)
        wanted = Wanted(3, 1, seed=seed, max_basis=24, max_matvecs=2000)
        pairs = extreme_eigenpairs(DenseOperator(matrix), wanted)
        assert pairs.converged
        check_bounds(matrix, pairs)
        assert pairs.process is not None
        assert pairs.process.num_steps == pairs.num_matvecs > pairs.process.size
        # One vector more, that of the next step.
        assert len(pairs.process.basis) <= 25
        # Each restart rounds once more; after some 50 of them.
        assert pairs.process.basis.orthogonality() < 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("max_basis", "remedy"),
    [(16, "larger --max-basis"), (None, "larger --rtol, or --dtype float64")],
)
def test_rounding_that_ends_a_run_names_its_remedy(max_basis: int | None, remedy: str) -> None:
    matrix = with_spectrum(torch.linspace(0, 1, 400), 0, torch.float32)
    wanted = Wanted(3, rtol=1.5e-6, max_basis=max_basis, max_matvecs=4000)
    pairs = extreme_eigenpairs(DenseOperator(matrix), wanted)
    assert not pairs.converged
    assert remedy in pairs.warnings[0]


def test_many_restarts_cost_few_digits() -> None:
    """Their roundings are of their own each, and add in squares: 200 are 14, not 200."""
    values = torch.cat([torch.tensor([1.0, 0.8, 0.6]), 0.3 * torch.rand(197).double()])
    matrix = with_spectrum(values, 0, torch.float32)
    process = Lanczos(DenseOperator(matrix), torch.ones(200))
    allowances = []
    for _ in range(200):
        while process.size < 14:
            process.step()
        ritz = process.ritz()
        allowances.append(ritz.rounding)
        vectors = process.vectors(ritz.coefficients[:, -3:]).double()
        errors = vectors @ matrix.double() - torch.from_numpy(ritz.values[-3:])[:, None] * vectors
        assert (errors.norm(dim=1).numpy() <= ritz.residuals[-3:]).all()
        process.restart(ritz, np.arange(7, 14))
    assert allowances[0] < allowances[-1] < 8 * allowances[0]
    each = 4 * torch.finfo(torch.float32).eps  # of a norm of one
    assert process.ritz().rounding >= process.restart_rounding >= 0.99 * 200**0.5 * each


def test_restart_keeps_the_recurrence() -> None:
    matrix = with_spectrum(SPECTRA["isolated"], 0)
    process = Lanczos(DenseOperator(matrix), standard_normal(120, 0, "s"))
    for _ in range(20):
        process.step()
    ritz, keep = process.ritz(), np.r_[np.arange(3), np.arange(14, 20)]
    defect = float(np.linalg.norm(process._defect @ ritz.coefficients[:, keep]))
    process.restart(ritz, keep)
    eps = torch.finfo(torch.float64).eps
    expected = defect + 4 * eps * ritz.scale
    assert process.restart_rounding == pytest.approx(expected, rel=1e-9, abs=0)
    for _ in range(15):
        process.step()
    basis = torch.cat(process.basis.rows())
    held, newest = basis[:-1], basis[-1]
    inside = torch.from_numpy((process.projected + process._defect).T) @ held
    outside = torch.from_numpy(process._pending)[:, None] * newest
    # Rows are products of norm 50 in float64; a restart adds what its combination rounds.
    assert float((held @ matrix - inside - outside).norm(dim=1).max()) < 50 * 200 * 2.3e-16


def test_basis_too_small_for_what_is_wanted() -> None:
    operator = DenseOperator(torch.eye(100))
    with pytest.raises(UsageError, match="--max-basis 9 is too few"):
        basis_limit(operator.dim, operator.dtype, Wanted(3, 1, max_basis=9))
    assert basis_limit(operator.dim, operator.dtype, Wanted(3, 1, max_basis=12)) == 12
    assert basis_limit(operator.dim, operator.dtype, Wanted(3, 1)) >= 100
    assert basis_limit(10**7, torch.float32, Wanted(3, 1)) == 3 * 2**30 // (4 * 10**7) == 80
    assert basis_limit(10**9, torch.float32, Wanted(3, 1)) == 36  # whatever memory that takes


def test_vectors_are_as_precise_as_asked() -> None:
    matrix = with_spectrum(SPECTRA["isolated"], 0)
    loose = extreme_eigenpairs(DenseOperator(matrix), Wanted(3, 0))
    tight = extreme_eigenpairs(DenseOperator(matrix), Wanted(3, 0, vector_rtol=1e-6))
    assert (tight.residual_bounds <= 1e-6 * tight.values).all()
    assert not (loose.residual_bounds <= 1e-6 * loose.values).all()
    assert tight.num_matvecs > loose.num_matvecs
    residuals = tight.eigenvectors @ matrix - tight.values[:, None] * tight.eigenvectors
    assert (residuals.norm(dim=1) <= tight.residual_bounds).all()


def test_warm_start_is_cheaper_and_still_right() -> None:
    values = of(9, 5, 4, bulk=torch.linspace(-1, 3, 197))
    matrix = with_spectrum(values, 0)
    before = extreme_eigenpairs(DenseOperator(matrix), Wanted(1, 0))
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 200, generator=draw, dtype=torch.float64)
    moved = matrix + 0.02 * (noise + noise.T) / 2
    cold = extreme_eigenpairs(DenseOperator(moved), Wanted(1, 0))
    warm = extreme_eigenpairs(DenseOperator(moved), Wanted(1, 0, warm_start=before.eigenvectors))
    assert warm.num_matvecs < cold.num_matvecs
    check_bounds(moved, warm)


def test_warm_start_at_another_eigenvector_does_not_stay_there() -> None:
    """Alone it would be an invariant space, with a residual of zero and the wrong eigenvalue."""
    matrix = torch.diag(torch.tensor([9.0, 5.0, *torch.linspace(-1, 1, 98).tolist()]).double())
    wrong = torch.zeros(1, 100, dtype=torch.float64)
    wrong[0, 1] = 1
    pairs = extreme_eigenpairs(DenseOperator(matrix), Wanted(1, 0, warm_start=wrong))
    assert float(pairs.values[0]) == pytest.approx(9, rel=1e-3)


def test_warm_start_at_the_second_finds_the_largest_in_most_spectra() -> None:
    """Where outliers may lie close: at half of them it stayed before six steps and a margin."""
    missed = 0
    for seed in range(100):
        values = outliers(seed)
        second = torch.zeros(1, len(values), dtype=torch.float64)
        second[0, -2] = 1
        wanted = Wanted(1, warm_start=second, seed=seed)
        pairs = extreme_eigenpairs(DenseOperator(torch.diag(values)), wanted)
        missed += abs(float(pairs.values[0] / values[-1]) - 1) > 2e-3
    assert missed <= 20


@pytest.mark.parametrize("seed", range(5))
def test_guess_that_misses_the_largest_does_not_hide_it(seed: int) -> None:
    """As a gradient may; the random half of the start sees what it misses."""
    diagonal = torch.tensor([9.0, 5.0, *torch.linspace(-1, 1, 998).tolist()]).double()
    guess = torch.zeros(1000, dtype=torch.float64)
    guess[1] = 1
    wanted = Wanted(1, 0, guess=guess, seed=seed)
    pairs = extreme_eigenpairs(DenseOperator(torch.diag(diagonal)), wanted)
    assert float(pairs.values[0]) == pytest.approx(9, rel=1e-3)


def test_guess_in_the_space_of_the_largest_saves_products() -> None:
    values = of(9, 8, 7, 6, 5, bulk=torch.linspace(-1, 2, 1995))
    matrix = with_spectrum(values, 0)
    vectors = torch.linalg.eigh(matrix).eigenvectors
    guess = vectors[:, -5:].sum(dim=1) + 0.1 * vectors[:, :-5].sum(dim=1)
    random = extreme_eigenpairs(DenseOperator(matrix), Wanted(5, 0))
    guessed = extreme_eigenpairs(DenseOperator(matrix), Wanted(5, 0, guess=guess))
    assert guessed.num_matvecs < random.num_matvecs
    check_bounds(matrix, guessed)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_guess_of_one_entry_does_not_cancel_the_start(sign: float) -> None:
    guess = torch.tensor([sign], dtype=torch.float64)
    matrix = torch.tensor([[3.0]], dtype=torch.float64)
    assert extreme_eigenpairs(DenseOperator(matrix), Wanted(1, 0, guess=guess)).values[0] == 3.0


def test_guess_of_zero_is_none() -> None:
    matrix = with_spectrum(of(9, 5, bulk=torch.linspace(-1, 2, 98)), 0)
    pairs = extreme_eigenpairs(DenseOperator(matrix), Wanted(1, 0, guess=torch.zeros(100)))
    check_bounds(matrix, pairs)


def test_warm_start_where_rounding_hides_the_gaps_comes_to_an_end() -> None:
    """What no step lowers need not be waited for: this took all 300 products."""

    class Rounding(DenseOperator):
        """A relative error of 0.3 in each product, another each time."""

        def _product(self, vector: Tensor) -> Tensor:
            product = self.matrix @ vector
            draw = torch.Generator().manual_seed(self.num_matvecs)
            noise = torch.randn(self.dim, generator=draw, dtype=self.dtype)
            return product + 0.3 * product.norm() * noise / noise.norm()

    matrix = with_spectrum(of(9, 5, 4, -2.5, -3, bulk=torch.linspace(-1, 2, 195)), 0)
    wanted = Wanted(1, 1, floor_share=1.0)
    cold = extreme_eigenpairs(Rounding(matrix), wanted)
    wanted = replace(wanted, warm_start=cold.eigenvectors)
    warm = extreme_eigenpairs(Rounding(matrix), wanted)
    assert not warm.converged
    assert warm.num_matvecs < 30
    errors = (warm.values - torch.tensor([9.0, -3.0])).abs()
    assert (errors <= warm.residual_bounds).all()


def test_recheck_sees_the_residuals() -> None:
    matrix = with_spectrum(SPECTRA["isolated"], 0, torch.float32)
    operator = DenseOperator(matrix)
    pairs = extreme_eigenpairs(operator, Wanted(3, 1, recheck=True))
    assert pairs.num_recheck_matvecs == 4
    assert operator.num_matvecs == pairs.num_matvecs + 4
    vectors = pairs.eigenvectors.double()
    seen = (vectors @ matrix.double() - pairs.values[:, None] * vectors).norm(dim=1)
    assert (seen <= pairs.residual_bounds).all()
    assert (pairs.residual_bounds <= seen + 2 * pairs.rounding).all()
    assert pairs.warnings == ()
    check_bounds(matrix, pairs)


def test_recheck_that_finds_worse_says_so() -> None:
    class Drifting(DenseOperator):
        """Another matrix after the run: what was converged is so no longer."""

        def _product(self, vector: Tensor) -> Tensor:
            drift = 0.0 if self.num_matvecs < 30 else 0.5
            return self.matrix @ vector + drift * vector

    matrix = with_spectrum(SPECTRA["isolated"], 0)
    plain = extreme_eigenpairs(DenseOperator(matrix), Wanted(1, 0))
    assert plain.num_matvecs < 30
    operator = Drifting(matrix)
    operator.num_matvecs = 29 - plain.num_matvecs
    pairs = extreme_eigenpairs(operator, Wanted(1, 0, recheck=True))
    assert not pairs.converged
    assert "--recheck found a residual" in pairs.warnings[-1]
    assert pairs.unconverged == pairs.warnings
    # Worse than its bound, and yet within the tolerance: a warning, and no failure.
    loose = extreme_eigenpairs(DenseOperator(matrix), Wanted(1, 0, rtol=1.0))
    operator = Drifting(matrix)
    operator.num_matvecs = 29 - loose.num_matvecs
    pairs = extreme_eigenpairs(operator, Wanted(1, 0, rtol=1.0, recheck=True))
    assert "--recheck found a residual" in pairs.warnings[-1]
    assert pairs.converged
    assert pairs.unconverged == ()
    assert float(pairs.residual_bounds[0]) >= 0.5


def test_recheck_by_hand() -> None:
    """Confirmed, worse by 0.5 than within its tolerance, and in a crowd whose extent stays."""
    matrix = torch.diag(torch.tensor([4.0, 3.0, 2.0], dtype=torch.float64))
    wanted = Wanted(3)
    exact = extreme_eigenpairs(DenseOperator(matrix), wanted)
    before = replace(
        exact,
        values=torch.tensor([4.0, 3.5, 2.0], dtype=torch.float64),
        residual_bounds=torch.full((3,), 0.1, dtype=torch.float64),
        error_estimates=torch.tensor([0.05, 0.05, 0.3], dtype=torch.float64),
        eigenvectors=torch.eye(3, dtype=torch.float64),
        rounding=1e-3,
    )
    for tolerance, missed in ((0.6, False), (0.2, True)):
        after = _rechecked(DenseOperator(matrix), before, wanted, np.full(3, tolerance))
        np.testing.assert_allclose(after.residual_bounds, [1e-3, 0.501, 1e-3])
        np.testing.assert_allclose(after.error_estimates, [1e-3, 0.501, 0.3])
        assert after.num_recheck_matvecs == 3
        assert "a residual 5 times its bound" in after.warnings[0]
        assert bool(after.unconverged) == missed


def test_what_is_told_apart_by_hand() -> None:
    """Intervals that overlap, at one end."""
    values, residuals = np.array([5.0, 4.9, 3.0, 3.0, 3.1]), np.array([0.06, 0.06, 0.01, 0.02, 0.2])
    assert _clusters(values, residuals, 3) == ((0, 1), (3, 4))
    assert _clusters(values, residuals / 2, 3) == ((3, 4),)
    ritz = Ritz(values[:3][::-1], np.eye(3), residuals[:3][::-1], residuals[:3], 0.0)
    assert [_has_top_space(ritz, top_k, 9) for top_k in range(4)] == [True, False, True, False]
    assert _has_top_space(ritz, 3, 3)


def test_search_for_copies_spends_no_more_than_the_limit() -> None:
    matrix = with_spectrum(SPECTRA["repeated"], 0)
    single = extreme_eigenpairs(DenseOperator(matrix), Wanted(2)).num_matvecs
    for limit in (single - 1, single, single + 1):
        wanted = Wanted(2, multiplicity=True, max_matvecs=limit)
        pairs = extreme_eigenpairs(DenseOperator(matrix), wanted)
        assert pairs.num_matvecs == limit
        assert not pairs.converged
        assert "--max-matvecs raises the limit" in pairs.warnings[-1]


def test_projections_of_long_vectors_keep_their_digits() -> None:
    """A sum of four million products in float32 is off by 2e-4."""
    draw = torch.Generator().manual_seed(0)
    basis = Basis(2**22, torch.float32, torch.device("cpu"))
    row = torch.randn(2**22, generator=draw)
    basis.append(row)
    vector = 10 * row / row.norm() + torch.randn(2**22, generator=draw) / 2**11
    expected = basis.rows()[0].double() @ vector.double()
    coefficients = basis.project_out(vector)
    assert abs(float(coefficients / expected) - 1) <= 2e-6
    assert abs(float(basis.rows()[0].double() @ vector.double())) <= 2e-5
    assert basis.orthogonality() <= 2e-6


def test_basis_on_disk_moves_no_bit_and_leaves_no_file(tmp_path: Path) -> None:
    matrix = with_spectrum(SPECTRA["isolated"], 0, torch.float32)
    wanted = Wanted(3, 1, max_basis=16, max_matvecs=1000)
    basis = Basis(120, torch.float32, torch.device("cpu"), tmp_path)
    found = extreme_eigenpairs(DenseOperator(matrix), wanted, basis=basis)
    expected = extreme_eigenpairs(DenseOperator(matrix), wanted)
    assert torch.equal(found.eigenvectors, expected.eigenvectors)
    assert torch.equal(found.residual_bounds, expected.residual_bounds)
    assert found.process is not None
    assert found.process.basis is basis
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_basis_on_the_cpu_for_an_operator_on_a_gpu() -> None:
    """Through restarts, a search for copies and a second look, and with probes beside it."""
    matrix = with_spectrum(SPECTRA["isolated"], 0, torch.float32)
    wanted = Wanted(
        3,
        1,
        max_basis=16,
        max_matvecs=1000,
        multiplicity=True,
        recheck=True,
        guess=matrix[0].cuda(),
    )
    basis = Basis(120, torch.float32, torch.device("cpu"))
    pairs = extreme_eigenpairs(DenseOperator(matrix.cuda()), wanted, basis=basis)
    assert pairs.converged
    assert pairs.eigenvectors.is_cuda
    assert {rows.device.type for rows in basis.rows()} == {"cpu"}
    check_bounds(matrix, pairs)
    assert pairs.process is not None
    trace = estimate_trace(pairs.process, num_total=pairs.process.num_steps + 40)
    assert abs(trace.value - float(matrix.double().trace())) <= 4 * trace.standard_error


def test_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    basis = Basis(10, torch.float32, torch.device("cpu"), tmp_path)
    with pytest.raises(MachineError, match=r"no room for .* of the basis.*No space left"):
        basis.append(torch.ones(10))


def test_disk_of_a_system_that_lays_no_room_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.posix_fallocate")
    basis = Basis(10, torch.float32, torch.device("cpu"), tmp_path)
    for row in torch.eye(10)[:3]:
        basis.append(row.clone())
    (rows,) = basis.rows()
    torch.testing.assert_close(rows, torch.eye(10)[:3])


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_errors_in_a_crowd_are_those_of_the_rank(shift: float) -> None:
    """Of sixty eigenvalues that close, a Ritz value with r of 5e-7 may be any, also shifted."""
    held = total = 0
    for seed in range(10):
        matrix = with_spectrum(SPECTRA["graded"], seed)
        operator = ShiftedOperator(DenseOperator(matrix), shift)
        pairs = extreme_eigenpairs(operator, Wanted(2, 6, seed=seed))
        assert pairs.converged
        good, count = check_bounds(matrix + shift * torch.eye(120, dtype=matrix.dtype), pairs)
        held, total = held + good, total + count
    assert held >= 0.95 * total


def test_ranked_errors_by_hand() -> None:
    values, rounding = np.array([-1e-3, 0.0, 1e-3, 0.5, 1.0]), 1e-6
    spreads = np.array([5e-5, 2e-4, 1e-5, 1e-2, 1e-2])
    ritz = Ritz(values, np.eye(5), spreads + rounding, spreads + rounding, rounding)
    order = np.array([4, 3, 0, 1, 2])
    errors = ranked_errors(ritz, order, 2)
    # The second smallest is five of its residuals from the smallest, the third as far from it.
    expected = [*(spreads[order[:3]] + rounding), 1e-3 + 5e-5 + rounding, 2e-3 + 5e-5 + rounding]
    np.testing.assert_allclose(errors, expected)
    # Apart from the smallest, the third is as far as it is from the second.
    spreads[:2] = 1e-5
    spreads[2] = 2e-4
    ritz = ritz._replace(residuals=spreads + rounding, estimates=spreads + rounding)
    expected = [*(spreads[order[:4]] + rounding), 1e-3 + 1e-5 + rounding]
    np.testing.assert_allclose(ranked_errors(ritz, order, 2), expected)
    # With residuals a tenth of that, all are apart.
    ritz = ritz._replace(residuals=spreads / 10 + rounding, estimates=spreads / 10 + rounding)
    np.testing.assert_array_equal(ranked_errors(ritz, order, 2), ritz.estimates[order])


@pytest.mark.parametrize("seed", [88, 140, 141])
def test_an_eigenvalue_that_the_start_hardly_sees(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 160 seeds, three of the eight that missed an eigenvalue of this spectrum."""
    model, samples, loss = make("embedding with padding")
    with Objective(model, samples, loss, dtype=torch.float64) as objective:
        matrix = torch.diag(torch.linalg.eigvalsh(dense_hessian(objective)))
    wanted = Wanted(4, 2, seed=seed)
    check_bounds(matrix, extreme_eigenpairs(DenseOperator(matrix), wanted))
    monkeypatch.setattr("lgo_cli.curvature.search.STALLED", np.inf)
    with pytest.raises(AssertionError):
        check_bounds(matrix, extreme_eigenpairs(DenseOperator(matrix), wanted))


def test_estimates_by_hand() -> None:
    values, residuals = np.array([0.0, 1.0, 4.0]), np.array([0.1, 0.1, 0.3])
    # Gaps to the outer edge of the neighbour's interval: 0.9; min(0.9, 2.7); 2.9.
    expected = [0.01 / 0.9, min(0.01 / 0.9, 0.02 / 2.7), 0.09 / 2.9]
    # The first two as a group are 2.7 away from the third: Σr²/gap is less than each alone.
    expected[0] = min(expected[0], 0.02 / 2.7)
    np.testing.assert_allclose(improved_by_gaps(values, residuals), expected)
    expected = [error + 0.01 for error in expected]  # of rounding, which no gap makes less
    np.testing.assert_allclose(improved_by_gaps(values, residuals, 0.01), expected)
    # Neighbours closer than their residuals, and a value alone, have the residual itself.
    np.testing.assert_array_equal(
        improved_by_gaps(np.array([0.0, 0.1]), np.array([0.1, 0.1])), [0.1, 0.1]
    )
    assert improved_by_gaps(np.array([3.0]), np.array([0.5])).tolist() == [0.5]


@pytest.mark.parametrize("numbers", [{"top_k": -1}, {"top_k": 2, "bottom_k": -1}])
def test_negative_numbers_of_eigenvalues_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="no number of eigenvalues: -1"):
        Wanted(**numbers)


def test_basis_of_several_blocks_is_a_matrix(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.linalg.qr(torch.randn(100, 70, generator=draw, dtype=torch.float64))[0].T
    basis = Basis(100, torch.float64, torch.device("cpu"))
    for row in rows:
        basis.append(3 * row)
    vector = torch.randn(100, generator=draw, dtype=torch.float64)
    left = vector.clone()
    coefficients = basis.project_out(left, last=8)
    torch.testing.assert_close(coefficients, rows[-8:] @ vector)
    torch.testing.assert_close(left, vector - rows[-8:].T @ coefficients)
    assert basis.orthogonality() < 1e-14
    weights = torch.linalg.qr(torch.randn(70, 40, generator=draw, dtype=torch.float64))[0].T
    basis.replace(weights.numpy())
    torch.testing.assert_close(torch.cat(basis.rows()), weights @ rows)
    basis.append(basis.rows()[0][0].clone())  # of another block, and long before
    assert basis.orthogonality() == pytest.approx(1)
    far = Basis(10, torch.float32, torch.device("meta"), tmp_path)
    assert far.device.type == "cpu"  # where files are mapped
