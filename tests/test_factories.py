"""Code of one's own: what a factory imports from beside it is its own, and is in the record."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Lgo

from lgo_cli.errors import InputError
from lgo_cli.factories import Factory, call_factory, source_files
from lgo_cli.imports import imported_files


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


PROJECT = {
    "utils.py": "import math, helper\n",
    "helper.py": "from models import resnet\n",
    "unused.py": "raise AssertionError\n",
    "models/__init__.py": "from .blocks import *\n",
    "models/blocks.py": "from .deep.er import X\n",
    "models/resnet.py": "from ..beyond import x\nimport utils\n",
    "models/unused.py": "",
    "models/deep/er.py": "from .. import shared\nfrom . import absent, beside\n",
    "models/deep/beside.py": "x = 1\n",
    "models/shared.py": "x = 1\n",
    "plain/part.py": "x = 1\n",
    "plain/unused.py": "",
    "empty/__init__.py": "",
    "empty/part.py": "def late():\n    import plain.part\n",
    "broken.py": "import utils\nif\n",
    "nul.py": "import utils\0",
    "site-packages/net.py": "import beside\n",
    "site-packages/beside.py": "x = 1\n",
}
MODELS = ["models/__init__.py", "models/blocks.py", "models/deep/beside.py", "models/deep/er.py",
          "models/shared.py"]  # fmt: skip
UTILS = ["helper.py", *MODELS[:4], "models/resnet.py", "models/shared.py", "utils.py"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import os, numpy.linalg, absent\nfrom torch import nn", []),
        ("import utils", UTILS),
        ("from utils import anything as x", UTILS),
        ("def build():\n    if True:\n        import utils", UTILS),
        ("class A:\n    try:\n        import utils\n    finally: pass", UTILS),
        ("import models.blocks", MODELS),
        ("from models import VERSION", MODELS),
        ("from plain import part", ["plain/part.py"]),
        ("import plain", []),
        ("from empty import part", ["empty/part.py", "plain/part.py"]),
        ("import empty", []),
        ("import broken", ["broken.py"]),
        ("import nul", ["nul.py"]),
        ("import plain.part\nif", []),
        ("from .utils import x", []),  # a file of no package cannot import so
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import utils", []),
        ("import typing\nif typing.TYPE_CHECKING:\n    import utils\nelse:\n    import empty.part",
         ["empty/part.py", "plain/part.py"]),
        ('if __name__ == "__main__":\n    import utils', []),
        ('if __name__ != "__main__":\n    import plain.part', ["plain/part.py"]),
        ("x = '\\d'\nimport plain.part", ["plain/part.py"]),
        ("import lgo_cli.seeding", []),
    ],
)  # fmt: skip
def test_what_is_imported_from_beside_a_file_is_found(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    _write(tmp_path, {**PROJECT, "net.py": text, "lgo_cli/seeding.py": "x = 1\n"})
    found = imported_files(tmp_path / "net.py")
    assert list(found) == expected
    assert all(path == tmp_path / place for place, path in found.items())
    assert str(tmp_path) not in sys.path


def test_installed_code_is_known_by_its_version(tmp_path: Path) -> None:
    _write(tmp_path, PROJECT)
    assert imported_files(tmp_path / "site-packages" / "net.py") == {}
    factory = Factory("torchvision.models", "resnet18")
    assert list(source_files(factory, "model.py")) == ["model.py"]


def test_imports_from_the_current_directory_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, {**PROJECT, "nets/net.py": "import beside, plain.part\ndef build(): pass"})
    _write(tmp_path, {"nets/beside.py": "x = 1", "beside.py": "x = 2"})
    monkeypatch.chdir(tmp_path)
    files = source_files(Factory("nets/net.py", "build"), "model.py")
    assert {
        name: path.resolve().relative_to(tmp_path).as_posix() for name, path in files.items()
    } == {
        "model.py": "nets/net.py",
        "model.py/beside.py": "nets/beside.py",
        "model.py/plain/part.py": "plain/part.py",
    }
    # By its dotted name, beside it is the directory in which its package lies.
    _write(
        tmp_path,
        {"nets/__init__.py": "", "nets/net.py": "from .beside import x\nimport plain.part"},
    )
    files = source_files(Factory("nets.net", "build"), "model.py")
    assert list(files) == ["model.py", "model.py/nets/beside.py", "model.py/plain/part.py"]
    _write(tmp_path, {"nets/__init__.py": "from . import net"})
    assert "model.py/nets/__init__.py" in source_files(Factory("nets.net", "build"), "model.py")
    assert "model.py/nets/net.py" in source_files(Factory("nets", "build"), "model.py")
    del sys.modules["nets"]  # whose parent packages Python imports to find a module


def _call(path: Path, name: str = "build", **arguments: Any) -> Any:
    reference = f"{path}:{name}"
    return call_factory(reference, Factory(str(path), name), arguments, {})


NET = "import utils\nfrom pkg import part\ndef build(): return utils.NAME + part.NAME\n"


def test_neighbours_of_two_directories_do_not_shadow_each_other(tmp_path: Path) -> None:
    for place in ("a", "b"):
        _write(tmp_path / place, {"net.py": NET, "utils.py": f"NAME = '{place}'\n"})
        _write(tmp_path / place, {"pkg/part.py": f"NAME = '{place}'\n"})
    assert [_call(tmp_path / place / "net.py") for place in "abab"] == ["aa", "bb", "aa", "bb"]


def test_a_neighbour_is_imported_once_until_it_is_edited(tmp_path: Path) -> None:
    data = "import utils\ndef make(): return utils\n"
    _write(
        tmp_path, {"net.py": NET, "data.py": data, "utils.py": "import const\nNAME = const.NAME"}
    )
    _write(tmp_path, {"pkg/part.py": "NAME = ''", "const.py": "NAME = 'old'"})
    utils = _call(tmp_path / "data.py", "make")
    assert _call(tmp_path / "net.py") == "old"
    assert _call(tmp_path / "data.py", "make") is utils
    _write(tmp_path, {"const.py": "NAME = 'changed'"})
    assert _call(tmp_path / "net.py") == "changed"
    assert _call(tmp_path / "data.py", "make").NAME == "changed"
    _write(tmp_path, {"pkg/part.py": "NAME = 'part'"})
    assert _call(tmp_path / "net.py") == "changedpart"


def test_the_programs_own_modules_stay_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, {"net.py": NET, "utils.py": "NAME = 'a'", "pkg/part.py": "NAME = 'b'"})
    own, package = ModuleType("utils"), ModuleType("pkg")
    monkeypatch.setitem(sys.modules, "utils", own)
    monkeypatch.setitem(sys.modules, "pkg", package)
    assert _call(tmp_path / "net.py") == "ab"
    assert sys.modules["utils"] is own
    assert sys.modules["pkg"] is package
    assert "pkg.part" not in sys.modules


def test_what_is_imported_by_its_name_is_no_neighbour_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, {"a/net.py": NET, "a/utils.py": "NAME = 'a'", "a/pkg/part.py": "NAME = 'b'"})
    here = {"by_name/net.py": NET, "utils.py": "NAME = 'c'", "pkg/part.py": "NAME = 'd'"}
    monkeypatch.chdir(_write(tmp_path, here))
    file, by_name = Path("a/net.py"), Factory("by_name.net", "build")
    assert _call(file) == "ab"
    assert call_factory("by_name.net:build", by_name, {}, {}) == "cd"
    assert _call(file) == "ab"
    assert sys.modules["utils"].NAME == "c"
    for name in ("by_name.net", "by_name", "utils", "pkg.part", "pkg"):
        del sys.modules[name]


def test_functions_import_their_neighbours_when_they_run(tmp_path: Path) -> None:
    late = "def build():\n    import utils\n    return utils.later\n"
    later = "def later():\n    from pkg.part import NAME\n    return NAME\n"
    for place in ("a", "b"):
        part = {"pkg/part.py": f"NAME = '{place}'"}
        _write(tmp_path / place, {"net.py": late, "utils.py": f"import pkg.part\n{later}", **part})
    assert _call(tmp_path / "a" / "net.py")() == "a"
    assert _call(tmp_path / "b" / "net.py")() == "b"


def test_the_search_path_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(Path.cwd())
    monkeypatch.setattr(sys, "path", [here, *sys.path])
    before = list(sys.path)
    _write(tmp_path, {"net.py": "def build(): pass\n"})
    _call(tmp_path / "net.py")
    assert sys.path == before
    _write(tmp_path, {"bad.py": "raise ValueError\n"})
    with pytest.raises(InputError, match="ValueError"):
        _call(tmp_path / "bad.py")
    assert sys.path == before
    # What user code adds is for what it imports later.
    _write(tmp_path, {"adds.py": "import sys\nsys.path.append('added')\ndef build(): pass\n"})
    _call(tmp_path / "adds.py")
    assert sys.path == [*before, "added"]


def test_a_neighbour_that_cannot_be_read_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, {"net.py": "import utils\n", "utils.py": "x = 1\n"})
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "utils.py":
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=rf"cannot read {tmp_path}/utils\.py: Permission denied"):
        imported_files(tmp_path / "net.py")


def test_broken_neighbours_are_told_where(tmp_path: Path) -> None:
    _write(tmp_path, {"net.py": "import utils\n", "utils.py": "x = 1\nif\n"})
    with pytest.raises(InputError, match="invalid syntax"):
        _call(tmp_path / "net.py")


# --- the record

CODE = {
    "net.py": "import helper\ndef build(): return helper.net()\n",
    "helper.py": "from torch import nn\nWIDTH = 4\n"
    "def net(): return nn.Sequential(nn.Linear(20, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 10))\n",
    "data.py": "from arrays import make\n",
    "arrays.py": "import numpy as np\n"
    "def make():\n"
    "    x = np.random.default_rng(0).normal(size=(64, 20)).astype('float32')\n"
    "    return x, np.arange(64) % 10, x, np.arange(64) % 10\n",
}
NAMED = ("--model", "net.py:build", "--dataset", "data.py:make")
TRAIN = ("train", *NAMED, "--epochs", 1, "--lr", 0.1)
HESSIAN = ("hessian", "outputs", "--top-k", 1, "--bottom-k", 0, "--trust-code")


def _edit(path: Path) -> None:
    path.write_text(path.read_text() + "# edited\n")


def test_an_edited_neighbour_is_another_request(lgo: Lgo, tmp_path: Path) -> None:
    _write(tmp_path, CODE)
    assert "314 parameters" not in (first := lgo(*TRAIN)).stdout
    assert "134 parameters" in first.stdout
    manifest = json.loads((tmp_path / "outputs" / "train.json").read_text())
    assert list(manifest["request"]["inputs"]) == [
        "model.py", "model.py/helper.py", "data.py", "data.py/arrays.py",
    ]  # fmt: skip
    assert manifest["locations"]["model.py/helper.py"] == "../helper.py"
    assert "up to date" in lgo(*TRAIN).stderr
    helper = tmp_path / "helper.py"
    helper.write_text(helper.read_text().replace("WIDTH = 4", "WIDTH = 10"))
    again = lgo(*TRAIN)
    assert "up to date" not in again.stderr
    assert "320 parameters" in again.stdout
    lgo(*HESSIAN)
    lgo("verify", "outputs")


@pytest.mark.parametrize(("name", "role", "flag"), [
    ("helper.py", "model.py", "--model"), ("arrays.py", "data.py", "--dataset"),
])  # fmt: skip
def test_which_neighbour_has_changed_is_said(
    lgo: Lgo, tmp_path: Path, name: str, role: str, flag: str
) -> None:
    _write(tmp_path, CODE)
    lgo(*TRAIN)
    lgo(*HESSIAN)
    _edit(tmp_path / name)
    changed = f"lgo: error: {tmp_path / name} is not the "
    error = lgo(*HESSIAN, code=3).stderr
    assert error.startswith(f"{changed}file that the run was trained with\n")
    assert error.endswith(f"naming it: {flag}\n")
    again = ("--config", "outputs/train.json", "--trust-code")
    error = lgo("train", *again, code=3).stderr
    assert error.startswith(f"{changed}{role}/{name} that the manifest records\n")
    assert "runs only if you name it" in lgo("train", *again[:2], code=2).stderr
    lgo("train", *again[:2], *NAMED, "--out", "named")  # what is named is meant
    stale = f"stale: input {role}/{name} ({name}) has changed since"
    assert stale in lgo("show", "outputs").stdout
    assert stale in lgo("verify", "outputs", code=3).stderr
    named = lgo(*HESSIAN, *NAMED)
    assert ("the model's code has changed since the run: helper.py" in named.stderr) == (
        role == "model.py"
    )
    assert f"with another {role}/{name} than train" in lgo("show", "outputs").stdout


def test_code_that_is_new_or_gone_is_not_the_runs(lgo: Lgo, tmp_path: Path) -> None:
    empty = {"parts/__init__.py": "", "parts/net.py": CODE["helper.py"]}
    _write(tmp_path, {**CODE, **empty, "net.py": "from parts.net import net as build\n"})
    lgo(*TRAIN)
    again = ("train", "--config", "outputs/train.json", "--trust-code")
    assert "up to date" in lgo(*again).stderr
    _write(tmp_path, {"parts/__init__.py": "x = 1\n"})
    for line in (HESSIAN, again):
        assert lgo(*line, code=3).stderr.startswith(
            f"lgo: error: {tmp_path}/parts/__init__.py is imported, and is not in the record\n"
        )
    _write(tmp_path, {"parts/__init__.py": ""})
    os.rename(tmp_path / "parts", tmp_path / "other")
    for line in (HESSIAN, again):
        assert lgo(*line, code=3).stderr.startswith(
            "lgo: error: model.py/parts/net.py is in the record, and is no input any more\n"
        )


def test_runs_of_a_file_alone_keep_their_fingerprint(lgo: Lgo, tmp_path: Path) -> None:
    """Its request is what it was before neighbours were recorded."""
    alone = {"net.py": CODE["helper.py"], "data.py": CODE["arrays.py"]}
    _write(tmp_path, {**alone, "helper.py": "raise ValueError"})
    request = json.loads(
        lgo("train", "--model", "net.py:net", *NAMED[2:], "--dry-run", "--json").stdout
    )
    assert sorted(request["inputs"]) == ["data.py", "model.py"]
    package = {"nets/__init__.py": "", "nets/net.py": alone["net.py"]}
    _write(tmp_path, package)
    sys.modules.pop("nets", None)
    by_name = json.loads(
        lgo("train", "--model", "nets.net:net", *NAMED[2:], "--dry-run", "--json").stdout
    )
    assert by_name["inputs"] == request["inputs"]
    sys.modules.pop("nets", None)


def test_files_that_arguments_name_are_inputs(lgo: Lgo, tmp_path: Path) -> None:
    """Two trainings from one checkpoint, as Frankle et al. 2020 have them, and data from a file."""
    _write(tmp_path, {
        "net.py": "import torch\n"
        "def build(weights=''):\n"
        "    model = torch.nn.Linear(20, 10)\n"
        "    if weights:\n"
        "        model.load_state_dict(torch.load(weights))\n"
        "    return model\n",
        "data.py": "import numpy as np\n"
        "def make(inputs):\n"
        "    x = np.load(inputs)\n"
        "    return x, np.arange(64) % 10, x, np.arange(64) % 10\n",
    })  # fmt: skip
    x = np.random.default_rng(0).normal(size=(64, 20)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    data = (
        "--dataset",
        "data.py:make",
        "--dataset-arg",
        "inputs=x.npy",
        "--epochs",
        1,
        "--lr",
        0.1,
    )
    lgo("train", "--model", "net.py:build", *data)
    start = (*data, "--model", "net.py:build", "--model-arg", "weights=start.pth")
    shutil.copy("outputs/init.pth", "start.pth")
    for seed in (1, 2):
        lgo("train", *start, "--seed", seed, "--out", f"from-{seed}")
    request = json.loads(Path("from-1/train.json").read_text())["request"]
    assert list(request["inputs"]) == [
        "model.py", "model_arg/weights", "data.py", "dataset_arg/inputs"
    ]  # fmt: skip
    init, one, two = (
        torch.load(path)["weight"]
        for path in ("outputs/init.pth", "from-1/init.pth", "from-2/model.pth")
    )
    assert torch.equal(init, one)
    assert not torch.equal(one, two)
    several = ("--model", "net.py:build", "--model-arg", 'weights=["none", "start.pth"]')
    request = json.loads(lgo("train", *data, *several, "--dry-run", "--json").stdout)
    assert "model_arg/weights/1" in request["inputs"]
    assert "model_arg/weights/0" not in request["inputs"]
    along = ("interp", "from-1", "--to", "from-2", "--trust-code", "--num-points", 3)
    assert "up to date" not in lgo(*along).stderr
    assert "up to date" in lgo(*along).stderr
    lgo("verify", "from-1", "from-2")
    again = ("train", *start, "--seed", 1, "--out", "from-1")
    assert "up to date" in lgo(*again).stderr
    # Other weights in the same file, and then other data, are another request.
    shutil.copy("outputs/model.pth", "start.pth")
    error = lgo(*along, code=3).stderr
    assert error.startswith("lgo: error: start.pth is not the file that the run was trained with\n")
    assert error.endswith("naming it: --model-arg\n")
    lgo(*along, "--model-arg", "weights=start.pth")  # what is named is meant
    config = ("train", "--config", "from-1/train.json", "--trust-code")
    error = lgo(*config, code=3).stderr
    assert "start.pth is not the model_arg/weights that the manifest records" in error
    assert error == lgo(*config, "--dataset-arg", "labels=y.npy", code=3).stderr
    Path("start.pth").rename("moved.pth")  # as seen from elsewhere
    gone = (
        "model_arg/weights is in the record, and is no input any more: its path counts from the "
        "current directory, and no file is there\n"
    )
    assert gone in lgo(*config, code=3).stderr
    Path("moved.pth").rename("start.pth")
    stale = "stale: input model_arg/weights (start.pth) has changed since"
    assert stale in lgo("verify", "from-1", code=3).stderr
    assert "up to date" not in lgo(*again).stderr
    np.save(tmp_path / "x.npy", 2 * x)
    assert "naming it: --dataset-arg\n" in lgo(*along, code=3).stderr
    assert "up to date" not in lgo(*again).stderr
