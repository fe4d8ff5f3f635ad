"""Federated methods, one per file, each with its site half and its coordinator half."""
