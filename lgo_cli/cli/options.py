"""Options that several commands have, each once: its flag, its type and what it means.

Those of one command alone stand with it. There are no defaults: a command takes them from a default
instance of its config, so that the flag, the config field and the manifest key cannot drift apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lgo_cli import config

MODEL_DATA = "Model and data"
TRAINING = "Training"
ANALYSIS = "Analysis"
EXECUTION = "Where and how"
FIGURES = "Figures"
OUTPUT = "What is printed"


def option(panel: str, help_text: str, *flags: str, metavar: str | None = None) -> object:
    """An option with a value, in a panel of the help."""
    return typer.Option(*flags, help=help_text, rich_help_panel=panel, metavar=metavar)


def flag(panel: str, help_text: str, *flags: str) -> object:
    """An option without a value."""
    return typer.Option(*flags, help=help_text, rich_help_panel=panel, metavar="")


Run = Annotated[
    Path | None,
    typer.Argument(
        help="Run directory or checkpoint. (default: outputs)", show_default=False, metavar="RUN"
    ),
]
RunDirectory = Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN")]
RunDirectories = Annotated[
    list[Path], typer.Argument(help="Run directories.", show_default=False, metavar="RUN")
]

# Model and data
Model = Annotated[
    str | None,
    option(
        MODEL_DATA,
        "Name (see lgo models), or file.py:factory, or package.module:factory.",
        metavar="MODEL",
    ),
]
ModelArg = Annotated[
    list[str] | None, option(MODEL_DATA, "Argument of the model; repeatable.", metavar="KEY=VALUE")
]
Dataset = Annotated[
    str | None,
    option(MODEL_DATA, "Name (see lgo datasets), or file.npz, or file.py:factory.", metavar="DATA"),
]
DatasetArg = Annotated[
    list[str] | None,
    option(MODEL_DATA, "Argument of the data set; repeatable.", metavar="KEY=VALUE"),
]
DataRoot = Annotated[
    Path | None,
    option(MODEL_DATA, "Folder that holds the data sets. (default: data)", metavar="DIR"),
]
DownloadData = Annotated[
    bool, flag(MODEL_DATA, "Download the data set if it is not there.", "--download-data")
]
TrainSamples = Annotated[
    int | None, option(MODEL_DATA, "Use only the first N training samples.", metavar="N")
]
Loss = Annotated[
    str | None,
    option(
        MODEL_DATA,
        "cross_entropy, binary_cross_entropy or squared_error (half the squared distance to the "
        "target), or file.py:function, or package.module:function.",
        metavar="LOSS",
    ),
]
LossArg = Annotated[
    list[str] | None, option(MODEL_DATA, "Argument of the loss; repeatable.", metavar="KEY=VALUE")
]
LabelSmoothing = Annotated[
    float | None, option(MODEL_DATA, "Share of the target spread over all classes.")
]

# Training
Epochs = Annotated[int | None, option(TRAINING, "Passes over the data. (default: the recipe's)")]
BatchSize = Annotated[
    int | None, option(TRAINING, "Samples per optimiser step. (default: the recipe's)")
]
Optimizer = Annotated[
    config.OptimizerName | None,
    option(TRAINING, "sgd, adam or adamw. (default: the recipe's)", metavar="NAME"),
]
Lr = Annotated[float | None, option(TRAINING, "Learning rate. (default: the recipe's)")]
Momentum = Annotated[float | None, option(TRAINING, "Of sgd. (default: the recipe's)")]
Nesterov = Annotated[bool, flag(TRAINING, "Nesterov's form of momentum.", "--nesterov")]
WeightDecay = Annotated[
    float | None,
    option(TRAINING, "Coupled for sgd and adam, decoupled for adamw. (default: the recipe's)"),
]
Schedule = Annotated[
    config.Schedule | None,
    option(TRAINING, "constant, cosine or step. (default: the recipe's)", metavar="NAME"),
]
WarmupEpochs = Annotated[int, option(TRAINING, "Epochs over which the rate rises linearly.")]
Augment = Annotated[
    config.Augmentation | None,
    option(
        TRAINING,
        "none, or crop-flip: random crops and mirror images. (default: the recipe's, on CIFAR)",
        metavar="NAME",
    ),
]
Init = Annotated[
    str | None,
    option(
        TRAINING,
        "Run or checkpoint to begin from. (default: random weights, by --seed)",
        metavar="RUN",
    ),
]
SaveEvery = Annotated[
    int | None,
    option(TRAINING, "Optimiser steps between checkpoints that are kept.", metavar="N"),
]
Resume = Annotated[bool, flag(TRAINING, "Go on where training was interrupted.", "--resume")]

# Analysis
AnalysisSamples = Annotated[
    int, option(ANALYSIS, "Measure on the first N training samples.", metavar="N")
]
MicroBatchSize = Annotated[
    int | None, option(ANALYSIS, "Samples per forward pass. (default: from the model)")
]
Dtype = Annotated[config.Dtype, option(ANALYSIS, "Arithmetic of the model.")]
BatchNorm = Annotated[
    config.BatchNormPolicy,
    option(
        ANALYSIS,
        "Statistics away from the run: frozen (its own), recompute (of each point), interpolate "
        "(between checkpoints) or batch (of each micro-batch).",
        metavar="POLICY",
    ),
]
BatchNormSamples = Annotated[
    int | None,
    option(
        ANALYSIS,
        "Recompute them on the first N training samples. (default: --analysis-samples)",
        metavar="N",
    ),
]

# Figures
Format = Annotated[config.FigureFormat, option(FIGURES, "png, pdf or svg.", metavar="NAME")]
Size = Annotated[
    str,
    option(FIGURES, "column (3.4 inches), page (7), or inches such as 5x4.", metavar="WxH"),
]
Dpi = Annotated[int, option(FIGURES, "Pixels per inch: a png, a 3-D surface.", metavar="N")]
ShowCells = Annotated[
    bool,
    flag(
        FIGURES,
        "Dot the measured cells; with --tolerance, draw contour_error too.",
        "--show-cells",
    ),
]

# Where and how
Seed = Annotated[int, option(EXECUTION, "Of everything random.")]
Out = Annotated[
    Path | None,
    option(
        EXECUTION,
        "Where the outputs go. (default: outputs, or beside the checkpoint)",
        "--out",
        "-o",
        "--save-dir",
        metavar="DIR",
    ),
]
Device = Annotated[str, option(EXECUTION, "auto, cpu, cuda or cuda:N.")]
NumThreads = Annotated[
    int | None, option(EXECUTION, "Of the CPU. (default: PyTorch's)", metavar="N")
]
Memory = Annotated[
    str | None,
    option(
        EXECUTION,
        "For graphs kept between products, such as 4GiB. (default: half of the total)",
        metavar="SIZE",
    ),
]
ConfigFile = Annotated[
    Path | None,
    option(EXECUTION, "TOML file of options, or a manifest to run again.", metavar="FILE"),
]
Force = Annotated[
    bool, flag(EXECUTION, "Compute even if up to date; replace files of others.", "--force")
]
DryRun = Annotated[bool, flag(EXECUTION, "Say what would be done, and do nothing.", "--dry-run")]
Strict = Annotated[
    bool, flag(EXECUTION, "Fail (exit 4) if not converged or not finite.", "--strict")
]
TrustCode = Annotated[
    bool,
    flag(EXECUTION, "Run the code that a run names: model, data, loss.", "--trust-code"),
]

# What is printed
Json = Annotated[bool, flag(OUTPUT, "Print the manifest; with --dry-run the request.", "--json")]
Quiet = Annotated[bool, flag(OUTPUT, "Print the manifest's path alone.", "--quiet", "-q")]
Verbose = Annotated[
    bool, flag(OUTPUT, "Say more about what is done and how long it took.", "--verbose", "-v")
]
