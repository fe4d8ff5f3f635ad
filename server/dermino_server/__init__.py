"""The coordinator: rounds, checkpoints, results, and the `dermino` command."""
