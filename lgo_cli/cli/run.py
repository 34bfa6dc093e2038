"""`lgo run`: train, hessian, interp and contour in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lgo_cli.cli import options
from lgo_cli.cli.root import app
from lgo_cli.cli.step import carry_out, open_output
from lgo_cli.config import (
    CONFIGS,
    DEFAULT_RUN,
    AnalysisConfig,
    Execution,
    FigureConfig,
    TrainConfig,
)

TablesFile = Annotated[
    Path | None,
    typer.Option(
        help="TOML file with one table of options for each command.",
        rich_help_panel=options.EXECUTION,
        metavar="FILE",
    ),
]

# Default instances, without building the validators that only a real request needs.
_C = TrainConfig.model_construct()
_A = AnalysisConfig.model_construct()
_E = Execution.model_construct()
_F = FigureConfig.model_construct()


@app.command()
def run(
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
    analysis_samples: options.AnalysisSamples = _A.analysis_samples,
    seed: options.Seed = _C.seed,
    out: options.Out = _E.out,
    device: options.Device = _E.device,
    num_threads: options.NumThreads = _E.num_threads,
    memory: options.Memory = _E.memory,
    config: TablesFile = None,
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
    """Train, then hessian, interp and contour, in one directory.

    A --config file has one table for each command: [train], [hessian], [interp], [contour].
    """
    from lgo_cli.cli.request import explicit, options_of_run, put_together
    from lgo_cli.runs import Status

    output = open_output(ctx)
    asked = []
    for command, from_file in options_of_run(config).items():
        cls = CONFIGS[command]
        said = explicit(ctx, cls)
        if command != "train":
            # The analyses take the run's own model, data and loss.
            said = {key: said[key] for key in ("analysis_samples", "seed") if key in said}
        asked.append((*put_together(ctx, cls, from_file, said), from_file))
    directory = asked[0][1].out or DEFAULT_RUN
    # The code that the run names is the code that this very command line named.
    analysis = {"out": None, "resume": False, "trust_code": True, "download_data": False}
    planned: set[str] = set()
    for step, execution, figure, from_file in asked:
        along = getattr(step, "plane", None) or getattr(step, "direction", None) or ""
        if "train" in planned or ("hessian" in planned and "eigen" in along):
            # What it would be asked is not known before what it starts from is there.
            output.say(f"{step.command}: would follow (nothing done: --dry-run)")
            continue
        trains = isinstance(step, TrainConfig)
        with from_file.named(step.command):
            outcome = carry_out(
                output,
                step,
                None if trains else directory,
                execution if trains else execution.model_copy(update=analysis),
                figure,
            )
        output.outcome(outcome, one_line=True)
        if outcome.status is Status.PLANNED:
            planned.add(step.command)
