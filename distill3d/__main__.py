"""``python -m distill3d`` is the command line."""

from distill3d.cli import main

main()
