"""PyTorch's modes as a fresh process has them, whatever surrounds a call of lgo."""

from __future__ import annotations

import sys
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def own_modes() -> Iterator[None]:
    """Gradients on, autocast off and float32 computed in float32, whatever a caller has chosen.

    And transformer layers are what they are in training: without gradients PyTorch runs them as one
    operation that puts out zeros where `src_key_padding_mask` masks a position, another function
    than the one that is trained and differentiated.

    Gradients and autocast of the calling thread, all else of the process; what a model's forward
    chooses for itself stays as it is.
    """
    with ExitStack() as stack:
        stack.enter_context(_own_switches())
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


def _restored_precision() -> Callable[[], None]:
    """What makes the process compute in float32 as precisely as it does now."""
    values = [switch.fp32_precision for switch in _precision_switches()]
    try:
        found = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        # They are not to be read where the newer were used; then they are at their defaults.
        found = "highest", True

    def put_back() -> None:
        matmul, torch.backends.cudnn.allow_tf32 = found
        torch.set_float32_matmul_precision(matmul)
        for switch, value in zip(_precision_switches(), values, strict=True):
            switch.fp32_precision = value

    return put_back


def _choose() -> Callable[[], None]:
    """Set the process's switches; returns what puts back those that were found."""
    restore = ExitStack()
    restore.callback(_restored_precision())
    use_true_float32()
    mha = torch.backends.mha
    restore.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
    mha.set_fastpath_enabled(False)
    return restore.close


def _run_eagerly() -> Callable[[], None]:
    """Run what torch.compile made as it was written; returns what ends that."""
    if "torch._dynamo" not in sys.modules:
        return lambda: None
    eager = ExitStack()
    eager.push(torch.compiler.set_stance("force_eager"))
    return eager.close


class _OfProcess:
    """A choice for the whole process while anybody is inside, undone when the last one leaves.

    Of two threads the first to come may leave first: the other still computes, and puts back what
    the first one found.
    """

    def __init__(self, choose: Callable[[], Callable[[], None]]) -> None:
        self._choose = choose
        self._found: dict[object, Callable[[], None]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        me = object()
        with self._lock:
            self._found[me] = self._choose()
        try:
            yield
        finally:
            with self._lock:
                inside = list(self._found)
                after_me = inside[inside.index(me) + 1 :]
                put_back = self._found.pop(me)
                if after_me:
                    self._found[after_me[0]] = put_back
                else:
                    put_back()


_own_switches = _OfProcess(_choose)

_eager_stance = _OfProcess(_run_eagerly)


@contextmanager
def uncompiled() -> Iterator[None]:
    """What torch.compile made runs as it was written, and can be traced, in this thread at least.

    Compiled functions have no second derivative. Where nothing was compiled the compiler is not
    imported, for a second.
    """
    with ExitStack() as stack:
        stack.enter_context(_eager_stance())
        if "torch._dynamo" in sys.modules:
            # Of each thread in new releases, where another cannot put it back.
            stack.enter_context(torch._dynamo.config.patch(error_on_nested_fx_trace=False))
        yield


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
