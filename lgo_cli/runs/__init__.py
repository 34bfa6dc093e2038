"""Steps in run directories: resolve, compute, publish, inspect."""

from lgo_cli.runs.execute import Outcome, Status, execute

__all__ = ["Outcome", "Status", "execute"]
