"""Losses along directions, lines and planes."""
