"""Runs the `mint` command: `python -m mint`, and the script that pip installs."""

import sys


def run() -> None:
    """Run the command line; an interrupt while it is imported ends it in silence too."""
    try:
        from mint.cli.main import main

        main()
    except KeyboardInterrupt:
        print("mint: interrupted; nothing was changed", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run()
