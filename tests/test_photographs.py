"""docs/photographs.md: every line of it is typed, on a small tree."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.support.images import make_photographs

PAGE = (ROOT / "docs" / "photographs.md").read_text()
WALK, IMAGENET = PAGE.split("\n## ImageNet\n")
SMALLER = {
    **{"image_size=224": "image_size=72", "epochs=30": "epochs=1", "batch_size=64": "batch_size=8"},
    "student=torchvision student.model=mobilenet_v3_small": "student=cnn_tiny",
}


def typed(text: str) -> list[list[str]]:
    """The words of each line in the blocks of a shell, with smaller numbers."""
    for number, small in SMALLER.items():
        text = text.replace(number, small)
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def write_files() -> None:
    """What the page has, and what it says its reader has: photographs, ImageNet's weights and a checkpoint."""
    import torch
    from torchvision.models import resnet18

    for name, text in re.findall(r"```yaml\n# (\S+)\n(.*?)```", WALK, flags=re.DOTALL):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text(text.replace("image_size: 224", "image_size: 72") + "workers: 0\n")
    make_photographs(Path("photographs"), parts=("",), per_class=8)
    torch.save(resnet18().state_dict(), "resnet18.pth")
    torch.save({"epoch": 3, "state_dict": resnet18(num_classes=3).state_dict()}, "mine.pth")


@pytest.mark.slow
def test_every_line_leads_to_a_deployed_student(kd) -> None:
    pytest.importorskip("onnxruntime")
    write_files()
    for program, *words in typed(WALK):
        if program == "kd":
            kd(*words)
            continue
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
        assert any(name in done.stdout for name in ("cat", "dog", "eel"))
    assert Path("deployed", "model.onnx").exists()
    assert all(Path("outputs", name, "result.json").exists() for name in ("repeated", "mixed"))


def test_the_lines_for_imagenet_compose(kd) -> None:
    (line,) = (words for words in typed(IMAGENET) if words[0] == "kd")
    words = [word for word in line[1:] if word != "--dry-run"]
    composed = yaml.safe_load(kd(*words, "--cfg", "job", "--resolve").out)
    assert composed["dataset"]["augment"] == ["random_resized_crop", "flip"]
    assert (composed["dataset"]["repeats"], composed["dataset"]["views"]) == (4, 100)
    assert (composed["teacher"]["model"], composed["teacher"]["checkpoint"]) == ("resnet50", "resnet50.pth")
    assert (composed["teacher_cache_top_k"], composed["teacher_cache_dtype"]) == (50, "float16")


def test_its_gigabytes_are_those_of_the_formula() -> None:
    images = round(0.98 * 1_281_167)
    rows = re.findall(r"\| [\w ,]+ \| ([\d,]+) \| ([\d.]+) GB \| ([\d.]+) GB \| ([\d.]+) (GB|TB) \|", IMAGENET)
    assert len(rows) == 4
    for number_bytes, *cells, last, unit in rows:
        gigabytes = images * int(number_bytes.replace(",", "")) / 1e9
        written = [*map(float, cells), float(last) * (1000 if unit == "TB" else 1)]
        assert written == pytest.approx([gigabytes, 100 * gigabytes, 300 * gigabytes], rel=0.006)


def test_it_names_every_augmentation() -> None:
    from kd_cli.data.augment import AUGMENTATIONS

    assert set(AUGMENTATIONS.names()) == set(re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE))
