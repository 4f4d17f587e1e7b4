"""One file, one command: `PANEL` is its place in the help, `command` what Typer calls."""
