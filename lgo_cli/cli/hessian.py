"""`lgo hessian`."""

from __future__ import annotations

from typing import Annotated

import typer

from lgo_cli import config
from lgo_cli.cli import options
from lgo_cli.cli.options import EXECUTION, flag, option
from lgo_cli.cli.root import app
from lgo_cli.cli.step import run_step
from lgo_cli.config import Execution, FigureConfig, HessianConfig

CURVATURE = "Curvature"

Operator = Annotated[
    config.OperatorName,
    option(CURVATURE, "hessian, ggn, fisher or empirical-fisher.", metavar="NAME"),
]
Layers = Annotated[
    list[str] | None,
    option(
        CURVATURE,
        "Only parameters or modules of this name, or pattern (layer3.*); repeatable.",
        metavar="GLOB",
    ),
]
Scaling = Annotated[
    config.Scaling,
    option(
        CURVATURE,
        "none; elementwise: of |w|H|w|, adaptive sharpness; adam: by the run's preconditioner.",
        metavar="KIND",
    ),
]
IncludeWeightDecay = Annotated[
    bool,
    flag(
        CURVATURE, "Add the curvature of the run's coupled weight decay.", "--include-weight-decay"
    ),
]
TopK = Annotated[int, option(CURVATURE, "How many of the largest eigenvalues.", metavar="K")]
BottomK = Annotated[int, option(CURVATURE, "How many of the smallest eigenvalues.", metavar="K")]
Rtol = Annotated[
    float,
    option(CURVATURE, "Stop when each error estimate is below this share of its eigenvalue."),
]
VectorRtol = Annotated[
    float | None,
    option(CURVATURE, "Stop when each residual is too, as eigenvectors need. (default: not asked)"),
]
MaxMatvecs = Annotated[
    int | None,
    option(CURVATURE, "At most so many products on eigenvalues. (default: 300)", metavar="N"),
]
MaxBasis = Annotated[
    int | None,
    option(
        CURVATURE, "Hold at most N vectors, then restart. (default: 3 GiB of them)", metavar="N"
    ),
]
Multiplicity = Annotated[
    bool, flag(CURVATURE, "Search for further copies of repeated eigenvalues.", "--multiplicity")
]
WarmStart = Annotated[
    str | None,
    option(CURVATURE, "Begin from the eigenvectors of another run's lgo hessian.", metavar="RUN"),
]
Recheck = Annotated[
    bool, flag(CURVATURE, "Spend a product on each eigenvalue to see its residual.", "--recheck")
]
Trace = Annotated[
    bool, flag(CURVATURE, "Trace, exact where proved, else estimated; Frobenius norm.", "--trace")
]
TraceRtol = Annotated[
    float, option(CURVATURE, "Stop an estimated trace at this standard error, as a share of it.")
]
TraceMatvecs = Annotated[
    int | None,
    option(CURVATURE, "Spend N products at most on it instead, the basis included.", metavar="N"),
]
Density = Annotated[bool, flag(CURVATURE, "Spectral density (Lanczos quadrature).", "--density")]
PerLayer = Annotated[
    bool, flag(CURVATURE, "Largest eigenvalue and trace of each module's block.", "--per-layer")
]
Halves = Annotated[
    bool, flag(CURVATURE, "Measure again on either half of the samples.", "--halves")
]
Audit = Annotated[
    bool,
    typer.Option(
        "--audit/--no-audit",
        help="Check that products are symmetric, linear and, where smooth, as finite differences, "
        "and that samples do not see each other; name kinks.",
        rich_help_panel=CURVATURE,
    ),
]
BasisDevice = Annotated[
    config.BasisDevice,
    option(EXECUTION, "Where the Krylov basis is held: auto, cpu or disk.", metavar="KIND"),
]

# Default instances, without building the validators that only a real request needs.
_C = HessianConfig.model_construct()
_E = Execution.model_construct()
_F = FigureConfig.model_construct()


@app.command()
def hessian(
    ctx: typer.Context,
    run: options.Run = None,
    operator: Operator = _C.operator,
    layers: Layers = None,
    scaling: Scaling = _C.scaling,
    include_weight_decay: IncludeWeightDecay = _C.include_weight_decay,
    top_k: TopK = _C.top_k,
    bottom_k: BottomK = _C.bottom_k,
    rtol: Rtol = _C.rtol,
    vector_rtol: VectorRtol = _C.vector_rtol,
    max_matvecs: MaxMatvecs = _C.max_matvecs,
    max_basis: MaxBasis = _C.max_basis,
    multiplicity: Multiplicity = _C.multiplicity,
    warm_start: WarmStart = _C.warm_start,
    recheck: Recheck = _C.recheck,
    trace: Trace = _C.trace,
    trace_rtol: TraceRtol = _C.trace_rtol,
    trace_matvecs: TraceMatvecs = _C.trace_matvecs,
    density: Density = _C.density,
    per_layer: PerLayer = _C.per_layer,
    halves: Halves = _C.halves,
    audit: Audit = _C.audit,
    analysis_samples: options.AnalysisSamples = _C.analysis_samples,
    micro_batch_size: options.MicroBatchSize = _C.micro_batch_size,
    dtype: options.Dtype = _C.dtype,
    model: options.Model = _C.model,
    model_arg: options.ModelArg = None,
    dataset: options.Dataset = _C.dataset,
    dataset_arg: options.DatasetArg = None,
    data_root: options.DataRoot = _E.data_root,
    download_data: options.DownloadData = _E.download_data,
    train_samples: options.TrainSamples = _C.train_samples,
    loss: options.Loss = _C.loss,
    loss_arg: options.LossArg = None,
    label_smoothing: options.LabelSmoothing = _C.label_smoothing,
    seed: options.Seed = _C.seed,
    out: options.Out = _E.out,
    device: options.Device = _E.device,
    num_threads: options.NumThreads = _E.num_threads,
    memory: options.Memory = _E.memory,
    basis_device: BasisDevice = _E.basis_device,
    config: options.ConfigFile = None,
    force: options.Force = _E.force,
    dry_run: options.DryRun = _E.dry_run,
    strict: options.Strict = _E.strict,
    trust_code: options.TrustCode = _E.trust_code,
    format: options.Format = _F.format,
    size: options.Size = _F.size,
    dpi: options.Dpi = _F.dpi,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Eigenvalues of the Hessian at both ends of its spectrum, each with a bound.

    Or of the Gauss-Newton or Fisher matrix, of some layers, or scaled; with trace, norm, density.

    Writes hessian.npz and hessian.png.
    """
    run_step(ctx, HessianConfig, run)
