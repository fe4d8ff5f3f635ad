"""Differential privacy: what a mechanism costs, the noise itself, and training under it."""
