"""The hospital: its site file, its data, and the `dermino-client` command."""
