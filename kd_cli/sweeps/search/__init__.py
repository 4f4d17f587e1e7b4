"""`hydra/sweeper=optuna`: options are searched instead of a grid being tried."""
