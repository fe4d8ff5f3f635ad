"""Entry point of `dermino`."""

from __future__ import annotations

from dermino_core.console import prepare_environment, run_command


def main() -> None:
    """Run `dermino`."""
    prepare_environment()
    from dermino_server.cli import app

    run_command(app)


if __name__ == "__main__":
    main()
