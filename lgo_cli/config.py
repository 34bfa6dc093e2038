"""What a user may ask of each command: names, types, ranges and defaults.

A field has the same name here, in a `--config` file, in the manifest and, with dashes for
underscores, on the command line. `None` means automatic: the model's recipe, the run that is
analysed or the plane decides, and the result says what it became.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    field_validator,
    model_validator,
)

from lgo_cli.errors import UsageError
from lgo_cli.files import hashable_json

Command = Literal["train", "hessian", "interp", "contour"]
Arguments = Annotated[dict[str, JsonValue], AfterValidator(hashable_json)]
MAX_COORDINATE = 1e38


def _check_range(value: tuple[float, float]) -> tuple[float, float]:
    if not value[0] < value[1]:
        raise ValueError(f"needs MIN < MAX, got {value[0]:g} {value[1]:g}")
    if max(map(abs, value)) > MAX_COORDINATE:
        raise ValueError(f"reaches beyond {MAX_COORDINATE:g}, what float32 can hold")
    return value


def _as_tuple(value: object) -> object:
    listed = [value] if isinstance(value, str | Path) else value
    if not isinstance(listed, list | tuple):
        return value
    return tuple(str(each) if isinstance(each, Path) else each for each in listed)


Finite = Annotated[float, Field(allow_inf_nan=False)]
Range = Annotated[tuple[Finite, Finite], BeforeValidator(_as_tuple), AfterValidator(_check_range)]

# Every choice of names once: options, results and the library take them from here.
OptimizerName = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "cosine", "step"]
Augmentation = Literal["none", "crop-flip"]
Dtype = Literal["float32", "float64"]
OperatorName = Literal["hessian", "ggn", "fisher", "empirical-fisher"]
Scaling = Literal["none", "elementwise", "adam"]
DirectionKind = Literal["random", "gradient", "eigen"]
CurveKind = Literal["bezier", "polychain"]
PlaneKind = Literal["random", "eigen", "pca", "checkpoints", "gradient", "random+eigen", "file"]
Normalization = Literal["filter", "layer", "none"]
BatchNormPolicy = Literal["frozen", "recompute", "interpolate", "batch"]
BasisDevice = Literal["auto", "cpu", "disk"]
FigureFormat = Literal["png", "pdf", "svg"]

Count = Annotated[int, Field(ge=1)]
MOST = 1e30
"""Of a rate: PyTorch multiplies it in float32, and one that this cannot hold is an error there."""

Rate = Annotated[float, Field(ge=0, le=MOST, allow_inf_nan=False)]
PositiveRate = Annotated[float, Field(gt=0, le=MOST, allow_inf_nan=False)]
UnitInterval = Annotated[float, Field(ge=0, lt=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
"""What may be named several times; one alone needs no list."""


class Strict(BaseModel):
    """Base of everything that is written to or read from JSON."""

    # Validators are built when a model is first used: `lgo --help` uses few of them.
    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        ser_json_inf_nan="strings",
        defer_build=True,
    )


DEFAULT_RUN = Path("outputs")
"""Where training goes, and analyses look, if nothing is said."""


class StepConfig(Strict):
    """What every command takes that determines its numbers."""

    command: ClassVar[Command]

    model: str | None = None
    model_arg: Arguments = {}
    dataset: str | None = None
    dataset_arg: Arguments = {}
    train_samples: Count | None = None
    loss: str | None = None
    loss_arg: Arguments = {}
    label_smoothing: UnitInterval | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


OBJECTIVE_FIELDS = tuple(name for name in StepConfig.model_fields if name != "seed")
"""What training and its analyses were asked alike, if their losses are of the same."""


class RecipeConfig(StepConfig):
    """How to go down the loss. What is `None` comes from the model's published recipe."""

    epochs: Annotated[int, Field(ge=0)] | None = None
    batch_size: Count | None = None
    optimizer: OptimizerName | None = None
    lr: PositiveRate | None = None
    momentum: UnitInterval | None = None
    nesterov: bool = False
    weight_decay: Rate | None = None
    schedule: Schedule | None = None
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    augment: Augmentation | None = None


