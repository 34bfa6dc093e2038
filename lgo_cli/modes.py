"""PyTorch's modes as a fresh process has them, whatever surrounds a call of lgo."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def own_modes() -> Iterator[None]:
    """Gradients on, autocast off and float32 computed in float32, whatever a caller has chosen.

    Gradients and autocast of the calling thread, float32 of the process; what a model's forward
    chooses for itself stays as it is.
    """
    with ExitStack() as stack:
        stack.enter_context(_true_float32())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def use_true_float32() -> None:
    """Have float32 computed in float32, neither in TF32 nor in bfloat16, on any device."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    # Where they were used before, the older two do not reach all of them.
    for switch in _precision_switches():
        switch.fp32_precision = "ieee"


def _precision_switches() -> list[Any]:
    """What has a precision of its own, from PyTorch 2.9 on."""
    backends: Any = torch.backends
    if not hasattr(backends.cudnn, "conv"):
        return []
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    return [backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]


def _precision() -> tuple[str, bool, list[str]]:
    """How precisely the process computes in float32."""
    values = [switch.fp32_precision for switch in _precision_switches()]
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, values
    except RuntimeError:
        # They are not to be read where the newer were used; then they are at their defaults.
        return "highest", True, values


_FOUND: dict[object, tuple[str, bool, list[str]]] = {}
"""What those who are inside `_true_float32` have to put back, in the order in which they came."""

_LOCK = threading.Lock()


@contextmanager
def _true_float32() -> Iterator[None]:
    """Float32 as of `use_true_float32`, and at the end what was found is put back.

    Of two threads the first to come may leave first: the other still computes, and puts it back.
    """
    me = object()
    with _LOCK:
        _FOUND[me] = _precision()
        use_true_float32()
    try:
        yield
    finally:
        with _LOCK:
            inside = list(_FOUND)
            after_me = inside[inside.index(me) + 1 :]
            found = _FOUND.pop(me)
            if after_me:
                _FOUND[after_me[0]] = found
            else:
                matmul, torch.backends.cudnn.allow_tf32, values = found
                torch.set_float32_matmul_precision(matmul)
                for switch, value in zip(_precision_switches(), values, strict=True):
                    switch.fp32_precision = value


@contextmanager
def own_defaults() -> Iterator[None]:
    """New tensors are float32 and on the CPU, also where a notebook has set others.

    A model would draw other weights in float64 from the same seed.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        # Where nothing was set, nothing is: a mode costs each call of PyTorch. Its 2.6 does not
        # tell of a `with` block but by what it makes.
        if torch.empty(0).device.type == "cpu":
            yield
        else:
            with torch.device("cpu"):
                yield
    finally:
        torch.set_default_dtype(dtype)
