"""``python -m distill3d`` is the command line."""

import sys

try:
    from distill3d.cli import main
except KeyboardInterrupt:
    print("distill3d: stopped before it began", file=sys.stderr)
    sys.exit(130)

main()
