"""What decodes a JPEG in the least time, and whether its pixels are PIL's: one thread, in turns, the quickest of each.

    python -m benchmarks.decoders FOLDER

FOLDER is a tree of JPEGs. PyTurboJPEG takes part where it is installed.
"""

from __future__ import annotations

import io
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_FILES, _TURNS = 200, 7


def _pillow() -> Callable[[bytes], Any]:
    import numpy as np
    from PIL import Image

    return lambda content: np.array(Image.open(io.BytesIO(content)).convert("RGB"))


def _torchvision() -> Callable[[bytes], Any]:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(content: bytes) -> Any:
        planes = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
        return planes.permute(1, 2, 0).contiguous().numpy()  # type: ignore[union-attr]

    return decode


def _simplejpeg() -> Callable[[bytes], Any]:
    import simplejpeg

    return lambda content: simplejpeg.decode_jpeg(content, "RGB")


def _simplejpeg_fast() -> Callable[[bytes], Any]:
    import simplejpeg

    return lambda content: simplejpeg.decode_jpeg(content, "RGB", fastdct=True, fastupsample=True)


def _pyturbojpeg() -> Callable[[bytes], Any]:
    import turbojpeg

    turbo = turbojpeg.TurboJPEG()
    return lambda content: turbo.decode(content, pixel_format=turbojpeg.TJPF_RGB)


DECODERS: dict[str, Callable[[], Callable[[bytes], Any]]] = {
    "Pillow": _pillow,
    "torchvision": _torchvision,
    "simplejpeg": _simplejpeg,
    "simplejpeg, fast DCT and upsampling": _simplejpeg_fast,
    "PyTurboJPEG": _pyturbojpeg,
}


def available() -> dict[str, Callable[[bytes], Any]]:
    """Those that are installed, Pillow first."""
    found = {}
    for name, make in DECODERS.items():
        try:
            found[name] = make()
        except (ImportError, RuntimeError, OSError) as error:  # PyTurboJPEG without its library
            print(f"{name}: not here ({' '.join(str(error).split())[:80]})", file=sys.stderr)
    return found


def measured(contents: list[bytes]) -> Iterator[str]:
    """Lines of the table."""
    decoders = available()
    expected = [decoders["Pillow"](content) for content in contents]
    best = dict.fromkeys(decoders, float("inf"))
    warnings.simplefilter("ignore", DeprecationWarning)  # torchvision's says in every call that it will go
    for _ in range(_TURNS):
        for name, decode in decoders.items():
            start = time.perf_counter()
            for content in contents:
                decode(content)
            best[name] = min(best[name], (time.perf_counter() - start) / len(contents))
    for name, decode in decoders.items():
        pairs = zip(map(decode, contents), expected, strict=True)
        largest = max(int(abs(ours.astype(int) - theirs).max()) for ours, theirs in pairs)
        yield f"| {name} | {1e3 * best[name]:.2f} | {best[name] / best['Pillow']:.2f} | {largest} |"


def main() -> None:
    """Prints the table."""
    import torch

    torch.set_num_threads(1)
    paths = sorted(path for path in Path(sys.argv[1]).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    print("| decoder | ms a photograph | beside Pillow | largest difference |\n| --- | --: | --: | --: |")
    for line in measured([path.read_bytes() for path in paths[:_FILES]]):
        print(line)


if __name__ == "__main__":
    main()
