"""From a typed command line to a job: Hydra inside Typer."""
