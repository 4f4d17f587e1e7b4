"""kd.load: images in, the probabilities of `kd predict` out."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import kd_cli as kd_api
from tests.conftest import SMALL
from tests.launch.test_hostile_configs import RECORDS

RANDOM = np.random.default_rng(0)
SIZE = 16  # of synthetic images
COLOUR = RANDOM.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
LARGE = RANDOM.integers(0, 256, (40, 30, 3), dtype=np.uint8)
GREY = RANDOM.integers(0, 256, (20, 20), dtype=np.uint8)
CLEAR = RANDOM.integers(0, 256, (18, 18, 4), dtype=np.uint8)  # its fourth channel is transparency


def predicted(kd: Any, run: Path, *files: str) -> torch.Tensor:
    """What `kd predict` says of the classes in their order, [N, K]; of a comparison's networks the last."""
    rows = kd("predict", str(run), *files, "--top", "10", "--json").json["images"]
    said = [list(row["predictions"].values())[-1] for row in rows]
    return torch.tensor([[p["probability"] for p in sorted(row, key=lambda each: each["class"])] for row in said])


@pytest.mark.parametrize("pixels", [COLOUR, LARGE, GREY, CLEAR], ids=["as learned", "large", "grey", "transparent"])
def test_whatever_an_image_is_the_numbers_are_those_of_the_command_line(kd, comparison: Path, pixels) -> None:
    Image.fromarray(pixels).save("a.png")
    network = kd_api.load(comparison)
    tensor = torch.from_numpy(pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())
    wanted = predicted(kd, comparison, "a.png")
    for image in ("a.png", Path("a.png"), Image.open("a.png"), pixels, tensor, [pixels]):
        assert torch.equal(network(image), wanted), type(image)


def test_several_images_are_several_rows(kd, comparison: Path) -> None:
    many = RANDOM.integers(0, 256, (70, SIZE, SIZE, 3), dtype=np.uint8)  # more than one batch of kd predict
    for place, pixels in enumerate(many):
        Image.fromarray(pixels).save(f"{place:02d}.png")
    network, files = kd_api.load(comparison / "distilled"), [f"{place:02d}.png" for place in range(70)]
    wanted = predicted(kd, comparison / "distilled", *files)
    assert wanted.shape == (70, 10)
    for images in (files, list(many), many, torch.from_numpy(many).permute(0, 3, 1, 2), [*files[:5], *many[5:]]):
        assert torch.equal(network(images), wanted)
    assert network([]).shape == (0, 10)
    assert network(files[3]).shape == (1, 10)


def test_it_knows_its_classes_and_how_images_were_prepared(comparison: Path) -> None:
    network = kd_api.load(comparison / "distilled", device="cpu")
    assert network.classes == tuple(f"pattern {label}" for label in range(10))
    assert network.image_shape == (3, SIZE, SIZE)
    facts = network.preprocessing
    mean, std = (torch.tensor(facts[key]).view(-1, 1, 1) for key in ("mean", "std"))
    images = (torch.from_numpy(COLOUR).permute(2, 0, 1) / 255 - mean) / std
    with torch.no_grad():
        by_hand = torch.softmax(network.module(images[None]), dim=1)
    torch.testing.assert_close(network(COLOUR), by_hand, rtol=1e-4, atol=1e-6)
    assert not network.module.training


def test_a_run_a_checkpoint_a_comparison_and_the_newest_are_opened(comparison: Path) -> None:
    distilled = comparison / "distilled"
    said = {name: kd_api.load(place)(COLOUR) for name, place in {"run": distilled, "whole": comparison}.items()}
    assert torch.equal(said["run"], said["whole"])
    assert not torch.equal(said["run"], kd_api.load(comparison / "baseline")(COLOUR))
    last = kd_api.load(distilled, which="last")
    checkpoint = kd_api.load(distilled / "checkpoints" / "epoch-0002")
    assert last.epoch == checkpoint.epoch == 2
    assert torch.equal(last(COLOUR), checkpoint(COLOUR))
    shutil.copytree(comparison, "outputs/day/one")
    newest = kd_api.load()
    assert newest.run == Path("outputs/day/one/distilled")
    assert torch.equal(newest(COLOUR), said["run"])
    trained = kd_api.run(SMALL, command="train-teacher", quiet=True)
    assert kd_api.load().run.absolute() == trained.run


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (COLOUR / 255, "image 0 is of float64, and kd normalises images itself"),
        (torch.rand(3, SIZE, SIZE), "image 0 is of torch.float32"),
        (
            torch.zeros(SIZE, SIZE, 3, dtype=torch.uint8),
            r"has the shape \[16, 16, 3\]; arrays are \[H, W, C\], tensors",
        ),
        (np.zeros((3, SIZE, SIZE), np.uint8), r"has the shape \[3, 16, 16\]"),
        ([COLOUR, 7], "image 1 is of the type int; an image is"),
        ("nowhere.png", "nowhere.png cannot be read"),
        ([COLOUR, "text.png"], "text.png cannot be read as an image"),
        (Image.fromarray(np.full((4, 4), 0.5, np.float32)), "image 0 cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "given",
)
def test_what_is_no_image_of_bytes_is_refused(comparison: Path, image: Any, said: str) -> None:
    Path("text.png").write_text("no image")
    with pytest.raises(kd_api.DataError, match=said):
        kd_api.load(comparison)(image)


def test_what_cannot_be_opened_says_why(comparison: Path) -> None:
    for run, options, said in (
        ("nowhere", {}, "there is no run nowhere"),
        (None, {}, "no completed training in outputs"),
        (comparison, {"device": "cuda:77"}, "device: 'cuda:77' is not on this machine"),
        (comparison / "distilled" / "checkpoints" / "epoch-0002", {"which": "best"}, "leave it out"),
    ):
        with pytest.raises(kd_api.ConfigError, match=said):
            kd_api.load(run, **options)
    Path("empty").mkdir()
    with pytest.raises(kd_api.DataError, match="not a completed run"):
        kd_api.load("empty")


def test_a_changed_weights_file_is_noticed(comparison: Path) -> None:
    run = Path(shutil.copytree(comparison / "distilled", "run"))
    file = next(run.glob("checkpoints/*-0002/model.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(kd_api.DataError, match="damaged"):
        kd_api.load(run, which="last")


@pytest.mark.slow  # 44 folders of a run: 5 s
@pytest.mark.parametrize("name", RECORDS)
def test_records_made_to_harm_are_data_here_too(comparison: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("TEST_SECRET", "a-secret")
    run = Path(shutil.copytree(comparison / "distilled", "run"))
    RECORDS[name][0](run)
    said = ""
    try:
        kd_api.load(run)(COLOUR)
    except kd_api.KDError as error:
        said = str(error)
    assert "a-secret" not in said
    assert not Path("ran").exists()


def test_a_record_names_a_programs_module_and_nothing_is_imported_for_it(comparison: Path) -> None:
    run = Path(shutil.copytree(comparison / "distilled", "run"))
    record = json.loads((run / "run.json").read_text())
    model = {"name": "own_student", "network": "antigravity.Net"}
    (run / "run.json").write_text(json.dumps(record | {"model": model}))
    with pytest.raises(kd_api.ConfigError, match="give a module like it: student=module"):
        kd_api.load(run)
    assert "antigravity" not in sys.modules
