"""How fast `kd` is beside what its users would otherwise write or install: `python -m benchmarks --help`."""
