"""Saved networks on other data than their own: classes by name, folders tested whole, sizes and changes told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kd_cli.data.base import load_dataset
from tests.conftest import run_in
from tests.support.images import make_tree
from tests.support.reading import labels_of, pixels_of

TRAIN = ("train-teacher", "teacher=linear", "trainer.epochs=2", "trainer.batch_size=16", "device=cpu")
TREE = ("dataset=image_folder", "dataset.image_size=8", "dataset.workers=0")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learned cat, dog and eel from the folder `tree` beside it."""
    folder = tmp_path_factory.mktemp("learned")
    make_tree(folder / "tree", parts=("",), per_class=20)
    return run_in(folder, *TRAIN, *TREE, f"dataset.root={folder / 'tree'}")


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Other pictures of the same classes."""
    root = make_tree(tmp_path / "others", parts=("",), per_class=30)
    for path in root.glob("*/?.png"):
        path.unlink()
    return root


def evaluated(kd, run: Path, root: Path, *words: str) -> dict[str, Any]:
    return kd("evaluate", str(run), f"dataset.root={root}", *words, "--json").json["evaluations"][0]


def test_a_folder_with_some_of_the_classes_is_evaluated_on_these_by_name(kd, learned: Path, others: Path) -> None:
    whole = {each["class"]: each for each in evaluated(kd, learned, others)["per_class"]}
    assert [each["images"] for each in whole.values()] == [20, 20, 20]
    shutil.rmtree(others / "cat")
    some = kd("evaluate", str(learned), f"dataset.root={others}", "--json")
    assert some.json["evaluations"][0]["per_class"] == [
        {"class": "cat", "images": 0, "top1": None},
        whole["dog"],
        whole["eel"],
    ]
    assert "2 of the 3 classes" in some.message
    shutil.rmtree(others / "dog")
    assert evaluated(kd, learned, others)["per_class"][2] == whole["eel"]


def test_classes_of_other_names_are_refused_with_both_lists(kd, learned: Path, others: Path) -> None:
    (others / "eel").rename(others / "ant")
    message = kd("evaluate", str(learned), f"dataset.root={others}", code=3).message
    assert "knows 3 classes (cat, dog, eel), image_folder has 3 (ant, cat, dog); unknown to it: ant" in message
    assert "knows 3 classes (cat, dog, eel)" in kd("evaluate", str(learned), "dataset=synthetic", code=3).message
    message = kd(
        "distill", *TREE, f"dataset.root={others}", f"teacher.checkpoint={learned}", *TRAIN[1:], code=3
    ).message
    assert "knows 3 classes (cat, dog, eel), the data have 3 (ant, cat, dog)" in message
    assert "knows 3 classes" in kd("export", str(learned), f"dataset.root={others}", "--format", "pt2", code=3).message


def test_labels_follow_the_names_in_any_order(tmp_path: Path) -> None:
    data = load_dataset({"name": "image_folder", "root": str(make_tree(tmp_path / "tree")), "workers": 0})
    known = data.known_as(["eel", "bat", "cat", "dog"])
    assert labels_of(known, "test") == [2] * 5 + [3] * 5 + [0] * 5
    assert known.spec.class_names == ("eel", "bat", "cat", "dog")
    assert torch.equal(pixels_of(known, "test"), pixels_of(data, "test"))
    assert data.known_as(data.spec.class_names) is data
    for names in (["cat", "dog"], ["cat", "cat", "dog", "eel"]):
        with pytest.raises(ValueError, match="classes differ"):
            data.known_as(names)


def test_other_folders_are_tested_whole_and_the_own_one_as_it_was_wherever_it_is(
    kd, learned: Path, others: Path, tmp_path: Path
) -> None:
    own = json.loads((learned / "result.json").read_text())["test_top1"]
    moved = shutil.copytree(learned.parent / "tree", tmp_path / "moved")
    row = evaluated(kd, learned, moved)
    assert (row["images"], row["top1"]) == (12, own)
    whole = kd("evaluate", str(learned), f"dataset.root={others}", "--json")
    assert whole.json["evaluations"][0]["images"] == 60
    assert f"60 images of {others} are tested (" in whole.message
    assert "type dataset.test_fraction=0.2" in whole.message
    assert evaluated(kd, learned, others, "dataset.test_fraction=0.2")["images"] == 12
    for path in sorted((others / "dog").iterdir())[1:]:
        path.unlink()
    assert "no test image shows" not in kd("evaluate", str(learned), f"dataset.root={others}").message  # all are tested
    for part in ("train", "test"):
        shutil.copytree(moved / "dog", others / "parts" / part / "dog")
    assert evaluated(kd, learned, others / "parts")["images"] == 20


def test_images_that_have_changed_or_have_another_size_are_told(kd, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", parts=("",), per_class=20)
    run = run_in(tmp_path, *TRAIN[:1], "teacher=resnet8", *TRAIN[2:], *TREE, f"dataset.root={root}")
    assert "have changed" not in kd("evaluate", str(run)).message
    assert "8×8 pixels (width × height), those of image_folder have 12×12" in (
        kd("evaluate", str(run), "dataset.image_size=12").message
    )
    shutil.copy(root / "cat" / "0.png", root / "cat" / "new.png")
    assert "have changed" in kd("evaluate", str(run)).message


def test_weights_without_a_record_of_classes_are_taken_in_order_with_a_notice(kd, learned: Path, others: Path) -> None:
    weights = shutil.copy(next(learned.glob("checkpoints/*/model.safetensors")), "alone.safetensors")
    words = ("student=linear", *TREE, f"dataset.root={others}")
    assert "does not say which classes it knows" in kd("evaluate", str(weights), *words).message
    unsaid = kd("evaluate", str(weights), *words[1:], code=3)  # a linear network's weights, and the default student
    assert "It was taken for 'cnn'" in unsaid.message
    assert "type student=NAME with one of kd list models" in unsaid.message


def test_networks_for_squares_are_refused_on_rectangles_of_other_data(kd, learned: Path, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "wide", parts=("",))
    words = (f"dataset.root={root}", "dataset.image_size=null")
    message = kd("evaluate", str(learned), *words, code=2).message
    assert "cannot take images of 8×6 pixels" in message
    assert "type dataset.image_size=8" in message


def test_skipped_files_are_on_record(kd, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", parts=("",), per_class=10)
    (root / "cat" / "0.png").write_bytes(b"")
    words = ("train-baseline", "student=resnet8", "trainer.epochs=1", *TREE, f"dataset.root={root}")
    assert "cannot be read as an image" in kd(*words, code=3).message
    run = kd(*words, "dataset.unreadable=skip", "--json").json["run"]
    assert json.loads(Path(run, "run.json").read_text())["data"]["unreadable"] == 1


def test_a_dry_run_keeps_what_it_has_decoded(kd, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", parts=("",), per_class=10)
    words = ("train-baseline", "student=resnet8", "trainer.epochs=1", *TREE, f"dataset.root={root}")
    first = kd(*words, "--dry-run")
    assert "decoding 30 images" in first.message
    assert "3 classes: cat, dog, eel" in first.out
    assert "decoding" not in kd(*words).message


def test_nothing_can_be_trained_on_test_images_alone(kd, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", parts=("",))
    words = ("train-baseline", "student=resnet8", *TREE, f"dataset.root={root}", "dataset.test_fraction=1")
    assert "type dataset.test_fraction=0.2" in kd(*words, code=3).message


def test_mnists_small_networks_on_photographs_are_told_with_a_pair_to_type(kd, tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / "tree" / label).mkdir(parents=True)
        for number in range(10):
            pixels = np.full((64, 64, 3), number, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "tree" / label / f"{number}.png")
    words = ("run", "dataset=image_folder", f"dataset.root={tmp_path / 'tree'}", "--dry-run")
    notice = kd(*words).message
    pair = notice.partition("a pair for them: ")[2].split()[:4]
    assert [word.partition("=")[0] for word in pair] == ["teacher", "teacher.model", "student", "student.model"]
    assert "a pair for them" not in kd(*words, *pair).message
    assert "a pair for them" not in kd(*words, "student=cnn_tiny").message
