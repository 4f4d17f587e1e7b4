"""The report of runs and sweeps: `results.json`, and what is drawn from it."""
