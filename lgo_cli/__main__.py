"""Entry point of the `lgo` command and of `python -m lgo_cli`."""

from lgo_cli.cli import app


def main() -> None:
    """Run the command line."""
    app(prog_name="lgo")


if __name__ == "__main__":
    main()
