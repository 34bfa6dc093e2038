"""A user's forward as a graph (torch.fx), and what may go wrong with one that is traced."""

from __future__ import annotations

import builtins
import io
import sys
import threading
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from lgo_cli.buffers import forget
from lgo_cli.errors import first_sentence, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator


_ONE_THREAD = threading.RLock()
"""fx patches modules, and `redirect_stderr` the process's stream, for all threads alike."""


class ForwardError(Exception):
    """A forward that was traced or rewritten fails; says why in one sentence."""


@contextmanager
def strange_forward() -> Iterator[None]:
    """Turn whatever a forward raises, on proxies or as code that fx wrote, into one error.

    What a stranger's code raises there cannot be listed (compare `factories`); the model itself,
    which the objective has run, can then serve as it is.

    Raises:
        ForwardError: for all but a lack of memory.
    """
    try:
        with _ONE_THREAD, redirect_stderr(io.StringIO()):  # where fx prints the line that failed
            yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ForwardError(first_sentence(error)) from error


def trace(model: nn.Module) -> fx.GraphModule | str:
    """A model's forward as a graph that shares its parameters, or why there is none."""
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps, which does have a class
    if "forward" in vars(model):  # of which fx would trace the forward
        return "the model cannot be traced (its forward is not its class's)"
    modules: Any = [sys.modules[name] for name in ("math", "einops") if name in sys.modules]
    tracer = _Tracer(autowrap_modules=tuple(modules))
    forget(model)  # or the graph would have it as a constant
    try:
        with strange_forward():
            with _recorded_lengths():
                graph = tracer.trace(model)
            return fx.GraphModule(tracer.root, graph)
    except ForwardError as error:
        return f"the model cannot be traced ({error})"
    finally:
        forget(model)


class _Tracer(fx.Tracer):
    """Takes what einops does, which looks at no values and takes no proxies, for operations."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Its layers too."""
        is_leaf = super().is_leaf_module(m, module_qualified_name)
        return is_leaf or type(m).__module__.startswith("einops.layers.")


@contextmanager
def _recorded_lengths() -> Iterator[None]:
    """Record `len(x)` of what is traced: fx does so only where a file of the user's asks for it."""
    length = len

    def recorded(value: Any, /) -> Any:
        if isinstance(value, fx.Proxy):
            return value.tracer.create_proxy("call_function", length, (value,), {})
        return length(value)

    builtins.len = recorded
    try:
        yield
    finally:
        builtins.len = length


def tensor_of(value: object, traced: fx.GraphModule) -> Tensor | None:
    """The tensor of the model that a name or a node reads; `None` for anything else."""
    if isinstance(value, fx.Node) and value.op == "get_attr":
        value = str(value.target)
    if not isinstance(value, str):
        return None
    found: object = traced
    for name in value.split("."):
        found = getattr(found, name)
    return found if isinstance(found, Tensor) else None


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more, or other, than its class's forward."""
    replaced = "forward" in vars(module)
    return replaced or bool(module._forward_hooks or module._forward_pre_hooks)


def is_customised(module: nn.Module, bases: tuple[type[nn.Module], ...]) -> bool:
    """Whether a module does more than its class in torch.nn: a subclass, or one with hooks."""
    return type(module) not in bases or has_forward_hooks(module) or bool(module._backward_hooks)
