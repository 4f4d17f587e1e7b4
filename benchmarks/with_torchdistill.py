"""The same trainings with torchdistill (Matsubara 2021, arXiv:2011.12913), in an environment of its own."""

from __future__ import annotations

import argparse
import json
import logging
import site
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any


def install(folder: Path) -> Path:
    """Makes an environment and installs torchdistill in it; PyTorch is this environment's, not downloaded again.

    Returns:
        Its interpreter.

    Raises:
        OSError: the environment cannot be made, or pip could not install it; the message is pip's last line.
    """
    python = folder / "bin" / "python"
    _call([sys.executable, "-m", "venv", str(folder)])
    own = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    ).stdout.strip()
    Path(own, "shared.pth").write_text("\n".join(site.getsitepackages()))
    _call([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "torchdistill"])
    return python


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise OSError(lines[-1] if lines else f"exit code {done.returncode}")


def train_config(args: argparse.Namespace) -> dict[str, Any]:
    """What its users write as yaml."""
    from torch.utils.data import RandomSampler

    loader = {"batch_size": 128, "num_workers": args.workers, "persistent_workers": args.workers > 0}
    logits = {"student_module_path": ".", "student_module_io": "output"}
    logits |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    weights = {"temperature": args.temperature, "alpha": args.ce_weight, "beta": args.kl_weight}
    soft = {"criterion": {"key": "KDLoss", "kwargs": {**logits, **weights, "reduction": "batchmean"}}, "weight": 1.0}
    answer = {"input": {"is_from_teacher": False, "module_path": ".", "io": "output"}, "target": {"uses_label": True}}
    hard = {
        "criterion": {"key": "CrossEntropyLoss", "kwargs": {}},
        "criterion_wrapper": {"key": "SimpleLossWrapper", "kwargs": answer},
        "weight": 1.0,
    }
    terms = {"kd": soft} if args.role == "distill" else {"ce": hard}
    return {
        "num_epochs": args.epochs,
        "train_data_loader": {"dataset_id": "train", "sampler": {"class_or_func": RandomSampler}, "kwargs": loader},
        "teacher": {"requires_grad": False, "forward_proc": "forward_batch_only"},
        "student": {"forward_proc": "forward_batch_only"},
        "model": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "Adam", "kwargs": {"lr": 1e-3}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }


def train(args: argparse.Namespace) -> dict[str, Any]:
    """The loop of its examples: a box for the data and the models, a logger for the numbers."""
    import torch
    from torch.utils.data import DataLoader
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.core.training import get_training_box
    from torchdistill.misc.log import MetricLogger

    from benchmarks.script import Student, accuracy, datasets, load_teacher

    cpu = torch.device("cpu")
    torch.manual_seed(args.seed)
    data, test = datasets(args.data, args.augment)
    network, common = Student(), ({"train": data}, train_config(args), cpu, None, False, 1.0)
    if args.role == "distill":
        box = get_distillation_box(load_teacher(args.teacher), network, *common)
    else:
        box = get_training_box(network, *common)
    report = {"images": len(data), "steps": 0, "losses": [], "epoch_seconds": []}
    for epoch in range(args.epochs):
        start, logger = time.perf_counter(), MetricLogger(delimiter="  ")
        box.pre_epoch_process(epoch=epoch)
        for images, labels, extra in logger.log_every(box.train_data_loader, 100, f"Epoch: [{epoch}]"):
            loss = box.forward_process(images, labels, extra)
            box.post_forward_process(loss=loss)
            logger.update(loss=loss.item())
            report["steps"] += 1
        box.post_epoch_process()
        report["epoch_seconds"].append(time.perf_counter() - start)
        report["losses"].append(logger.loss.global_avg)
    report["test_top1"] = accuracy(network, DataLoader(test, batch_size=128, num_workers=args.workers))
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    from benchmarks.script import parse

    logging.disable(logging.INFO)
    args, start = parse(arguments), time.perf_counter()
    report = train(args) | {"version": metadata.version("torchdistill")}
    print(json.dumps(report | {"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
