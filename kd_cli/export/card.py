"""README.md of an export: a model card, in the form that model hubs read. Every number in it is on record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kd_cli.config.base import STAGE_TRAINER
from kd_cli.export.deployed import Subject
from kd_cli.export.script import NEEDS
from kd_cli.runs.provenance import rerun_line

Facts = Mapping[str, Any]

_COLOURS = {1: "grey", 3: "colour (RGB)"}
_SHOWN_CLASSES = 100


def model_card(subject: Subject, report: Facts, results: Facts) -> str:
    """The whole card.

    Args:
        report: what config.json says.
        results: as `recorded_results` gives them.
    """
    record, config = subject.saved.source.record, subject.saved.recorded
    top1 = report["checks"].get("int8", {}).get("int8_test_top1", results["test_top1"])
    parts = (
        _header(report, top1),
        _what(report, top1),
        _use(report),
        _data(report, record, config, results),
        _recipe(report, record, config),
        _results(report, results),
        _checks(report),
        _limits(report, results),
        _provenance(report, record),
    )
    return "\n".join(line for part in parts for line in (*part, ""))


def _header(report: Facts, top1: float | None) -> Iterator[str]:
    tags = ["image-classification", *(["knowledge-distillation", report["loss"]] if report["loss"] else [])]
    yield "---"
    yield "license: other  # fill in: the licence of these weights; the licence of the data may bind you"
    yield "license_name: fill-in"
    yield f"tags: {json.dumps(tags)}"
    yield "pipeline_tag: image-classification"
    yield f"datasets: {json.dumps([report['dataset']])}"
    yield "metrics: [accuracy]"
    if top1 is not None:
        yield "model-index:"
        yield f"- name: {_title(report)}"
        yield "  results:"
        yield "  - task: {type: image-classification}"
        yield f"    dataset: {{name: {report['dataset']}, type: {report['dataset']}, split: test}}"
        yield f"    metrics: [{{type: accuracy, value: {top1 / 100:.4f}}}]"
    yield "---"


def _what(report: Facts, top1: float | None) -> Iterator[str]:
    how = f"distilled with `loss={report['loss']}`" if report["loss"] else "trained from the labels"
    yield f"# {_title(report)}"
    yield ""
    yield (
        f"A `{report['model']['name']}` with {report['parameters']:,} parameters for {len(report['classes'])} classes "
        f"of {report['dataset']}, {how}."
        + ("" if top1 is None else f" Top-1 accuracy on the test images: {top1:.2f} %.")
    )
    if report["graft"]:
        yield ""
        yield "The loss made a network of its own of the student, with a part of the teacher in it; this is that one."


def _use(report: Facts) -> Iterator[str]:
    kind = report["format"]
    yield "## How to use it"
    yield ""
    yield "```sh"
    yield f"pip install {NEEDS[kind]}"
    yield "python infer.py image.png"
    yield "```"
    yield ""
    if kind == "safetensors":
        yield "`model.safetensors` holds weights alone; the network is built by kd, five lines:"
        yield ""
        yield from _five_lines(report)
        yield ""
        yield (
            "In code of your own: build the same architecture (`model` in config.json), load the tensors, and give it "
            f"float32 [batch, {report['channels']}, H, W], (byte / 255 − mean) / std with mean {report['mean']} and "
            f"std {report['std']} per channel."
        )
    else:
        yield f"- input `{report['input']}`, any batch size. The preprocessing is inside: give it bytes."
        yield f"- output `{report['output']}`."
        place = {"onnx": "the file's metadata", "pt2": "`kd.json` inside the file"}[kind]
        if kind == "pt2":
            yield f"- written by PyTorch {torch.__version__}; an older one may not read it."
            yield "- PyTorch may run what such a file holds: load it only if its SHA-256 is the one below."
        yield f"- class names, in the order of the logits: config.json, and {place}."


def _five_lines(report: Facts) -> Sequence[str]:
    trust = ", trust_external=True" if report["model"]["name"] == "external" else ""
    return (
        "```python",
        "import torch",
        "from kd_cli.export.weights import load",
        "",
        f'network = load("."{trust})  # with its preprocessing',
        f"images = torch.zeros({[2, *report['image_size'], report['channels']]}, dtype=torch.uint8)",
        "logits = network(images)",
        "```",
    )


def _data(report: Facts, record: Facts, config: Facts, results: Facts) -> Iterator[str]:
    sizes = results["recorded"].get("images", {})
    height, width = report["image_size"]
    yield "## Data"
    yield ""
    yield f"- `{report['dataset']}`, SHA-256 of images, labels and split `{report['data_fingerprint']}`"
    if sizes:
        yield f"- {sizes['train']:,} training, {sizes['val']:,} validation and {sizes['test']:,} test images"
    augmentation = record["data"]["preprocessing"]["augment"]
    colours = _COLOURS.get(report["channels"], f"{report['channels']} channels")
    yield f"- {height} × {width} pixels in {colours}; augmentation in training: {augmentation}"
    shown, more = report["classes"][:_SHOWN_CLASSES], len(report["classes"]) - _SHOWN_CLASSES
    yield f"- classes: {', '.join(shown)}{f' and {more} more, in config.json' if more > 0 else ''}"
    options = dict(config["dataset"])
    if "root" in options:  # the folder's name, not where it was
        options["root"] = Path(options["root"]).name
    yield f"- options: `{json.dumps(options)}`"
    if record.get("specialist"):
        yield "- a specialist: it tells these classes apart, and `other` stands for all others"


def _recipe(report: Facts, record: Facts, config: Facts) -> Iterator[str]:
    recipe = config.get(STAGE_TRAINER.get(report["stage"], "trainer"), {})
    yield "## Recipe"
    yield ""
    yield f"- network: `{json.dumps(report['model'])}`"
    if record.get("loss"):
        yield f"- loss: `{json.dumps(record['loss'])}`"
    teacher = record.get("teacher")
    if teacher:
        measured = "" if teacher["val_top1"] is None else f", {teacher['val_top1']:.2f} % on the validation images"
        yield f"- teacher: `{json.dumps(teacher['models'])}`{measured}, SHA-256 `{'`, `'.join(teacher['sha256'])}`"
    yield f"- training: `{json.dumps(recipe)}`"
    yield f"- seed {report['seed']}"


def _results(report: Facts, results: Facts) -> Iterator[str]:
    recorded, seeds = results["recorded"], results["seeds"]
    yield "## Results"
    yield ""
    if not recorded or results["weights"] is None:
        yield f"These are the weights after epoch {report['epoch']}; how they do on the test images is not on record."
        return
    yield "| epoch | chosen | validation top-1 % | test top-1 % |"
    yield "|---|---|---|---|"
    val = "–" if recorded.get("val_top1") is None else f"{recorded['val_top1']:.2f}"
    mark = {name: " (this file)" if name == results["weights"] else "" for name in ("best", "last")}
    yield f"| {recorded['best_epoch']} | best on validation{mark['best']} | {val} | {recorded['test_top1']:.2f} |"
    yield f"| {recorded['epochs']} | last{mark['last']} | | {recorded['test_top1_last']:.2f} |"
    yield ""
    if seeds is None:
        yield f"One seed ({report['seed']}): how much the result varies with the seed was not measured."
        return
    listed = ", ".join(f"{seed}: {top1:.2f}" for seed, top1 in seeds["test_top1"].items())
    yield (
        f"The same experiment with {len(seeds['test_top1'])} seeds, best on validation: "
        f"{seeds['mean']:.2f} ± {seeds['std']:.2f} % on the test images (mean ± standard deviation; {listed})."
    )


def _checks(report: Facts) -> Iterator[str]:
    checks, variants = report["checks"], report["variants"]
    parity = ", ".join(f"{size}: {each:.1e}" for size, each in checks["parity"]["max_abs_difference"].items())
    yield "## Checks of the export"
    yield ""
    int8 = checks.get("int8")
    what = ", of the float32 file that was quantised" if int8 else ""
    yield f"- largest difference of a logit from PyTorch's on test images{what}, by batch size: {parity}"
    if int8:
        calibration = int8["calibration"]
        yield f"- int8, calibrated on {calibration['images']} training images (seed {calibration['seed']}):"
        yield f"  {int8['int8_test_top1']:.2f} % on the test images, float32 {int8['float32_test_top1']:.2f} %;"
        yield f"  both choose the same class for {int8['same_class']:.2f} % of them"
    for name, each in variants.items():
        speed = f", {each['milliseconds']:.3f} ms per image (batch 1)" if "milliseconds" in each else ""
        beside = f", PyTorch {each['milliseconds_pytorch']:.3f} ms" if "milliseconds_pytorch" in each else ""
        yield f"- {name}: {each['bytes']:,} bytes{speed}{beside}"


def _limits(report: Facts, results: Facts) -> Iterator[str]:
    height, width = report["image_size"]
    yield "## Limits"
    yield ""
    yield "- It knows the classes above and no others: every image gets one of them, whatever it shows."
    yield f"- It was trained and tested on images of {report['dataset']} alone. Other sources, noise, blur and other"
    yield "  corruptions, adversarial images, and groups of people or places were not tested."
    yield f"- It takes {height} × {width} pixels. infer.py stretches other images; what that costs was not measured."
    yield "- The softmax of its logits was not calibrated: 0.9 need not mean right in nine of ten."
    if results["seeds"] is None:
        yield "- Its accuracy is that of one training run; another seed gives another number."
    if "milliseconds" in report["variants"]["float32"]:
        yield "- Times are of the machine that exported it."


def _provenance(report: Facts, record: Facts) -> Iterator[str]:
    packages = ", ".join(f"{name} {version}" for name, version in record.get("packages", {}).items() if version)
    dirty = " with uncommitted changes" if record.get("git_dirty") else ""
    yield "## Provenance"
    yield ""
    yield f"- made by `{rerun_line(record)}`, started {record.get('started')}"
    yield f"- git commit {record.get('git_commit') or 'not known'}{dirty}"
    yield f"- trained with Python {record.get('python')}, {packages}; device {record.get('device')}"
    yield f"- weights: epoch {report['epoch']}, SHA-256 `{report['weights_sha256']}`"
    yield f"- exported by kd {report['kd_version']}"
    yield ""
    yield "| file | SHA-256 |"
    yield "|---|---|"
    for name, digest in report["files"].items():
        yield f"| {name} | `{digest}` |"


def _title(report: Facts) -> str:
    kind = {"onnx": "ONNX", "pt2": "PyTorch export", "safetensors": "safetensors"}[report["format"]]
    how = ", ".join([report["stage"], kind, *(["int8"] if report["int8"] else [])])
    return f"{report['model']['name']} on {report['dataset']} ({how})"
