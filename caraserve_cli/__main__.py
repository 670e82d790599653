"""`python -m caraserve_cli` is `caraserve`."""

from caraserve_cli.cli.main import program

program()
