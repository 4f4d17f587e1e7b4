"""A run's folder: identity, records, checkpoints, provenance."""
