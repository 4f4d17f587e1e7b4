"""kd predict: pictures in, classes and probabilities out."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from kd_cli.console import printable
from kd_cli.data.decode import open_image, read_image
from kd_cli.errors import ConfigError, DataError
from kd_cli.evaluation.predict import Panel, Reader, find_images
from kd_cli.models.base import MODELS
from kd_cli.report.plots.grid import prediction_grid, shown_classes
from kd_cli.types import DataSpec

SIZE = 16  # of synthetic images
RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def save(path: str | Path, pixels: np.ndarray, **options: object) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return Path(path)


def by_hand(run: Path, pixels: np.ndarray) -> torch.Tensor:
    """The probabilities of an image [H, W, C] in plain PyTorch, from what the run's folder says."""
    record = json.loads((run / "run.json").read_text())
    data, epoch = record["data"], json.loads((run / "result.json").read_text())["best_epoch"]
    network = MODELS.build(record["model"], num_classes=10, in_channels=3, image_size=SIZE)
    network.load_state_dict(load_file(run / "checkpoints" / f"epoch-{epoch:04d}" / "model.safetensors"))
    mean, std = (torch.tensor(data["preprocessing"][key]).view(-1, 1, 1) for key in ("mean", "std"))
    images = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
    with torch.no_grad():
        return torch.softmax(network.eval()(images[None]), dim=1)[0]


def probabilities(said: list[dict]) -> torch.Tensor:
    """Of all ten classes of the synthetic data, in their order."""
    return torch.tensor([each["probability"] for each in sorted(said, key=lambda each: each["class"])])


def test_the_probabilities_are_those_of_plain_pytorch(kd, comparison: Path) -> None:
    save("a.png", COLOUR)
    result = kd("predict", str(comparison), "a.png", "--top", "10", "--json").json
    (row,) = result["images"]
    assert list(row["predictions"]) == ["teacher", "baseline", "distilled"]
    for name, said in row["predictions"].items():
        torch.testing.assert_close(probabilities(said), by_hand(comparison / name, COLOUR), rtol=1e-4, atol=1e-6)
        assert [each["probability"] for each in said] == sorted((each["probability"] for each in said), reverse=True)
    assert [each["name"] for each in result["networks"]] == list(row["predictions"])


def test_the_last_epoch_can_be_asked(kd, comparison: Path) -> None:
    save("a.png", COLOUR)
    epochs = json.loads((comparison / "result.json").read_text())["distilled"]["epochs"]
    result = kd("predict", str(comparison / "distilled"), "a.png", "--which", "last", "--json").json
    assert [each["epoch"] for each in result["networks"]] == [epochs]


def test_test_images_stand_beside_their_classes(kd, comparison: Path) -> None:
    result = kd("predict", str(comparison), "--test", "5", "--json").json
    assert [row["image"] for row in result["images"]] == [f"test {number}" for number in range(1, 6)]
    everything = kd("predict", str(comparison), "--test", "100", "--top", "1", "--json").json["images"]
    right = sum(row["predictions"]["distilled"][0]["class"] == row["true"] for row in everything)
    assert right == json.loads((comparison / "result.json").read_text())["distilled"]["test_top1"]


def test_only_so_many_classes_are_named(kd, comparison: Path) -> None:
    shown = kd("predict", str(comparison / "baseline"), "--test", "1", "--top", "2").out
    assert "rank 2" in shown
    assert "rank 3" not in shown


def test_other_sizes_and_modes_are_brought_to_the_networks_with_one_notice(kd, comparison: Path) -> None:
    save("as_it_is.png", COLOUR)
    save("wide.png", np.tile(COLOUR, (1, 2, 1)))
    save("wide_too.png", np.tile(COLOUR, (1, 2, 1)))
    save("grey.png", COLOUR[..., 0])
    outcome = kd("predict", str(comparison / "distilled"), "*.png", "--top", "10", "--json")
    assert outcome.err.count("note:") == 1
    assert "3 of 4 pictures were brought to 16×16 colour: 2 of 32×16 colour, 1 of 16×16 grey" in outcome.message
    said = {row["image"]: probabilities(row["predictions"]["distilled"]) for row in outcome.json["images"]}
    grey = np.repeat(COLOUR[..., :1], 3, axis=2)
    torch.testing.assert_close(said["grey.png"], by_hand(comparison / "distilled", grey), rtol=1e-4, atol=1e-6)


