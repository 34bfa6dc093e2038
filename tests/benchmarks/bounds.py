"""Whether printed bounds hold, over many seeds: the long form of tests/test_eigenpairs.py.

    OMP_NUM_THREADS=1 python tests/benchmarks/bounds.py [--seeds 200]

Prints one JSON line for each spectrum and network: residual intervals without an eigenvalue (none
may be), ranks that were skipped (none), the share of error estimates and of two-standard-error
intervals of the trace that hold (95 %), products.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from small_networks import NETWORKS, dense_hessian, fit, make
from test_eigenpairs import SPECTRA, with_spectrum

from lgo_cli.curvature.audit import measure_rounding
from lgo_cli.curvature.eigenpairs import extreme_eigenpairs
from lgo_cli.curvature.networks import HessianOperator
from lgo_cli.curvature.operators import DenseOperator, Operator
from lgo_cli.curvature.search import Wanted
from lgo_cli.curvature.trace import estimate_trace
from lgo_cli.objective import Objective


class Tally:
    """Counts over seeds of one case."""

    def __init__(self, truth: torch.Tensor) -> None:
        self.truth = truth
        self.outside = self.skipped = self.estimates = self.total = 0
        self.traces: list[bool] = []
        self.products: list[int] = []

    def add(self, operator: Operator, seed: int, *, multiplicity: bool = False) -> None:
        wanted = Wanted(4, 2, seed=seed, multiplicity=multiplicity)
        pairs = extreme_eigenpairs(operator, wanted)
        truth = self.truth
        distances = (truth[:, None] - pairs.values).abs().amin(dim=0)
        ranked = torch.cat([truth.flip(0)[:4], truth[:2]])
        errors = (pairs.values - ranked).abs()
        scales = ranked.abs().clamp(min=0.01 * float(truth.abs().max()))
        self.outside += int((distances > pairs.residual_bounds).sum())
        self.skipped += int((errors > 2e-3 * scales).sum())
        self.estimates += int((errors <= pairs.error_estimates).sum())
        self.total += len(errors)
        self.products.append(pairs.num_matvecs)
        assert pairs.process is not None
        trace = estimate_trace(pairs.process, num_total=pairs.process.num_steps + 30, seed=seed)
        error = abs(trace.value - float(truth.sum()))
        # A complete or exhausted basis has no error but rounding.
        rounding = 1e-5 * float(truth.abs().sum())
        self.traces.append(error <= 2 * trace.standard_error + rounding)

    def line(self, name: str) -> str:
        return json.dumps(
            {
                "case": name, "seeds": len(self.products), "intervals_without": self.outside,
                "skipped": self.skipped, "estimates_hold": self.estimates / self.total,
                "traces_hold": statistics.fmean(self.traces),
                "products": statistics.fmean(self.products),
            }
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200)
    seeds = range(parser.parse_args().seeds)
    for name, values in SPECTRA.items():
        for dtype in (torch.float64, torch.float32):
            total = None
            for seed in seeds:
                matrix = with_spectrum(values, seed, dtype)
                truth = torch.linalg.eigvalsh(matrix.double())
                total = total or Tally(truth)
                total.truth = truth
                total.add(DenseOperator(matrix), seed, multiplicity=name == "repeated")
            assert total is not None
            print(total.line(f"{name}, {dtype}"), flush=True)
    for name in NETWORKS:
        for num_steps in (0, 100, 1500):
            model, samples, loss = make(name)
            fit(model, samples, loss, num_steps)
            with Objective(model, samples, loss, dtype=torch.float64) as objective:
                total = Tally(torch.linalg.eigvalsh(dense_hessian(objective)))
            with Objective(model, samples, loss) as objective:
                rounding = measure_rounding(objective, HessianOperator, difference=False)
                operator = HessianOperator(objective)
                operator.measured_rounding = rounding.units or 0.0
                # Its Hessian is that of one output, once for each of them.
                repeated = name == "linear, squared error"
                for seed in range(max(1, len(seeds) // 10)):
                    total.add(operator, seed, multiplicity=repeated)
            print(total.line(f"{name} in float32 after {num_steps} steps"), flush=True)


if __name__ == "__main__":
    main()
