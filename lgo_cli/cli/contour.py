"""`lgo contour`."""

from __future__ import annotations

from typing import Annotated

import typer

from lgo_cli import config
from lgo_cli.cli import options
from lgo_cli.cli.options import ANALYSIS, EXECUTION, flag, option
from lgo_cli.cli.root import app
from lgo_cli.cli.step import run_step
from lgo_cli.config import ContourConfig, Execution, FigureConfig

ToMany = Annotated[
    list[str] | None,
    option(ANALYSIS, "Other two of the plane: runs, checkpoints or init.", metavar="OTHER"),
]
PlaneOption = Annotated[
    config.PlaneKind | None,
    option(
        ANALYSIS,
        "random, eigen, random+eigen, gradient, pca, checkpoints or file. "
        "(default: random; checkpoints with --to, file with --directions)",
        metavar="KIND",
    ),
]
Directions = Annotated[
    list[str] | None,
    option(
        ANALYSIS,
        "A .npz with `directions` [2, P], or two state_dicts, given one by one.",
        metavar="FILE",
    ),
]
NormalizationOption = Annotated[
    config.Normalization,
    option(ANALYSIS, "How random directions are scaled to the weights."),
]
NumPlanes = Annotated[
    int, option(ANALYSIS, "Random planes to measure, for the band over them.", metavar="K")
]
AutoRange = Annotated[
    float | None,
    option(
        ANALYSIS,
        "Reach out on each side to where the loss is so many times the centre's.",
        metavar="RATIO",
    ),
]
Tolerance = Annotated[
    float | None,
    option(
        ANALYSIS,
        "Measure only as many cells as it takes to fill in the rest to this relative error, "
        "such as 0.01. (default: measure all)",
    ),
]
MaxCells = Annotated[
    int | None,
    option(ANALYSIS, "With --tolerance, N cells at most. (default: no limit)", metavar="N"),
]
Test = Annotated[bool, flag(ANALYSIS, "Measure the surface on as many test samples too.", "--test")]
ConvexityOption = Annotated[
    int | None,
    option(
        ANALYSIS,
        "Map |λmin/λmax| of the Hessian on N × N cells; 10 to 40 products each.",
        metavar="N",
    ),
]
XRange = Annotated[
    tuple[float, float] | None,
    option(ANALYSIS, "Along the first axis. (default: the plane's)", metavar="MIN MAX"),
]
YRange = Annotated[
    tuple[float, float] | None,
    option(ANALYSIS, "Along the second axis. (default: the plane's)", metavar="MIN MAX"),
]
Resolution = Annotated[str, option(ANALYSIS, "Cells: 51, or 51x31.", metavar="NX[xNY]")]
Shard = Annotated[
    str | None,
    option(
        EXECUTION,
        "Measure share i of n of the cells; the last of n processes assembles the surface.",
        metavar="i/n",
    ),
]
PreviewOption = Annotated[
    bool, flag(EXECUTION, "Draw .lgo/contour_preview.png while cells come in.", "--preview")
]

# Default instances, without building the validators that only a real request needs.
_C = ContourConfig.model_construct()
_E = Execution.model_construct()
_F = FigureConfig.model_construct()


@app.command()
def contour(
    ctx: typer.Context,
    run: options.Run = None,
    plane: PlaneOption = _C.plane,
    to: ToMany = None,
    directions: Directions = None,
    normalization: NormalizationOption = _C.normalization,
    num_planes: NumPlanes = _C.num_planes,
    x_range: XRange = _C.x_range,
    y_range: YRange = _C.y_range,
    auto_range: AutoRange = _C.auto_range,
    resolution: Resolution = _C.resolution,
    tolerance: Tolerance = _C.tolerance,
    max_cells: MaxCells = _C.max_cells,
    convexity: ConvexityOption = _C.convexity,
    test: Test = _C.test,
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
    loss_arg: options.LossArg = None,
    label_smoothing: options.LabelSmoothing = _C.label_smoothing,
    seed: options.Seed = _C.seed,
    out: options.Out = _E.out,
    device: options.Device = _E.device,
    num_threads: options.NumThreads = _E.num_threads,
    memory: options.Memory = _E.memory,
    shard: Shard = _E.shard,
    preview: PreviewOption = _E.preview,
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
