"""Networks: one file per family; every module here registers itself when `MODELS` is first asked."""
