"""`lgo contour`."""

from __future__ import annotations

import typer

from lgo_cli.cli import options
from lgo_cli.cli.root import app
from lgo_cli.cli.step import run_step
from lgo_cli.config import ContourConfig, Execution, FigureConfig

# Default instances, without building the validators that only a real request needs.
_C = ContourConfig.model_construct()
_E = Execution.model_construct()
_F = FigureConfig.model_construct()


@app.command()
def contour(
    ctx: typer.Context,
    run: options.Run = None,
    plane: options.PlaneOption = _C.plane,
    to: options.ToMany = None,
    directions: options.Directions = None,
    normalization: options.NormalizationOption = _C.normalization,
    num_planes: options.NumPlanes = _C.num_planes,
    x_range: options.XRange = _C.x_range,
    y_range: options.YRange = _C.y_range,
    auto_range: options.AutoRange = _C.auto_range,
    resolution: options.Resolution = _C.resolution,
    tolerance: options.Tolerance = _C.tolerance,
    max_cells: options.MaxCells = _C.max_cells,
    convexity: options.ConvexityOption = _C.convexity,
    test: options.Test = _C.test,
    analysis_samples: options.AnalysisSamples = _C.analysis_samples,
    batchnorm: options.BatchNorm = _C.batchnorm,
    batchnorm_samples: options.BatchNormSamples = _C.batchnorm_samples,
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
    shard: options.Shard = _E.shard,
    preview: options.PreviewOption = _E.preview,
    config: options.ConfigFile = None,
    force: options.Force = _E.force,
    dry_run: options.DryRun = _E.dry_run,
    strict: options.Strict = _E.strict,
    trust_code: options.TrustCode = _E.trust_code,
    format: options.Format = _F.format,
    size: options.Size = _F.size,
    dpi: options.Dpi = _F.dpi,
    show_cells: options.ShowCells = _F.show_cells,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Loss on a plane through the run.

    Writes contour.npz, contour_2d.png, contour_3d.png and contour_caption.txt; contour_test,
    contour_convexity, contour_bands and contour_error where asked for.
    """
    run_step(ctx, ContourConfig, run)
