"""`python -m kd_cli` is `kd`."""

from kd_cli.cli import main

main()
