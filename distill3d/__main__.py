"""``python -m distill3d``, and the command ``distill3d``, are the command line."""

import sys


def start() -> None:
    """Runs the command line; an interrupt while it is loaded is one sentence too."""
    try:
        from distill3d.cli import main
    except KeyboardInterrupt:
        print("distill3d: stopped before it began", file=sys.stderr)
        sys.exit(130)
    main()


if __name__ == "__main__":
    start()
