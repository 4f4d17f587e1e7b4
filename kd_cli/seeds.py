"""Seeds as pure functions of what they are for, so that nothing depends on what was drawn before."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed, a pure function of its arguments: `derive_seed(0, "order", 3)`."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seeds the generators that dropout draws from.

    (torch.manual_seed would also queue a call, with a stack trace, for every device that is not there.)
    """
    import torch

    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
