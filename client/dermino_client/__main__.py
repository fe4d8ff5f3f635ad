"""Entry point of `dermino-client`."""

from __future__ import annotations

from dermino_core.console import prepare_environment, run_command


def main() -> None:
    """Run `dermino-client`."""
    prepare_environment()
    from dermino_client.cli import app

    run_command(app)


if __name__ == "__main__":
    main()
