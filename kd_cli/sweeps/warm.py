"""Imported last by the server that points are forked from: what each of them would do again is done here, once."""

import gc
from contextlib import suppress

from kd_cli.config.compose import compose

with suppress(Exception):  # a point will say it
    compose([])  # Hydra looks for its plugins, and its parsers learn their grammars
gc.collect()
gc.freeze()  # what is there stays: no point looks through all of PyTorch for what it has left behind