def test_unreadable_files_are_named_and_the_rest_goes_on(kd, comparison: Path) -> None:
    save("pictures/a.png", COLOUR)
    save("pictures/deep/b.jpg", COLOUR)
    Path("pictures/bad.png").write_bytes(b"nothing")
    Path("pictures/cut.png").write_bytes(Path("pictures/a.png").read_bytes()[:600])
    outcome = kd("predict", str(comparison / "distilled"), "pictures", "--json", "--csv", "all.csv", code=3)
    assert [row["image"] for row in outcome.json["images"]] == ["pictures/a.png", "pictures/deep/b.jpg"]
    assert set(outcome.json["unreadable"]) == {"pictures/bad.png", "pictures/cut.png"}
    assert "pictures/bad.png cannot be read" in outcome.message
    assert "2 of 4 pictures could not be read" in outcome.message
    assert "pictures/deep/b.jpg" in Path("all.csv").read_text()


def test_the_table_has_a_line_for_each_picture_network_and_class(kd, comparison: Path) -> None:
    rows = kd("predict", str(comparison), "--test", "3", "--csv", "said.csv", "--json").json["images"]
    with Path("said.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * 3 * 3
    assert list(lines[0]) == ["image", "true", "network", "rank", "class", "probability"]
    first = rows[0]["predictions"]["teacher"][0]
    assert (lines[0]["class"], float(lines[0]["probability"])) == (first["class"], first["probability"])
    assert lines[0]["true"] == rows[0]["true"]


def test_the_grid_has_a_panel_for_each_of_the_first_nine(kd, comparison: Path) -> None:
    outcome = kd("predict", str(comparison), "--test", "12", "--grid", "grid.svg")
    assert "the first 9 of 12" in outcome.out
    drawing = Path("grid.svg").read_text()
    assert drawing.count("<image ") == 9
    assert "test 9 · true class" in drawing
    assert "test 10" not in drawing
    kd("predict", str(comparison), "--test", "1", "--grid", "one.png")
    kd("predict", str(comparison), "--test", "9", "--grid", "nine.png")
    with Image.open("one.png") as one, Image.open("nine.png") as nine:
        assert nine.width > 2.5 * one.width
        assert nine.height > 2.5 * one.height


def test_a_students_teacher_is_found_and_drawn_beside_it(kd, comparison: Path) -> None:
    result = kd("predict", str(comparison / "distilled"), "--test", "1", "--grid", "grid.svg", "--json").json
    assert [each["name"] for each in result["networks"]] == ["teacher", "distilled"]


def test_a_moved_comparison_keeps_its_teacher_and_a_lost_one_is_left_out(kd, comparison: Path) -> None:
    shutil.copytree(comparison, "moved")
    record = json.loads(Path("moved/distilled/run.json").read_text())
    record["teacher"]["sources"] = ["/gone/teacher"]
    Path("moved/distilled/run.json").write_text(json.dumps(record))
    names = [each["name"] for each in kd("predict", "moved", "--test", "1", "--json").json["networks"]]
    assert names == ["teacher", "baseline", "distilled"]
    shutil.rmtree("moved/teacher")
    outcome = kd("predict", "moved", "--test", "1", "--json")
    assert [each["name"] for each in outcome.json["networks"]] == ["baseline", "distilled"]
    assert "its teacher is left out" in outcome.message


def test_an_ensemble_speaks_as_the_mean_of_its_logits(kd) -> None:
    small = ("dataset=synthetic", "dataset.num_train=100", "dataset.num_test=20", "teacher=mlp", "student=linear")
    run = kd("run", *small, "ensemble.size=2", "trainer.epochs=1", "--json").json["run"]
    save("a.png", COLOUR)
    said = kd("predict", run, "a.png", "--top", "10", "--json").json["images"][0]["predictions"]["teacher"]
    members = [by_hand(Path(run, name), COLOUR).log() for name in ("teacher", "teacher-2")]
    torch.testing.assert_close(probabilities(said), torch.softmax(sum(members) / 2, dim=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        ((), 2, "no picture is named"),
        (("a.png", "--test", "3"), 2, "both pictures and --test"),
        (("nothing.png",), 3, "there is no picture nothing.png"),
        (("*.nothing",), 3, "nothing matches *.nothing"),
        (("empty",), 3, "empty has no image"),
        (("a.png", "--grid", "grid.pdf"), 2, "neither .png nor .svg"),
        (("a.png", "--csv", "nowhere/a.csv"), 2, "there is no folder nowhere"),
        (("a.png", "--csv", "empty"), 2, "empty is a folder"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_done(
    kd, comparison: Path, words: tuple[str, ...], code: int, reason: str
) -> None:
    save("a.png", COLOUR)
    Path("empty").mkdir()
    assert reason in kd("predict", str(comparison), *words, code=code).message


def test_files_folders_and_globs_are_found_once_and_in_order() -> None:
    for name in ("b.png", "tree/x/2.JPG", "tree/1.webp", "tree/notes.txt", "tree/.hidden.png", "a[1].png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    found = [str(path) for path in find_images(["b.png", "tree", "tree/**/*.JPG", "a[1].png"])]
    assert found == ["b.png", "tree/1.webp", "tree/x/2.JPG", "a[1].png"]


def test_a_picture_is_turned_as_its_exif_orientation_says() -> None:
    wide = np.zeros((4, 8, 3), dtype=np.uint8)
    wide[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    pixels = read_image(save("turned.png", wide, exif=exif), "gray")
    assert pixels.shape == (8, 4, 1)
    assert (pixels[:4] == 255).all()
    assert (pixels[4:] == 0).all()


def test_sixteen_bits_become_eight() -> None:
    numbers = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    image, stored = open_image(save("deep.png", numbers))
    assert stored == "16-bit grey"
    assert (np.array(image) == np.arange(256).reshape(16, 16)).all()


def test_what_is_transparent_shows_white() -> None:
    clear = np.dstack([COLOUR, np.zeros((SIZE, SIZE), dtype=np.uint8)])
    assert (read_image(save("clear.png", clear), "rgb") == 255).all()
    grey = np.dstack([COLOUR[..., 0], np.full((SIZE, SIZE), 255, dtype=np.uint8)])
    assert (read_image(save("grey.png", grey), "gray").squeeze(-1).numpy() == COLOUR[..., 0]).all()
    palette = Image.fromarray(COLOUR).quantize(4)
    palette.save("palette.png", transparency=0)
    image, stored = open_image(Path("palette.png"))
    assert stored == "palette with transparency"
    assert (np.array(image)[np.array(palette) == 0] == 255).all()


def test_palettes_cmyk_black_and_white_and_the_first_frame_are_read() -> None:
    palette = Image.fromarray(COLOUR).quantize(16)
    palette.save("palette.png")
    assert (read_image(Path("palette.png"), "rgb").numpy() == np.array(palette.convert("RGB"))).all()
    Image.fromarray(COLOUR).convert("CMYK").save("ink.tif")
    assert (read_image(Path("ink.tif"), "rgb").numpy() == COLOUR).all()
    Image.fromarray(COLOUR[..., 0]).convert("1").save("bits.png")
    assert set(read_image(Path("bits.png"), "gray").unique().tolist()) == {0, 255}
    dark, light = (Image.new("L", (8, 8), value) for value in (10, 240))
    dark.save("moving.gif", save_all=True, append_images=[light])
    assert (read_image(Path("moving.gif"), "gray") == 10).all()


def test_numbers_without_a_known_white_are_refused() -> None:
    save("numbers.tif", COLOUR[..., 0].astype(np.float32))
    with pytest.raises(DataError, match="which of its numbers is white"):
        read_image(Path("numbers.tif"), "gray")


def test_names_do_nothing_to_a_terminal(kd) -> None:
    evil = "\x1b[31mred[bold]\x9b2J\u202e"
    for part, name in ((part, name) for part in ("train", "test") for name in (evil, "b")):
        for number in range(4):
            save(f"tree/{part}/{name}/{number}.png", RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    small = ("dataset=image_folder", "dataset.root=tree", "dataset.val_fraction=0", "student=linear", "device=cpu")
    run = kd("train-baseline", *small, "trainer.epochs=1", "trainer.batch_size=4", "--json").json["run"]
    outcome = kd("predict", run, "tree/test", "--csv", "all.csv", "--grid", "grid.svg")
    for text in (outcome.out, outcome.err, Path("all.csv").read_text(), Path("grid.svg").read_text()):
        assert not {"\x1b", "\x9b", "\u202e"} & set(text)
    assert "red[bold]" in outcome.out
    assert evil in {
        each["class"]
        for each in kd("predict", run, "--test", "1", "--json").json["images"][0]["predictions"]["baseline"]
    }


def test_undecodable_names_can_be_printed() -> None:
    name = b"\xff.png".decode(errors="surrogateescape")
    with pytest.raises(UnicodeEncodeError):
        name.encode()
    assert printable(name).encode() == "\N{REPLACEMENT CHARACTER}.png".encode()


def test_of_many_classes_only_the_most_probable_have_bars() -> None:
    teacher, student = [0.0] * 100, [0.0] * 100
    teacher[7], teacher[50], student[50], student[99] = 0.9, 0.1, 0.3, 0.7
    said = {"teacher": teacher, "distilled": student}
    assert shown_classes(said, 2) == [7, 99, 50]
    assert shown_classes({"teacher": [0.2, 0.8]}, 1) == [0, 1]
    names = ["a class with an endless name " * 9] * 100
    panels = [Panel("a.png", torch.zeros(8, 8, 1, dtype=torch.uint8), said)] * 9
    chart = prediction_grid(panels, names, 2).to_dict()
    assert len(chart["concat"]) == 9
    assert chart["columns"] == 3


def test_the_channels_of_the_network_must_be_those_of_pictures() -> None:
    with pytest.raises(ConfigError, match="2 channels; pictures have 1 or 3"):
        Reader([], DataSpec(10, 1, (2, 16, 16), ()), {})
