"""The overrides that messages offer, and whether they can be typed: a shell and Hydra read them."""

from __future__ import annotations

import re
import shlex

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

_GROUPS = (
    "hydra|dataset|teacher|student|loss|trainer|[a-z]+_trainer|logger|experiment|study|transfer|seed|device|plugins|"
    "outputs|teacher_cache|teacher_cache_gb|teacher_cache_top_k|teacher_cache_dtype|ensemble|specialists|assistants|generations|control"
)
_KEY = rf"[+~]{{0,2}}(?:{_GROUPS})(?:[@./\[][\w@./\[\]]*)?"
_OFFERED = re.compile(rf"(?<![\w./'\"({{\[-])(?:'{_KEY}=[^']*'|\"{_KEY}=[^\"]*\"|{_KEY}=(?:'[^']*'|[^\s;'\"])*)")


def offered(text: str) -> list[str]:
    """What a message says to type, without the words of the user that it repeats before."""
    _, *advice = re.split(r"\b[Tt]ype\b", text)
    return [_without_stop(word) for part in advice for word in _OFFERED.findall(part)]


def unreadable(text: str) -> list[str]:
    """What of it cannot be typed; `…` stands for a value of one's own."""
    return [word for word in offered(text) if not _is_read(word.replace("=…", "=1").replace(",…", ""))]


def _without_stop(word: str) -> str:
    word = word.rstrip(".,:")
    return word[:-1].rstrip(".,:") if word.endswith(")") and "(" not in word else word


def _is_read(word: str) -> bool:
    try:
        (typed,) = shlex.split(word)
        OverridesParser.create().parse_override(typed)
    except (ValueError, HydraException):
        return False
    return True
