"""Data sets: one file per source; every module here registers itself when `DATASETS` is first asked."""
