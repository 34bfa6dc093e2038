"""`lgo hessian`."""

from __future__ import annotations

import typer

from lgo_cli.cli import options
from lgo_cli.cli.root import app
from lgo_cli.cli.step import run_step
from lgo_cli.config import Execution, FigureConfig, HessianConfig

# Default instances, without building the validators that only a real request needs.
_C = HessianConfig.model_construct()
_E = Execution.model_construct()
_F = FigureConfig.model_construct()


@app.command()
def hessian(
    ctx: typer.Context,
    run: options.Run = None,
    operator: options.Operator = _C.operator,
    layers: options.Layers = None,
    scaling: options.Scaling = _C.scaling,
    include_weight_decay: options.IncludeWeightDecay = _C.include_weight_decay,
    top_k: options.TopK = _C.top_k,
    bottom_k: options.BottomK = _C.bottom_k,
    rtol: options.Rtol = _C.rtol,
    vector_rtol: options.VectorRtol = _C.vector_rtol,
    max_matvecs: options.MaxMatvecs = _C.max_matvecs,
    max_basis: options.MaxBasis = _C.max_basis,
    multiplicity: options.Multiplicity = _C.multiplicity,
    warm_start: options.WarmStart = _C.warm_start,
    recheck: options.Recheck = _C.recheck,
    trace: options.Trace = _C.trace,
    trace_rtol: options.TraceRtol = _C.trace_rtol,
    trace_matvecs: options.TraceMatvecs = _C.trace_matvecs,
    density: options.Density = _C.density,
    per_layer: options.PerLayer = _C.per_layer,
    halves: options.Halves = _C.halves,
    audit: options.Audit = _C.audit,
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
    label_smoothing: options.LabelSmoothing = _C.label_smoothing,
    seed: options.Seed = _C.seed,
    out: options.Out = _E.out,
    device: options.Device = _E.device,
    num_threads: options.NumThreads = _E.num_threads,
    memory: options.Memory = _E.memory,
    basis_device: options.BasisDevice = _E.basis_device,
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
