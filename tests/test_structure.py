"""The house: who may import whom, what start-up costs, and the surface of the command line."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import SMALL, Lgo

import lgo_cli
from lgo_cli.cli import app
from lgo_cli.config import (
    CONFIGS,
    AnalysisConfig,
    Execution,
    FigureConfig,
    StepConfig,
    TrainConfig,
)

PACKAGE = Path(lgo_cli.__file__).parent

# From the top of the house to its foundation; an import may only go to a lower layer, or to a
# module of one's own package.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"runs"},
    {"figures", "exports"},
    {"landscape"},
    {"curvature", "training"},
    {"objective"},
    {"checkpoint"},
    {"models", "data"},
    {"vectors", "seeding", "second_derivatives", "samples"},
    {"filters", "determinism", "loss", "buffers", "modes", "memory"},
    {"loss_names", "outputs"},
    {"factories", "arguments", "labels"},
    {"provenance"},
    {"manifest"},
    {"results"},
    {"config"},
    {"files", "parsing"},
    {"imports", "progress"},
    {"errors"},
    {"__init__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
NO_TORCH = {
    "errors",
    "progress",
    "files",
    "config",
    "parsing",
    "manifest",
    "results",
    "provenance",
    "factories",
    "imports",
    "arguments",
    "loss_names",
}
HEAVY = {"torch", "torchvision", "matplotlib"}


def _modules() -> list[tuple[str, Path]]:
    return [
        (path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path)
        for path in sorted(PACKAGE.rglob("*.py"))
    ]


def _imports(path: Path, *, at_run_time: bool) -> set[str]:
    tree = ast.parse(path.read_text())
    skipped: set[int] = set()
    if at_run_time:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                skipped |= {id(child) for part in node.body for child in ast.walk(part)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize(("module", "path"), _modules(), ids=str)
def test_imports_go_downwards(module: str, path: Path) -> None:
    # What the package offers is from everywhere, and is imported for type checkers alone.
    for name in _imports(path, at_run_time=module == "__init__"):
        parts = name.split(".")
        if parts[0] != "lgo_cli":
            continue
        # `from lgo_cli import __version__` reads the package itself, which imports nothing.
        target = parts[1] if len(parts) > 1 and parts[1] in LEVEL else "__init__"
        assert target == module or LEVEL[target] > LEVEL[module], f"{path} imports {name}"


ESTIMATORS = ("search", "lanczos", "basis", "eigenpairs", "trace", "density", "smoothing")


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_know_operators_and_no_network(name: str) -> None:
    imported = _imports(PACKAGE / "curvature" / f"{name}.py", at_run_time=False)
    known = {name.split(".")[2] for name in imported if name.startswith("lgo_cli.curvature.")}
    assert known <= {*ESTIMATORS, "operators"}


@pytest.mark.parametrize(("module", "path"), _modules(), ids=str)
def test_foundation_never_imports_torch(module: str, path: Path) -> None:
    if module in NO_TORCH:
        top = {name.split(".")[0] for name in _imports(path, at_run_time=True)}
        local = {"provenance": {"torch"}}.get(module, set())  # inside one function, to ask versions
        assert not top & HEAVY - local


def test_no_file_is_long() -> None:
    long = {
        str(path): n for _, path in _modules() if (n := len(path.read_text().splitlines())) > 420
    }
    assert not long


def _loaded_modules(code: str) -> set[str]:
    script = f"{code}\nimport sys, json\nsys.stderr.write(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stderr))


def _loaded_by(arguments: list[str]) -> set[str]:
    """Modules that a command line imports; what it says on stderr is not heard."""
    code = (
        "import sys, io\nsys.stderr = io.StringIO()\nfrom lgo_cli.cli import app\n"
        f"try:\n    app({arguments!r}, prog_name='lgo')\n"
        "except SystemExit as stop:\n    assert not stop.code\nsys.stderr = sys.__stderr__"
    )
    return _loaded_modules(code)


@pytest.mark.parametrize("arguments", [["--help"], ["contour", "--help"], ["datasets"]])
def test_help_does_not_pay_for_torch(arguments: list[str]) -> None:
    assert not HEAVY & _loaded_by(arguments)


def test_up_to_date_does_not_pay_for_torch(small_run: Path) -> None:
    config = json.loads((small_run / "train.json").read_text())["request"]["config"]
    code = (
        "from pathlib import Path\nfrom lgo_cli.config import *\n"
        "from lgo_cli.parsing import *\nfrom lgo_cli.runs import *\n"
        f"o = execute(parse_config(TrainConfig, {config!r}), "
        f"execution=Execution(out=Path({str(small_run)!r})))\nassert o.status is Status.UP_TO_DATE"
    )
    assert not HEAVY & _loaded_modules(code)


def test_verify_does_not_pay_for_torch(lgo: Lgo, small_run: Path) -> None:
    for line in ("hessian", "interp --num-points 3", "contour --resolution 3 --num-planes 2"):
        command, *options = line.split()
        lgo(command, small_run, *options, "--analysis-samples", "32")
    assert not HEAVY & _loaded_by(["verify", str(small_run)])


COMPILER = {"torch._dynamo", "torch._inductor", "sympy"}


def test_commands_do_not_pay_for_a_compiler(small_run: Path) -> None:
    """PyTorch imports its compiler, for a second, at the first call of harmless functions.

    One after the other in one process, which stops at the first command that has it loaded.
    """
    code = (
        "import sys\nfrom lgo_cli.cli import app\n"
        "def run(*arguments):\n"
        "    try:\n        app([*arguments, '--quiet'], prog_name='lgo')\n"
        "    except SystemExit as stop:\n        assert not stop.code\n"
        f"    assert 'torch' in sys.modules and not {COMPILER!r} & set(sys.modules), arguments\n"
    )
    outs = []
    for line in (
        "train",
        "train --optimizer adamw",
        f"train --save-every 4 --resume --force --out {small_run}",
        "hessian RUN",
        "interp RUN",
        "interp RUN --curve bezier --epochs 1",
        "contour RUN --resolution 3",
    ):
        command, *options = [str(small_run) if word == "RUN" else word for word in line.split()]
        options += SMALL if command == "train" else ("--analysis-samples", "32")
        outs.append(small_run if "--out" in options else small_run.parent / str(len(outs)))
        code += f"run(*{[command, '--out', str(outs[-1]), *options]!r})\n"
    assert not COMPILER & _loaded_modules(code)
    assert all(len([*out.glob("*.json")]) == 1 for out in outs)


def test_models_do_not_pay_for_a_compiler() -> None:
    assert not COMPILER & _loaded_by(["models"])


def test_package_is_lazy_and_complete() -> None:
    assert not HEAVY & _loaded_modules("import lgo_cli")
    for name in lgo_cli.__all__:
        assert getattr(lgo_cli, name) is not None
    with pytest.raises(AttributeError):
        lgo_cli.no_such_name  # noqa: B018


def test_type_checkers_and_editors_see_what_the_package_offers() -> None:
    """What is loaded lazily is imported for them, each name from where it is."""
    assert lgo_cli.__file__ is not None
    imports = {
        name.name: node.module or ""
        for node in ast.walk(ast.parse(Path(lgo_cli.__file__).read_text()))
        if isinstance(node, ast.ImportFrom)
        for name in node.names
        if name.asname == name.name
    }
    assert {"__version__", *imports} == set(lgo_cli.__all__) <= set(dir(lgo_cli))
    for name, module in imports.items():
        assert getattr(lgo_cli, name) is getattr(importlib.import_module(module), name)


def _commands() -> dict[str, Any]:
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


OUTPUT = {"json", "quiet", "verbose"}
NOT_FIELDS = OUTPUT | {"config", "help", "run"}
ONLY = {
    "resume": ["train"],
    "memory": ["hessian", "interp", "contour"],
    "basis_device": ["hessian"],
    "shard": ["contour"],
    "preview": ["contour"],
}
"""Commands that have an option of execution which not all have."""


@pytest.mark.parametrize("command", ["train", "hessian", "interp", "contour"])
def test_each_config_field_has_one_option_with_its_default(command: str) -> None:
    config: type[StepConfig] = CONFIGS[command]
    options = {parameter.name: parameter for parameter in _commands()[command].params}
    execution = {name for name in Execution.model_fields if command in ONLY.get(name, [command])}
    figure = set(FigureConfig.model_fields) - ({"show_cells"} if command != "contour" else set())
    expected = set(config.model_fields) | execution | figure
    assert set(options) - NOT_FIELDS == expected
    defaults = {
        **config().model_dump(),
        **Execution().model_dump(),
        **FigureConfig().model_dump(),
    }
    for name in expected:
        flags = [flag for flag in options[name].opts if flag.startswith("--")]
        assert f"--{name.replace('_', '-')}" in flags
        default = options[name].default
        empty = defaults[name] in ({}, ())
        assert default is None if empty else default == defaults[name], name


FROZEN = tomllib.loads((Path(__file__).parent / "options.toml").read_text())


@pytest.mark.parametrize("command", sorted(_commands()))
def test_surface_of_the_command_line(command: str) -> None:
    """A change to what users may type is a change to `options.toml`, seen in review."""
    flags = sorted(
        flag
        for parameter in _commands()[command].params
        for flag in [*parameter.opts, *parameter.secondary_opts]
        if flag.startswith("-")
    )
    assert flags == FROZEN[command]


def test_analysis_options_of_run() -> None:
    names = {parameter.name for parameter in _commands()["run"].params}
    assert names - NOT_FIELDS == (
        set(TrainConfig.model_fields)
        | (set(Execution.model_fields) - {"basis_device", "shard", "preview"})
        | set(FigureConfig.model_fields)
        | {"analysis_samples"}
    )
    assert "analysis_samples" in AnalysisConfig.model_fields
