"""One encoded image: the quick way to its pixels gives what PIL gives, and what is out of the ordinary goes to PIL."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from PIL import Image

from kd_cli.data import decode
from kd_cli.data.decode import Mode, Unreadable, read_image, read_scaled
from kd_cli.data.preprocess import Prepare
from tests.data.test_operations import photograph

EXIF_TURNED = Image.Exif()
EXIF_TURNED[0x0112] = 6

# kind → how it is made of a photograph, how it is saved, and for which modes it needs no PIL
KINDS: Mapping[str, tuple[str, Mapping[str, Any], set[Mode]]] = {
    "plain": ("RGB", {}, {"rgb"}),
    "progressive": ("RGB", {"progressive": True}, {"rgb"}),
    "without subsampling": ("RGB", {"subsampling": 0}, {"rgb"}),
    "stored as RGB": ("RGB", {"keep_rgb": True}, {"rgb"}),
    "with restarts": ("RGB", {"restart_marker_rows": 1}, {"rgb"}),
    "with a comment": ("RGB", {"comment": b"a photograph"}, {"rgb"}),
    "grey": ("L", {}, {"gray"}),
    "turned": ("RGB", {"exif": EXIF_TURNED}, set()),
    "for print": ("CMYK", {}, set()),
}


def encoded(made: str, options: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photograph(37, 61).numpy()).convert(made).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["rgb", "gray"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_photograph_has_pil_s_pixels_whichever_way_it_is_decoded(
    kind: str, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, options, plain = KINDS[kind]
    content = encoded(made, options)
    asked: list[io.BytesIO] = []
    monkeypatch.setattr(decode, "_open", lambda file, before=decode._open: asked.append(file) or before(file))
    size, scaled = read_scaled("it", mode, io.BytesIO(content), lambda *_: {1})
    assert not asked if mode in plain else asked
    assert torch.equal(scaled[1], read_image("it", mode, io.BytesIO(content)))
    assert size == tuple(scaled[1].shape[:2]) == ((61, 37) if kind == "turned" else (37, 61))


@pytest.mark.parametrize("damage", [lambda whole: whole[:-200], lambda whole: whole[:400] + bytes(300) + whole[700:]])
def test_what_pil_cannot_decode_is_not_decoded_quickly(damage: Any) -> None:
    content = damage(encoded("RGB", {}))
    try:
        Image.open(io.BytesIO(content)).load()
    except OSError:
        with pytest.raises(Unreadable, match=r"^it cannot be read as an image"):
            read_scaled("it", "rgb", io.BytesIO(content), lambda *_: {1})
    else:
        _, scaled = read_scaled("it", "rgb", io.BytesIO(content), lambda *_: {1})
        assert torch.equal(scaled[1], read_image("it", "rgb", io.BytesIO(content)))


def test_a_header_that_claims_too_much_is_refused_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_decode_jpeg", lambda *_: pytest.fail("it is decoded"))
    content = encoded("RGB", {})
    place = content.index(b"\xff\xc0") + 5
    claims = content[:place] + 2 * (10_000).to_bytes(2, "big") + content[place + 4 :]
    with pytest.raises(Unreadable, match="10000×10000 pixels, more than"):
        read_scaled("it", "rgb", io.BytesIO(claims), lambda *_: {1})


@pytest.mark.parametrize("size", [8, 224])
def test_large_images_are_normalised_as_small_ones_are(size: int) -> None:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    pixels = torch.stack([photograph(size, size), photograph(size, size).flip(0)])
    made = Prepare("none", mean, std, (size, size, 3)).normalise(pixels)
    deviation = torch.tensor(std, dtype=torch.float64)
    scale, bias = (1 / (255 * deviation)).float(), (-torch.tensor(mean, dtype=torch.float64) / deviation).float()
    assert torch.equal(made, (pixels.float() * scale + bias).permute(0, 3, 1, 2))
    assert made.is_contiguous(memory_format=torch.channels_last)