class TrainConfig(RecipeConfig):
    """`lgo train`."""

    command = "train"

    model: str = "mlp"
    dataset: str = "synthetic"
    loss: str = "cross_entropy"
    label_smoothing: UnitInterval = 0.0
    init: str | None = None
    save_every: Count | None = None


class AnalysisConfig(StepConfig):
    """What every analysis takes. Model, data and loss are the run's unless said here."""

    analysis_samples: Count = 1024
    micro_batch_size: Count | None = None
    dtype: Dtype = "float32"


class HessianConfig(AnalysisConfig):
    """`lgo hessian`."""

    command = "hessian"

    operator: OperatorName = "hessian"
    layers: Names = ()
    scaling: Scaling = "none"
    include_weight_decay: bool = False
    top_k: Annotated[int, Field(ge=0)] = 10
    bottom_k: Annotated[int, Field(ge=0)] = 1
    rtol: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    vector_rtol: Annotated[float, Field(gt=0, lt=1)] | None = None
    max_matvecs: Count | None = None
    max_basis: Count | None = None
    multiplicity: bool = False
    warm_start: str | None = None
    recheck: bool = False
    trace: bool = False
    trace_rtol: Annotated[float, Field(gt=0, lt=1)] = 0.01
    trace_matvecs: Annotated[int, Field(ge=4)] | None = None
    density: bool = False
    per_layer: bool = False
    halves: bool = False
    audit: bool = True

    @property
    def wants_trace(self) -> bool:
        """Whether a trace is asked for; shares of layers are shares of the same products' norm."""
        return self.trace or self.trace_matvecs is not None or self.per_layer


class LandscapeConfig(AnalysisConfig):
    """What `lgo interp` and `lgo contour` share, which leave the run's own point."""

    batchnorm: BatchNormPolicy = "frozen"
    batchnorm_samples: Count | None = None

    @model_validator(mode="after")
    def _check_batchnorm(self) -> Self:
        if self.batchnorm_samples is not None and self.batchnorm != "recompute":
            raise ValueError("--batchnorm-samples goes with --batchnorm recompute")
        return self


class InterpConfig(LandscapeConfig, RecipeConfig):
    """`lgo interp`: to another checkpoint or several, or along a direction.

    How to train is for a curve alone, and refused without one, as `runs.exclusive` says what goes
    with what.
    """

    command = "interp"

    to: Names = ()
    direction: DirectionKind | None = None
    range: Range | None = None
    num_points: Annotated[int, Field(ge=2)] = 41
    matrix: bool = False
    spherical: bool = False
    align: bool = False
    repair: bool = False
    curve: CurveKind | None = None
    num_bends: Count | None = None


