"""Models by name, as modules."""
