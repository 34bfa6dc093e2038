"""How much memory a machine has, of which budgets are shares."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

UNKNOWN_MEMORY = 8 * 2**30
"""Bytes that a machine is taken to have which does not tell; `--memory` knows better."""

CGROUPS = Path("/proc/self/cgroup")
"""The control groups of this process, a line `id:controllers:path` each."""

CGROUP_MOUNT = Path("/sys/fs/cgroup")


def total_memory_bytes(device: torch.device) -> int:
    """Memory of the device, for a CPU that of the machine or of its cgroups if that is less."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return min([_physical_memory_bytes(), *_cgroup_limits()])


def _physical_memory_bytes() -> int:
    """Memory of the machine; `UNKNOWN_MEMORY` where Python has no way to ask, as on Windows."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):
        return UNKNOWN_MEMORY


def _cgroup_limits() -> Iterator[int]:
    """What the process's own control group and each around it may take (versions 1 and 2).

    SLURM and systemd limit a group far below the mount. In a container the path may be the one
    outside, of which the mount alone is to be seen.
    """
    for line in _text(CGROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, limit = CGROUP_MOUNT, "memory.max"
        elif "memory" in controllers.split(","):
            mount, limit = CGROUP_MOUNT / "memory", "memory.limit_in_bytes"
        else:
            continue
        own = Path(path.lstrip("/"))
        texts = [_text(mount / group / limit) for group in (own, *own.parents)]
        yield from (int(text) for text in texts if text not in ("", "max"))


def _text(path: Path) -> str:
    """What a file of the kernel's says, nothing where there is none to be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
