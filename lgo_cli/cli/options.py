"""Every option of every command, once: its flag, its type and what it means.

No defaults here: a command takes them from a default instance of its config, so that the flag, the
config field and the manifest key cannot drift apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lgo_cli import config

MODEL_DATA = "Model and data"
TRAINING = "Training"
ANALYSIS = "Analysis"
CURVATURE = "Curvature"
EXECUTION = "Where and how"
FIGURES = "Figures"
OUTPUT = "What is printed"


def _option(panel: str, help_text: str, *flags: str, metavar: str | None = None) -> object:
    return typer.Option(*flags, help=help_text, rich_help_panel=panel, metavar=metavar)


def _flag(panel: str, help_text: str, *flags: str) -> object:
    """An option without a value."""
    return typer.Option(*flags, help=help_text, rich_help_panel=panel, metavar="")


Run = Annotated[
    Path | None,
    typer.Argument(
        help="Run directory or checkpoint. (default: outputs)", show_default=False, metavar="RUN"
    ),
]

# Model and data
Model = Annotated[
    str | None,
    _option(
        MODEL_DATA,
        "Name (see lgo models), or file.py:factory, or package.module:factory.",
        metavar="MODEL",
    ),
]
ModelArg = Annotated[
    list[str] | None, _option(MODEL_DATA, "Argument of the model; repeatable.", metavar="KEY=VALUE")
]
Dataset = Annotated[
    str | None,
    _option(
        MODEL_DATA, "Name (see lgo datasets), or file.npz, or file.py:factory.", metavar="DATA"
    ),
]
DatasetArg = Annotated[
    list[str] | None,
    _option(MODEL_DATA, "Argument of the data set; repeatable.", metavar="KEY=VALUE"),
]
DataRoot = Annotated[
    Path | None,
    _option(MODEL_DATA, "Folder that holds the data sets. (default: data)", metavar="DIR"),
]
DownloadData = Annotated[
    bool, _flag(MODEL_DATA, "Download the data set if it is not there.", "--download-data")
]
TrainSamples = Annotated[
    int | None, _option(MODEL_DATA, "Use only the first N training samples.", metavar="N")
]
Loss = Annotated[
    config.LossName | None,
    _option(
        MODEL_DATA,
        "cross_entropy, or squared_error: half the squared distance to one-hot.",
        metavar="NAME",
    ),
]
LabelSmoothing = Annotated[
    float | None, _option(MODEL_DATA, "Share of the target spread over all classes.")
]

# Training
Epochs = Annotated[int | None, _option(TRAINING, "Passes over the data. (default: the recipe's)")]
BatchSize = Annotated[
    int | None, _option(TRAINING, "Samples per optimiser step. (default: the recipe's)")
]
Optimizer = Annotated[
    config.OptimizerName | None,
    _option(TRAINING, "sgd, adam or adamw. (default: the recipe's)", metavar="NAME"),
]
Lr = Annotated[float | None, _option(TRAINING, "Learning rate. (default: the recipe's)")]
Momentum = Annotated[float | None, _option(TRAINING, "Of sgd. (default: the recipe's)")]
Nesterov = Annotated[bool, _flag(TRAINING, "Nesterov's form of momentum.", "--nesterov")]
WeightDecay = Annotated[
    float | None,
    _option(TRAINING, "Coupled for sgd and adam, decoupled for adamw. (default: the recipe's)"),
]
Schedule = Annotated[
    config.Schedule | None,
    _option(TRAINING, "constant, cosine or step. (default: the recipe's)", metavar="NAME"),
]
WarmupEpochs = Annotated[int, _option(TRAINING, "Epochs over which the rate rises linearly.")]
Augment = Annotated[
    config.Augmentation | None,
    _option(
        TRAINING,
        "none, or crop-flip: random crops and mirror images. (default: the recipe's, on CIFAR)",
        metavar="NAME",
    ),
]
SaveEvery = Annotated[
    int | None,
    _option(TRAINING, "Optimiser steps between checkpoints that are kept.", metavar="N"),
]
Resume = Annotated[bool, _flag(TRAINING, "Go on where training was interrupted.", "--resume")]

# Analysis
AnalysisSamples = Annotated[
    int, _option(ANALYSIS, "Measure on the first N training samples.", metavar="N")
]
MicroBatchSize = Annotated[
    int | None, _option(ANALYSIS, "Samples per forward pass. (default: from the model)")
]
Dtype = Annotated[config.Dtype, _option(ANALYSIS, "Arithmetic of the model.")]
Operator = Annotated[
    config.OperatorName,
    _option(CURVATURE, "hessian, ggn, fisher or empirical-fisher.", metavar="NAME"),
]
Layers = Annotated[
    list[str] | None,
    _option(
        CURVATURE,
        "Only parameters or modules of this name, or pattern (layer3.*); repeatable.",
        metavar="GLOB",
    ),
]
Scaling = Annotated[
    config.Scaling,
    _option(
        CURVATURE,
        "none; elementwise: of |w|H|w|, adaptive sharpness; adam: by the run's preconditioner.",
        metavar="KIND",
    ),
]
IncludeWeightDecay = Annotated[
    bool,
    _flag(
        CURVATURE, "Add the curvature of the run's coupled weight decay.", "--include-weight-decay"
    ),
]
TopK = Annotated[int, _option(CURVATURE, "How many of the largest eigenvalues.", metavar="K")]
BottomK = Annotated[int, _option(CURVATURE, "How many of the smallest eigenvalues.", metavar="K")]
Rtol = Annotated[
    float,
    _option(CURVATURE, "Stop when each error estimate is below this share of its eigenvalue."),
]
VectorRtol = Annotated[
    float | None,
    _option(
        CURVATURE, "Stop when each residual is too, as eigenvectors need. (default: not asked)"
    ),
]
MaxMatvecs = Annotated[
    int | None,
    _option(CURVATURE, "At most so many products on eigenvalues. (default: 300)", metavar="N"),
]
MaxBasis = Annotated[
    int | None,
    _option(
        CURVATURE, "Hold at most N vectors, then restart. (default: 3 GiB of them)", metavar="N"
    ),
]
Multiplicity = Annotated[
    bool, _flag(CURVATURE, "Search for further copies of repeated eigenvalues.", "--multiplicity")
]
WarmStart = Annotated[
    str | None,
    _option(CURVATURE, "Begin from the eigenvectors of another run's lgo hessian.", metavar="RUN"),
]
Recheck = Annotated[
    bool, _flag(CURVATURE, "Spend a product on each eigenvalue to see its residual.", "--recheck")
]
Trace = Annotated[
    bool, _flag(CURVATURE, "Trace, exact where proved, else estimated; Frobenius norm.", "--trace")
]
TraceRtol = Annotated[
    float, _option(CURVATURE, "Stop an estimated trace at this standard error, as a share of it.")
]
TraceMatvecs = Annotated[
    int | None,
    _option(CURVATURE, "Spend N products at most on it instead, the basis included.", metavar="N"),
]
Density = Annotated[bool, _flag(CURVATURE, "Spectral density (Lanczos quadrature).", "--density")]
PerLayer = Annotated[
    bool, _flag(CURVATURE, "Largest eigenvalue and trace of each module's block.", "--per-layer")
]
Halves = Annotated[
    bool, _flag(CURVATURE, "Measure again on either half of the samples.", "--halves")
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
BatchNorm = Annotated[
    config.BatchNormPolicy,
    _option(
        ANALYSIS,
        "Statistics away from the run: frozen (its own), recompute (of each point), interpolate "
        "(between checkpoints) or batch (of each micro-batch).",
        metavar="POLICY",
    ),
]
BatchNormSamples = Annotated[
    int | None,
    _option(
        ANALYSIS,
        "Recompute them on the first N training samples. (default: --analysis-samples)",
        metavar="N",
    ),
]
ToEnds = Annotated[
    list[str] | None,
    _option(
        ANALYSIS,
        "Other end: a run, a checkpoint, or init; repeatable with --matrix. (default: init)",
        metavar="OTHER",
    ),
]
ToMany = Annotated[
    list[str] | None,
    _option(ANALYSIS, "Other two of the plane: runs, checkpoints or init.", metavar="OTHER"),
]
Direction = Annotated[
    config.DirectionKind | None,
    _option(ANALYSIS, "Go along a random, gradient or eigen direction instead.", metavar="KIND"),
]
RangeOption = Annotated[
    tuple[float, float] | None,
    _option(
        ANALYSIS,
        "Coordinates along the line. (default: -0.5 1.5; -1 1 along a direction)",
        metavar="MIN MAX",
    ),
]
NumPoints = Annotated[int, _option(ANALYSIS, "Points on the path.", metavar="N")]
Matrix = Annotated[
    bool, _flag(ANALYSIS, "Barriers between all pairs of the run and each --to.", "--matrix")
]
Spherical = Annotated[
    bool, _flag(ANALYSIS, "Go along a great circle, the norm changing evenly.", "--spherical")
]
Align = Annotated[
    bool,
    _flag(ANALYSIS, "First match the other end's hidden units to the run's.", "--align"),
]
Repair = Annotated[
    bool,
    _flag(ANALYSIS, "With --align: restore each unit's mean and variance on the way.", "--repair"),
]
CurveOption = Annotated[
    config.CurveKind | None,
    _option(
        ANALYSIS, "Train a path of low loss to the other end: bezier or polychain.", metavar="KIND"
    ),
]
NumBends = Annotated[
    int | None,
    _option(ANALYSIS, "Points between its ends that shape a curve. (default: 1)", metavar="N"),
]
PlaneOption = Annotated[
    config.PlaneKind | None,
    _option(
        ANALYSIS,
        "random, eigen, random+eigen, gradient, pca, checkpoints or file. "
        "(default: random; checkpoints with --to, file with --directions)",
        metavar="KIND",
    ),
]
Directions = Annotated[
    list[str] | None,
    _option(
        ANALYSIS,
        "A .npz with `directions` [2, P], or two state_dicts, given one by one.",
        metavar="FILE",
    ),
]
NormalizationOption = Annotated[
    config.Normalization,
    _option(ANALYSIS, "How random directions are scaled to the weights."),
]
NumPlanes = Annotated[
    int, _option(ANALYSIS, "Random planes to measure, for the band over them.", metavar="K")
]
AutoRange = Annotated[
    float | None,
    _option(
        ANALYSIS,
        "Reach out on each side to where the loss is so many times the centre's.",
        metavar="RATIO",
    ),
]
Tolerance = Annotated[
    float | None,
    _option(
        ANALYSIS,
        "Measure only as many cells as it takes to fill in the rest to this relative error, "
        "such as 0.01. (default: measure all)",
    ),
]
MaxCells = Annotated[
    int | None,
    _option(ANALYSIS, "With --tolerance, N cells at most. (default: no limit)", metavar="N"),
]
Test = Annotated[
    bool, _flag(ANALYSIS, "Measure the surface on as many test samples too.", "--test")
]
ConvexityOption = Annotated[
    int | None,
    _option(
        ANALYSIS,
        "Map |λmin/λmax| of the Hessian on N × N cells; 10 to 40 products each.",
        metavar="N",
    ),
]
XRange = Annotated[
    tuple[float, float] | None,
    _option(ANALYSIS, "Along the first axis. (default: the plane's)", metavar="MIN MAX"),
]
YRange = Annotated[
    tuple[float, float] | None,
    _option(ANALYSIS, "Along the second axis. (default: the plane's)", metavar="MIN MAX"),
]
Resolution = Annotated[str, _option(ANALYSIS, "Cells: 51, or 51x31.", metavar="NX[xNY]")]

# Figures
Format = Annotated[config.FigureFormat, _option(FIGURES, "png, pdf or svg.", metavar="NAME")]
Size = Annotated[
    str,
    _option(FIGURES, "column (3.4 inches), page (7), or inches such as 5x4.", metavar="WxH"),
]
Dpi = Annotated[int, _option(FIGURES, "Pixels per inch: a png, a 3-D surface.", metavar="N")]
ShowCells = Annotated[
    bool,
    _flag(
        FIGURES,
        "Dot the measured cells; with --tolerance, draw contour_error too.",
        "--show-cells",
    ),
]

# Where and how
Shard = Annotated[
    str | None,
    _option(
        EXECUTION,
        "Measure share i of n of the cells; the last of n processes assembles the surface.",
        metavar="i/n",
    ),
]
PreviewOption = Annotated[
    bool, _flag(EXECUTION, "Draw .lgo/contour_preview.png while cells come in.", "--preview")
]
Seed = Annotated[int, _option(EXECUTION, "Of everything random.")]
Out = Annotated[
    Path | None,
    _option(
        EXECUTION,
        "Where the outputs go. (default: outputs, or beside the checkpoint)",
        "--out",
        "-o",
        "--save-dir",
        metavar="DIR",
    ),
]
Device = Annotated[str, _option(EXECUTION, "auto, cpu, cuda or cuda:N.")]
NumThreads = Annotated[
    int | None, _option(EXECUTION, "Of the CPU. (default: PyTorch's)", metavar="N")
]
Memory = Annotated[
    str | None,
    _option(
        EXECUTION,
        "For graphs kept between products, such as 4GiB. (default: half of the total)",
        metavar="SIZE",
    ),
]
BasisDevice = Annotated[
    config.BasisDevice,
    _option(EXECUTION, "Where the Krylov basis is held: auto, cpu or disk.", metavar="KIND"),
]
ConfigFile = Annotated[
    Path | None,
    _option(EXECUTION, "TOML file of options, or a manifest to run again.", metavar="FILE"),
]
Force = Annotated[
    bool, _flag(EXECUTION, "Compute even if up to date; replace files of others.", "--force")
]
DryRun = Annotated[bool, _flag(EXECUTION, "Say what would be done, and do nothing.", "--dry-run")]
Strict = Annotated[
    bool, _flag(EXECUTION, "Fail (exit 4) if not converged or not finite.", "--strict")
]
TrustCode = Annotated[
    bool, _flag(EXECUTION, "Run the model's and data's code that a run names.", "--trust-code")
]

# What is printed
Json = Annotated[bool, _flag(OUTPUT, "Print the manifest; with --dry-run the request.", "--json")]
Quiet = Annotated[bool, _flag(OUTPUT, "Print the manifest's path alone.", "--quiet", "-q")]
Verbose = Annotated[
    bool, _flag(OUTPUT, "Say more about what is done and how long it took.", "--verbose", "-v")
]
