"""kd from Python: what the command line does, for programs and notebooks; docs/python.md shows it."""
