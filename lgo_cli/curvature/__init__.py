"""Curvature of an objective: operators and what is estimated from their products."""
