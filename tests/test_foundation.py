"""docs/foundation.md: every line of it is typed, with a small encoder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "foundation.md").read_text()
SMALLER = {
    "vit_small_patch14_dinov2 teacher.image_size=112": "vit_small_patch14_dinov2 teacher.image_size=28",
    "teacher.kwargs.pretrained=true": (
        "'teacher.kwargs={depth: 1, embed_dim: 24, num_heads: 2}' teacher.pretrained=encoder.pth"
    ),
    "epochs=30": "epochs=1",
    "dataset=mnist_few": "dataset=mnist_few dataset.images_per_class=30",
}


def lines() -> list[list[str]]:
    text = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL))
    for number, small in SMALLER.items():
        assert number in text
        text = text.replace(number, small)
    return [shlex.split(line) for line in text.replace("\\\n", " ").splitlines() if line]


@pytest.mark.slow
def test_every_line_leads_from_an_encoder_to_a_student(kd) -> None:
    import torch

    timm = pytest.importorskip("timm")
    small = {"depth": 1, "embed_dim": 24, "num_heads": 2, "img_size": 28, "in_chans": 1, "num_classes": 0}
    torch.save(timm.create_model("vit_small_patch14_dinov2", **small).state_dict(), "encoder.pth")
    for _, *words in lines():
        kd(*words)
    assert Path("outputs/student/result.json").exists()


def test_the_presets_say_what_the_page_says(kd) -> None:
    composed = yaml.safe_load(kd("run", "experiment=foundation", "--cfg", "job").out)
    assert (composed["teacher"]["probe"], composed["loss"]["name"]) == (True, "encoder")
    assert (composed["dataset"]["name"], composed["dataset"]["images_per_class"]) == ("cifar10", 100)
    composed = yaml.safe_load(kd("run", "experiment=cross_architecture", "--cfg", "job").out)
    assert (composed["teacher"]["name"], composed["loss"]["name"]) == ("vit_tiny", "ofa")
    assert composed["teacher"]["probe"] is False
