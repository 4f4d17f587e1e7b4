"""Networks: one file per family; `MODELS` imports the one whose name a component begins with."""
