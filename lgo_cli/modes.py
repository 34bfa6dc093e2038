"""PyTorch's modes as a fresh process has them, whatever surrounds a call of lgo."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def own_modes() -> Iterator[None]:
    """Gradients on and autocast off, also under a caller's `no_grad`, `inference_mode`, `autocast`.

    Of the calling thread; what a model's forward chooses for itself stays as it is.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def own_defaults() -> Iterator[None]:
    """New tensors are float32 and on the CPU, also where a notebook has set others.

    A model would draw other weights in float64 from the same seed.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        # Where nothing was set, nothing is: a mode costs each call of PyTorch.
        if torch.get_default_device().type == "cpu":
            yield
        else:
            with torch.device("cpu"):
                yield
    finally:
        torch.set_default_dtype(dtype)
