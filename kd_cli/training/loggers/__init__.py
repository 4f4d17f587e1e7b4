"""Where a training's numbers also go: one file per logger."""
