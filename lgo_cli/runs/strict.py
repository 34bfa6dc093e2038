"""What `--strict` makes a failure, of results that are new and of those that are there already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lgo_cli.errors import NumericsError
from lgo_cli.results import ContourResults, HessianResults, InterpResults

if TYPE_CHECKING:
    from lgo_cli.results import Results


def refuse_failed(results: Results) -> None:
    """Refuse an audit that complains, and what did not converge or is not finite.

    Raises:
        NumericsError: on the first that is found.
    """
    if isinstance(results, ContourResults | InterpResults) and results.complaints:
        raise NumericsError("; ".join(results.complaints))
    if not isinstance(results, HessianResults):
        return
    if results.audit is not None and results.audit.complaints:
        raise NumericsError(f"the audit found: {'; '.join(results.audit.complaints)}")
    halves = results.halves
    for trace in (results.trace, *((halves.first.trace, halves.second.trace) if halves else ())):
        if trace is None or trace.converged:
            continue
        if trace.method == "exact":
            raise NumericsError("the exact trace and what probes say of it are too far apart")
        raise NumericsError(
            f"the trace did not converge within {trace.num_probes} probes",
            hint="lgo hessian with a larger --trace-rtol",
        )
    if results.unconverged:
        raise NumericsError("; ".join(results.unconverged))
