"""Numbers from logits and networks; no run, no folder."""
