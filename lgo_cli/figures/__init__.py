"""Figures of the results of each command."""
