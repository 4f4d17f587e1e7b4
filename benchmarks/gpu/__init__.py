"""What kd promises on a GPU, counted and timed: `python -m benchmarks.gpu`, docs/gpu.md."""
