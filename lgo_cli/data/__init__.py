"""Data sets by name, as fixed tensors."""
