"""`lgo train`."""

from __future__ import annotations

import typer

from lgo_cli.cli import options
from lgo_cli.cli.root import app
from lgo_cli.cli.step import run_step
from lgo_cli.config import Execution, FigureConfig, TrainConfig

# Default instances, without building the validators that only a real request needs.
_C = TrainConfig.model_construct()
_E = Execution.model_construct()
_F = FigureConfig.model_construct()


@app.command()
def train(
    ctx: typer.Context,
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
    init: options.Init = _C.init,
    save_every: options.SaveEvery = _C.save_every,
    resume: options.Resume = _E.resume,
    seed: options.Seed = _C.seed,
    out: options.Out = _E.out,
    device: options.Device = _E.device,
    num_threads: options.NumThreads = _E.num_threads,
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
    """Train a model: model.pth, init.pth, state.pth, train.csv, train.png.

    Without any option: an MLP on a synthetic data set, within seconds.
    """
    run_step(ctx, TrainConfig)
