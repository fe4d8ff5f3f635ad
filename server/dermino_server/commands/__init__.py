"""One file per command of `dermino`."""
