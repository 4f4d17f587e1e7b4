"""Files that are whole or not there: json, tensors, yaml, locks, cache."""
