"""`lgo interp`."""

from __future__ import annotations

from typing import Annotated

import typer

from lgo_cli import config
from lgo_cli.cli import options
from lgo_cli.cli.options import ANALYSIS, flag, option
from lgo_cli.cli.root import app
from lgo_cli.cli.step import run_step
from lgo_cli.config import Execution, FigureConfig, InterpConfig

ToEnds = Annotated[
    list[str] | None,
    option(
        ANALYSIS,
        "Other end: a run, a checkpoint, or init; repeatable with --matrix. (default: init)",
        metavar="OTHER",
    ),
]
Direction = Annotated[
    config.DirectionKind | None,
    option(ANALYSIS, "Go along a random, gradient or eigen direction instead.", metavar="KIND"),
]
RangeOption = Annotated[
    tuple[float, float] | None,
    option(
        ANALYSIS,
        "Coordinates along the line. (default: -0.5 1.5; -1 1 along a direction)",
        metavar="MIN MAX",
    ),
]
NumPoints = Annotated[int, option(ANALYSIS, "Points on the path.", metavar="N")]
Matrix = Annotated[
    bool, flag(ANALYSIS, "Barriers between all pairs of the run and each --to.", "--matrix")
]
Spherical = Annotated[
    bool, flag(ANALYSIS, "Go along a great circle, the norm changing evenly.", "--spherical")
]
Align = Annotated[
    bool,
    flag(ANALYSIS, "First match the other end's hidden units to the run's.", "--align"),
]
Repair = Annotated[
    bool,
    flag(ANALYSIS, "With --align: restore each unit's mean and variance on the way.", "--repair"),
]
CurveOption = Annotated[
    config.CurveKind | None,
    option(
        ANALYSIS, "Train a path of low loss to the other end: bezier or polychain.", metavar="KIND"
    ),
]
NumBends = Annotated[
    int | None,
    option(ANALYSIS, "Points between its ends that shape a curve. (default: 1)", metavar="N"),
]

# Default instances, without building the validators that only a real request needs.
_C = InterpConfig.model_construct()
_E = Execution.model_construct()
_F = FigureConfig.model_construct()


@app.command()
def interp(
    ctx: typer.Context,
    run: options.Run = None,
    to: ToEnds = None,
    direction: Direction = _C.direction,
    range: RangeOption = _C.range,
    num_points: NumPoints = _C.num_points,
    matrix: Matrix = _C.matrix,
    spherical: Spherical = _C.spherical,
    align: Align = _C.align,
    repair: Repair = _C.repair,
    curve: CurveOption = _C.curve,
    num_bends: NumBends = _C.num_bends,
    epochs: options.Epochs = _C.epochs,
    batch_size: options.BatchSize = _C.batch_size,
    optimizer: options.Optimizer = _C.optimizer,
    lr: options.Lr = _C.lr,
    momentum: options.Momentum = _C.momentum,
    nesterov: options.Nesterov = _C.nesterov,
    weight_decay: options.WeightDecay = _C.weight_decay,
    schedule: options.Schedule = _C.schedule,
    warmup_epochs: options.WarmupEpochs = _C.warmup_epochs,
    augment: options.Augment = _C.augment,
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
    """Loss and accuracy along a path: to another checkpoint, or along a direction.

    Writes interp.npz and interp_1d.png, or with --matrix interp_matrix.png. The training options
    are those of --curve.
    """
    run_step(ctx, InterpConfig, run)
