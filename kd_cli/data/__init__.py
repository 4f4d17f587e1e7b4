"""Data sets: one file per source; `DATASETS` imports the one whose name a component begins with."""