class ContourConfig(LandscapeConfig):
    """`lgo contour`."""

    command = "contour"

    plane: PlaneKind | None = None
    to: Names = ()
    directions: Names = ()
    normalization: Normalization = "filter"
    num_planes: Count = 1
    x_range: Range | None = None
    y_range: Range | None = None
    auto_range: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    resolution: str = "51x51"
    tolerance: Annotated[float, Field(gt=0, lt=1)] | None = None
    # What the first cells and a check take, and a grid that is too small to fill in.
    max_cells: Annotated[int, Field(ge=72)] | None = None
    convexity: Annotated[int, Field(ge=2)] | None = None
    test: bool = False

    @field_validator("resolution", mode="before")
    @classmethod
    def _normalise_resolution(cls, value: object) -> str:
        match = re.fullmatch(r"(\d+)(?:x(\d+))?", str(value))  # a file may say 51 without quotes
        if match is None:
            raise ValueError("must be like 51 or 51x31")
        nx, ny = int(match[1]), int(match[2] or match[1])
        if not 2 <= min(nx, ny) <= max(nx, ny) <= 99_999:
            raise ValueError("needs at least 2 points along each axis, and at most 99,999")
        return f"{nx}x{ny}"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.to and self.directions:
            raise ValueError("--to and --directions each name a plane: give one of them")
        kind = self.kind
        if kind == "checkpoints" and len(self.to) != 2:
            raise ValueError(
                "a plane through checkpoints needs two: --to A --to B, beside the run itself"
            )
        if kind == "file" and not self.directions:
            raise ValueError("a plane from a file needs the file: --directions FILE")
        if self.to and kind != "checkpoints":
            raise ValueError(f"--to does not go with --plane {kind}")
        if self.directions and kind != "file":
            raise ValueError(f"--directions does not go with --plane {kind}")
        drawn = kind in ("random", "gradient", "random+eigen")
        for bounds in (self.x_range, self.y_range):
            if self.num_planes > 1 and bounds is not None and not bounds[0] < 0 < bounds[1]:
                raise ValueError("--num-planes needs the centre inside the ranges")
        if self.num_planes > 1 and not drawn:
            raise ValueError(f"--num-planes draws random directions: --plane {kind} has none")
        if self.normalization != "filter" and not drawn:
            raise ValueError(f"--normalization is of random directions: --plane {kind} has none")
        if self.max_cells is not None and self.tolerance is None:
            raise UsageError("--max-cells goes with --tolerance", hint="--tolerance 0.01, or so")
        if self.auto_range is not None and (self.x_range or self.y_range):
            raise ValueError("--auto-range finds the ranges: give no --x-range or --y-range")
        return self

    @property
    def kind(self) -> PlaneKind:
        """The plane's kind, also where it follows from what else is said."""
        implied: PlaneKind = "file" if self.directions else "checkpoints" if self.to else "random"
        return self.plane or implied

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of columns and rows, (nx, ny)."""
        nx, ny = self.resolution.split("x")
        return int(nx), int(ny)


CONFIGS: dict[str, type[StepConfig]] = {
    config.command: config for config in (TrainConfig, HessianConfig, InterpConfig, ContourConfig)
}


FIGURE_WIDTHS = {"column": 3.4, "page": 7.0}
"""In inches: of a column, and of the text, of a paper of two columns."""


class FigureConfig(Strict):
    """How figures are written. Changing it redraws them from the `.npz` without computing."""

    format: FigureFormat = "png"
    size: str = "column"
    dpi: Annotated[int, Field(ge=50, le=1200)] = 300
    show_cells: bool = False

    @field_validator("size")
    @classmethod
    def _is_size(cls, value: str) -> str:
        if value in FIGURE_WIDTHS:
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)", value)
        if match is None or not all(3 <= float(side) <= 20 for side in match.groups()):
            raise ValueError("must be column, page, or width and height in inches (3 to 20): 5x4")
        return value

    @property
    def inches(self) -> tuple[float, float | None]:
        """Width and height; without a height, each kind of figure has its own."""
        if self.size in FIGURE_WIDTHS:
            return FIGURE_WIDTHS[self.size], None
        width, height = self.size.split("x")
        return float(width), float(height)


class Execution(Strict):
    """How and where a command runs; nothing of the request. From Python a path may be a string."""

    _SIZE: ClassVar = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?))?B")

    out: Annotated[Path, Field(strict=False)] | None = None
    force: bool = False
    dry_run: bool = False
    strict: bool = False
    trust_code: bool = False
    resume: bool = False
    device: str = "auto"
    num_threads: Count | None = None
    data_root: Annotated[Path, Field(strict=False)] | None = None
    download_data: bool = False
    memory: str | None = None
    basis_device: BasisDevice = "auto"
    shard: str | None = None
    preview: bool = False

    @field_validator("memory")
    @classmethod
    def _is_size(cls, value: str | None) -> str | None:
        if value is not None and cls._SIZE.fullmatch(value) is None:
            raise ValueError(f"{value!r} is no size: it is like 4GiB or 500MB")
        return value

    @field_validator("shard")
    @classmethod
    def _is_shard(cls, value: str | None) -> str | None:
        if value is not None:
            match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", value)
            if match is None or not int(match[1]) < int(match[2]):
                raise ValueError(f"{value!r} is no share: of four they are 0/4, 1/4, 2/4, 3/4")
        return value

    @property
    def share(self) -> tuple[int, int] | None:
        """The index and the number of shares of `shard`."""
        if self.shard is None:
            return None
        index, count = self.shard.split("/")
        return int(index), int(count)

    @property
    def memory_bytes(self) -> int | None:
        """The memory budget in bytes: 1GiB is 2³⁰, 1GB 10⁹."""
        match = self._SIZE.fullmatch(self.memory or "")
        if match is None:
            return None
        power = " KMGT".index(match[2] or " ")
        return int(float(match[1]) * (1024 if match[3] else 1000) ** power)
