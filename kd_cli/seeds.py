"""Seeds as pure functions of what they are for, so that nothing depends on what was drawn before."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed, a pure function of its arguments: `derive_seed(0, "order", 3)`."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
