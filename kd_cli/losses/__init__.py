"""Distillation methods: one file each; `LOSSES` imports the one whose name a component begins with.

Their mathematics as plain functions are attributes, `losses.dkd_loss(student_logits, teacher_logits, labels)`; the file
of the one that is asked for is imported, and no other.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if not name.endswith("_loss"):  # a file of this folder, perhaps
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    files = _functions()
    if name not in files:
        from kd_cli.errors import suggest

        raise AttributeError(f"there is no loss function {name!r}{suggest(name, files)}")
    return getattr(import_module(f"{__name__}.{files[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_functions()})


def _functions() -> dict[str, str]:
    """The file of each function that begins as its file does; none of them is imported."""
    import re
    from pathlib import Path

    found: dict[str, str] = {}
    for path in (path for folder in __path__ for path in Path(folder).glob("*.py")):
        names = re.findall(rf"^def ({path.stem}\w*_loss)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
        found |= dict.fromkeys(names, path.stem)
    return found
