from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lgo_cli.cli.request import read_config_file
from lgo_cli.config import ContourConfig, HessianConfig, InterpConfig, TrainConfig
from lgo_cli.errors import UsageError
from lgo_cli.parsing import parse_config


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (TrainConfig, {"lr": -1.0}, "--lr: input should be greater than 0, got -1.0"),
        (TrainConfig, {"epochs": 2.5}, "--epochs: input should be a valid integer, got 2.5"),
        (TrainConfig, {"epoch": 2}, "--epoch: extra inputs are not permitted, got 2"),
        (
            TrainConfig,
            {"batch_size": 0},
            "--batch-size: input should be greater than or equal to 1",
        ),
        (TrainConfig, {"label_smoothing": 1.0}, "--label-smoothing: input should be less than 1"),
        (TrainConfig, {"seed": -1}, "--seed: input should be greater than or equal to 0"),
        (TrainConfig, {"model_arg": {"p": [float("nan")]}}, "--model-arg: out of range float"),
        (TrainConfig, {"lr": "1"}, "--lr: input should be a valid number, got '1'"),
        (HessianConfig, {"top_k": -1}, "--top-k: input should be greater than or equal to 0"),
        (HessianConfig, {"rtol": 0.0}, "--rtol: input should be greater than 0"),
        (InterpConfig, {"range": [1.0, -1.0]}, "--range: needs MIN < MAX, got 1 -1"),
        (InterpConfig, {"batchnorm_samples": 64}, "--batchnorm-samples goes with --batchnorm rec"),
        (ContourConfig, {"batchnorm": "eval"}, "--batchnorm: input should be 'frozen', 'recom"),
        (ContourConfig, {"resolution": "51x"}, "--resolution: must be like 51 or 51x31"),
        (ContourConfig, {"resolution": "1"}, "--resolution: needs at least 2 points"),
        (ContourConfig, {"to": ["a"]}, "a plane through checkpoints needs two"),
        (ContourConfig, {"plane": "pca", "to": ["a", "b"]}, "--to does not go with --plane pca"),
        (ContourConfig, {"x_range": [0.0, 0.0]}, "--x-range: needs MIN < MAX"),
        (ContourConfig, {"y_range": [0.0]}, "--y-range"),
    ],
)
def test_bad_values_are_named(cls: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_config(cls, values, "--")
    assert message in str(caught.value)


def test_resolution_has_one_spelling() -> None:
    assert ContourConfig(resolution="51").resolution == "51x51"
    assert ContourConfig(resolution="51x31").shape == (51, 31)
    assert ContourConfig().shape == (51, 51)


def test_a_value_where_a_table_belongs_is_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text("contour = 3")
    with pytest.raises(UsageError, match=r"options\.toml: contour is not a table"):
        read_config_file(path, ContourConfig, ())


def test_other_runs_may_be_paths() -> None:
    assert InterpConfig(to=Path("a")) == InterpConfig(to=("a",))  # type: ignore[arg-type]
    assert InterpConfig(to=[Path("a"), "b"]).to == ("a", "b")  # type: ignore[arg-type, list-item]
