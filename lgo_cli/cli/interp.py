"""`lgo interp`."""

from __future__ import annotations

import typer

from lgo_cli.cli import options
from lgo_cli.cli.root import app
from lgo_cli.cli.step import run_step
from lgo_cli.config import Execution, FigureConfig, InterpConfig

# Default instances, without building the validators that only a real request needs.
_C = InterpConfig.model_construct()
_E = Execution.model_construct()
_F = FigureConfig.model_construct()


@app.command()
def interp(
    ctx: typer.Context,
    run: options.Run = None,
    to: options.ToEnds = None,
    direction: options.Direction = _C.direction,
    range: options.RangeOption = _C.range,
    num_points: options.NumPoints = _C.num_points,
    matrix: options.Matrix = _C.matrix,
    spherical: options.Spherical = _C.spherical,
    align: options.Align = _C.align,
    repair: options.Repair = _C.repair,
    curve: options.CurveOption = _C.curve,
    num_bends: options.NumBends = _C.num_bends,
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
