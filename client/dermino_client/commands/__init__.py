"""Commands of `dermino-client`, one file each."""
