"""Mistakes that people make: what is typed, the exit code, and what the message must hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# The smallest experiment; each mistake is typed behind it.
BASE = (
    "dataset=synthetic",
    "dataset.num_train=300",
    "dataset.num_test=100",
    "teacher=mlp",
    "student=mlp",
    "trainer.epochs=1",
    "trainer.limit_train_batches=1",
    "device=cpu",
)


@dataclass(frozen=True)
class Bad:
    """A mistake.

    Args:
        words: typed behind `kd run` and the smallest experiment, or behind `command`.
        key: what the message must name.
        remedy: what it must say to type instead, or what there is.
        code: 2 of a configuration, 3 of data.
        command: another command line, without the smallest experiment.
        files: that are there: path → content; `None`: a folder; a path: a link to it.
    """

    words: tuple[str, ...]
    key: str
    remedy: str
    code: int = 2
    command: tuple[str, ...] = ("run", *BASE)
    files: Mapping[str, str | bytes | Path | None] = field(default_factory=dict)

    @property
    def line(self) -> list[str]:
        """Everything behind `kd`."""
        return [*self.command, *self.words]

    def __str__(self) -> str:
        return " ".join([self.command[0], *self.words])

    def make(self, folder: Path) -> None:
        """Makes its files."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.mkdir()
            elif isinstance(content, Path):
                path.symlink_to(content)
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)


def _bad(word: str, key: str, remedy: str, *more: str, code: int = 2) -> Bad:
    return Bad((word, *more), key, remedy, code)


def _yaml(content: str | bytes | Path | None, key: str, remedy: str) -> Bad:
    return Bad(("--config-dir", "mine", "loss=mine"), key, remedy, files={"mine/loss/mine.yaml": content})


def _distill(*words: str, key: str, remedy: str, code: int = 2, **files: str | bytes | None) -> Bad:
    return Bad(words, key, remedy, code, ("distill", *BASE), files)


UNKNOWN_KEYS = (
    _bad("colour=red", "colour: there is no such option", "Known: "),
    _bad("+colour=red", "colour: the configuration has no option", "Known: "),
    _bad("+hydra=2", "+hydra=2", "hydra.KEY=VALUE"),
    _bad("loss.temprature=3", "loss.temprature", "did you mean 'loss.temperature'"),
    _bad("+loss.temprature=3", "loss.temprature", "did you mean 'temperature'"),
    _bad("+trainer.epoch=3", "trainer.epoch", "did you mean 'epochs'"),
    _bad("+student.widht=3", "student.widht", "Known: dropout, hidden"),
    _bad("dataset.nois=1", "dataset.nois", "did you mean 'dataset.noise'"),
    _bad("hydra.foo=1", "hydra.foo", "Known: "),
    _bad("hydra.run.dri=x", "hydra.run.dri", "did you mean 'hydra.run.dir'"),
    _bad("hydra.job.nam=x", "hydra.job.nam", "did you mean 'hydra.job.name'"),
    _bad("+loss.kd.temperature=3", "loss.kd", "Known: "),
    _bad("loss.terms=[{name: kd, temprature: 3}]", "loss.terms[0].temprature", "did you mean 'temp", "loss=combined"),
    _bad("assistants=[{name: mlp, hiden: [8]}]", "assistants[0].hiden", "did you mean 'hidden'"),
)
TYPES = (
    _bad("trainer.epochs=2.5", "trainer.epochs: 2.5 is not a whole number", "type trainer.epochs=10"),
    _bad("trainer.epochs=many", "trainer.epochs: 'many'", "type trainer.epochs=10"),
    _bad("trainer.epochs=null", "trainer.epochs", "type trainer.epochs=10"),
    _bad("trainer.epochs=1e30", "trainer.epochs: 1e+30 is not a whole number", "type trainer.epochs=10"),
    _bad("trainer.lr=fast", "trainer.lr: 'fast' is not a number", "type trainer.lr=0.5"),
    _bad("trainer.lr=[0.1]", "trainer.lr: [0.1] is not a number", "type trainer.lr=0.5"),
    _bad("trainer.nesterov=1", "trainer.nesterov: 1 is not true or false", "type trainer.nesterov=true"),
    _bad("trainer.betas=[0.9]", "trainer.betas: needs 2 values", "type trainer.betas=[0.5,0.5]"),
    _bad("seed=[0,1]", "seed: [0, 1] is not a whole number", "type seed=10"),
    _bad("seed=null", "seed: None is not a whole number", "type seed=10"),
    _bad("loss.temperature=", "loss.temperature: '' is not a number", "type loss.temperature=0.5"),
    _bad("loss.scale_by_t2=perhaps", "loss.scale_by_t2: 'perhaps' is not true or false", "type loss.scale_by_t2=true"),
    _bad("student.hidden=8", "student.hidden: 8 is not a list", "type student.hidden=[8]"),
    _bad("student.hidden=[a]", "student.hidden[0]: 'a' is not a whole number", "type student.hidden=[10]"),
    _bad("trainer.milestones=[3,b]", "trainer.milestones[1]: 'b' is not", "type trainer.milestones=[10]"),
    _bad(
        "loss.terms=[{name: kd, temperature: warm}]",
        "loss.terms[0].temperature: 'warm' is not a number",
        "type 'loss.terms=[{name: NAME, temperature: 0.5}]'",
        "loss=combined",
    ),
    _bad("dataset.num_train=lots", "dataset.num_train: 'lots' is not a whole number", "type dataset.num_train=10"),
    _bad("plugins=mine.py", "plugins: 'mine.py' is not a list", "type plugins=[mine.py]"),
    _bad("device=0", "device: 0 is not text", "type device="),
    _bad("trainer=null", "trainer", "Known: "),
    _bad("teacher=3", "teacher: there is no teacher '3'", "Known: "),
    _bad("teacher_cache=perhaps", "teacher_cache: 'perhaps'", "type teacher_cache=true"),
)
RANGES = (
    _bad("trainer.epochs=0", "trainer.epochs: 0", "must be ≥ 1"),
    _bad("trainer.epochs=-3", "trainer.epochs: -3", "must be ≥ 1"),
    _bad("trainer.batch_size=0", "trainer.batch_size: 0", "must be ≥ 1"),
    _bad("trainer.lr=nan", "trainer.lr: nan", "must be > 0"),
    _bad("trainer.lr=inf", "trainer.lr: inf", "must be > 0"),
    _bad("trainer.weight_decay=-1", "trainer.weight_decay: -1", "must be ≥ 0"),
    _bad("trainer.momentum=1", "trainer.momentum: 1", "must be in [0, 1)"),
    _bad("trainer.ema_decay=1.5", "trainer.ema_decay: 1.5", "must be in (0, 1)"),
    _bad("trainer.milestones=[5,3]", "trainer.milestones: ", "rising order"),
    _bad("trainer.limit_train_batches=0", "trainer.limit_train_batches: 0", "must be ≥ 1"),
    _bad("distill_trainer.batch_size=-5", "distill_trainer.batch_size: -5", "must be ≥ 1"),
    _bad("trainer.optimizer=adan", "trainer.optimizer: 'adan'", "did you mean 'adam'"),
    _bad("loss.temperature=0", "loss.temperature: 0", "must be > 0"),
    _bad("loss.temperature=nan", "loss.temperature: nan", "must be > 0"),
    _bad("loss.kl_weight=-0.5", "loss.kl_weight: -0.5", "must be ≥ 0"),
    _bad("student.hidden=[-1]", "student.hidden", "at least 1 unit"),
    _bad("student.dropout=2", "student.dropout: 2", "must be ≥ 0 and ≤ 1"),
    _bad("seed=-1", "seed: -1", "whole number ≥ 0"),
    _bad("trainer.batch_size=1000000000000000000000", "trainer.batch_size: 1000000", "must be ≥ 1 and below"),
    _bad("teacher_cache_gb=inf", "teacher_cache_gb: inf", "teacher_cache=false"),
    _bad("dataset.mean=[nan]", "mean=[nan]", "type dataset.mean=[0.5]"),
    _bad("teacher_cache_gb=0", "teacher_cache_gb: 0", "teacher_cache=false"),
    _bad("dataset.val_fraction=2", "dataset.val_fraction", "type dataset.val_fraction=0.1"),
    _bad("dataset.std=[0]", "dataset.std", "type dataset.std=[1.0]"),
    _bad("dataset.num_classes=1", "dataset.num_classes: 1", "must be ≥ 2"),
    _bad("dataset.noise=nan", "dataset.noise: nan", "must be ≥ 0"),
    _bad("dataset.num_train=5", "dataset.num_train", "type dataset.num_train=100"),
    _bad("ensemble.size=0", "ensemble.size: 0", "whole number ≥ 1"),
    _bad("control=labelsmoothing", "control", "did you mean 'label_smoothing'"),
    _bad("generations=0", "generations: 0", "whole number ≥ 1"),
    _bad("device=cuda:9", "device: 'cuda:9'", "type device="),
    _bad("student.hidden=[1000000000000000000000]", "student: no machine", "type smaller ones"),
)
CONFLICTS = (
    _bad("trainer.precision=fp16", "precision", "bf16"),
    _bad("trainer.precision=tf32", "precision", "trainer.precision=fp32"),
    _bad("trainer.cuda_graphs=true", "cuda_graphs", "trainer.cuda_graphs=auto"),
    _bad("trainer.early_stopping=3", "trainer.early_stopping", "dataset.val_fraction=0.1", "dataset.val_fraction=0"),
    _bad(
        "trainer.nesterov=true", "trainer.nesterov", "momentum above 0", "trainer.optimizer=sgd", "trainer.momentum=0"
    ),
    _bad("ensemble.weights=[1,2,3]", "ensemble.weights: 3 numbers", "one per teacher", "ensemble.size=2"),
    _bad("ensemble.weights=best", "ensemble.weights: 'best'", "confidence"),
    _bad("specialists.groups=2", "ensemble.size", "type ensemble.size=1", "ensemble.size=2"),
    _bad("specialists.groups=9", "specialists.groups=9", "take fewer"),
    _bad("specialists.groups=2", "specialists.groups", "dataset.val_fraction=0.1", "dataset.val_fraction=0"),
    _bad("loss.ce_weight=0", "loss.ce_weight: 0", "nothing would be learned", "loss.weight=0"),
    _bad("generations=2", "generations", "type loss=kd", "loss=dml"),
    _bad("loss=at", "loss=at cannot work on this pair", "its taps: "),
    _bad("loss=dkd", "loss=dkd cannot work on this pair", "classes", "dataset.num_classes=2"),
    _bad("loss=combined", "loss.terms", "loss.terms='[{name: kd", "loss.terms=[]"),
    _bad("student=cnn", "student.blocks", "fewer blocks", "student.blocks=[[4],[4],[4],[4],[4]]"),
    _bad("dataset.mean=[0.1,0.2]", "dataset.mean", "type dataset.mean=[0.5,0.5,0.5]"),
    _bad("student=torchvision", "student.model", "did you mean 'resnet18'", "student.model=resnet19"),
    _bad("student=external", "student.callable", "student.callable=package.module.function"),
    _bad("hydra.job.chdir=true", "hydra.job.chdir", "hydra.job.chdir=false"),
    _bad("ensemble.size=2", "ensemble.size", "give one of them", "teacher.checkpoint=."),
)
CHOICES = (
    _bad("dataset=mnits", "there is no dataset 'mnits'", "did you mean 'mnist'"),
    _bad("teacher=resnet21", "there is no teacher 'resnet21'", "Known: "),
    _bad("student=mpl", "there is no student 'mpl'", "did you mean 'mlp'"),
    _bad("loss=kdd", "there is no loss 'kdd'", "did you mean 'kd'"),
    _bad("trainer=defualt", "there is no trainer 'defualt'", "did you mean 'default'"),
    _bad("logger=neptune", "there is no logger 'neptune'", "Known: "),
    _bad("experiment=mnist", "there is no experiment 'mnist'", "mnist_cnn"),
    _bad("study=temprature", "there is no study 'temprature'", "did you mean 'temperature'"),
    _bad("hydra/launcher=proces", "hydra/launcher", "did you mean 'process'"),
    _bad("los=kd", "los", "did you mean 'loss'"),
)
GRAMMAR = (
    _bad("loss.temperature=[1", "loss.temperature=[1", "type KEY=VALUE"),
    _bad("loss.temperature", "loss.temperature", "KEY=VALUE"),
    _bad("=3", "=3", "KEY=VALUE"),
    _bad("teacher.checkpoint=a=b", "teacher.checkpoint=a=b", "needs quotes of its own"),
    _bad("seed=0,1", "seed=0,1: these are several values", "type -m, too, for a run with each; type seed=[0,1]"),
    _bad("seed=range(0,3)", "seed=range(0,3): these are several values", "type -m, too, for a run with each"),
    _bad("loss=kd,dkd", "loss=kd,dkd: these are several values", "type -m, too, for a run with each"),
    _bad("loss.temperature=${nothing}", "loss.temperature: Interpolation key 'nothing'", "type ${KEY}"),
    _bad("loss.temperature=${trainer.lr", "loss.temperature=${trainer.lr", "type KEY=VALUE"),
    _bad("loss.temperature=${no_resolver:3}", "no_resolver", "loss.temperature"),
    _bad("~seed", "seed is missing", "cannot be removed"),
    _bad("~loss", "loss is missing", "cannot be removed"),
    _bad("~trainer.lr", "trainer.lr", "cannot be removed"),
    _bad("~nothing", "'nothing' does not exist", "type ~KEY"),
    Bad(("hydra.mode=SOMETIMES",), "hydra.mode", "MULTIRUN"),
)
YAML = (
    _yaml("name: [kd\n", "mine.yaml", "line"),
    _yaml("name: kd\n\ttemperature: 4\n", "mine.yaml", "line"),
    _yaml("name: kd\nname: dkd\n", "mine.yaml", "name"),
    _yaml("- kd\n- dkd\n", "loss: ['kd', 'dkd']", "mapping with a line name: NAME"),
    _yaml("just text\n", "loss: {'just text': None}", "mapping with a line name: NAME"),
    _yaml("name: kd # caf\xe9\n".encode("latin-1"), "mine.yaml", "UTF-8"),
    _yaml("", "loss: {}", "mapping with a line name: NAME"),
    _yaml("name: kdd\n", "loss: there is no loss 'kdd'", "did you mean 'kd'"),
    _yaml("name: kd\ntemprature: 4\n", "loss.temprature", "did you mean 'temperature'"),
    _yaml("name: kd\ntemperature: 010\n", "line 2: yaml would read 010 as 8", "write 8 for that, 10 for that number"),
    _yaml(None, "mine", "kd"),
    _yaml(Path("nowhere"), "mine", "kd"),
)
FILES = (
    Bad(("--config-dir", "nowhere"), "--config-dir: there is no folder nowhere", "type the path"),
    Bad(("--config-dir", "a.yaml"), "--config-dir", "type the path", files={"a.yaml": "seed: 1\n"}),
    Bad(("--config-name", "runn"), "--config-name: there is no configuration 'runn'", "did you mean 'run'"),
    Bad(("dataset=image_folder", "dataset.root=nowhere"), "nowhere", "type dataset.root=DIR", 3, ("run",)),
    Bad(
        ("dataset=image_folder", "dataset.root=tree"),
        "class1 has no image",
        "add some",
        3,
        ("run",),
        {"tree/class0/a.png": b"no image", "tree/class1": None},
    ),
    Bad(
        ("dataset=image_folder", "dataset.root=tree"),
        "a.png",
        "remove them",
        3,
        ("run",),
        {f"tree/{part}/{label}/a.png": b"no image" for part in ("train", "test") for label in "01"},
    ),
    Bad(("dataset=mnist", "dataset.root=nowhere", "dataset.download=false"), "MNIST", "dataset.root=DIR", 3, ("run",)),
    _bad("plugins=[./nothing.py]", "plugins: there is no file nothing.py", "type plugins=[./mine.py]"),
    Bad(("plugins=[./mine.py]",), "plugins: ./mine.py cannot be imported", "SyntaxError", files={"mine.py": "def\n"}),
    _distill(key="no completed teacher", remedy="kd train-teacher dataset=synthetic"),
    _distill("teacher.checkpoint=nowhere", key="teacher.checkpoint: there is no nowhere", remedy="kd list runs"),
    _distill("teacher.checkpoint=[]", key="teacher.checkpoint: []", remedy="null for the newest"),
    Bad(("teacher.checkpoint=empty",), "empty", "kd list runs shows", 3, ("distill", *BASE), {"empty": None}),
    Bad(
        ("teacher.checkpoint=a.safetensors",),
        "a.safetensors",
        "safetensors",
        3,
        ("distill", *BASE),
        {"a.safetensors": b"no tensors"},
    ),
    _bad("student.pretrained=nowhere.pt", "student.pretrained", "type its path", "student=torchvision"),
)
FLAGS = (
    _bad("--mutirun", "--mutirun", "--multirun"),
    _bad("--cfg", "--cfg", "'hydra'", "jobb"),
    _bad("--json", "--cfg", "leave --json", "--cfg", "job"),
    Bad(("distil",), "distil", "distill", command=()),
    Bad(("-m", "hydra.launcher.n_jobs=0", "seed=0,1"), "hydra.launcher.n_jobs: 0", "whole number ≥ 1"),
    Bad(("-m", "hydra.sweeper.max_batch_size=0", "seed=0,1"), "hydra.sweeper.max_batch_size: 0", "whole number ≥ 1"),
    Bad(("-m", "+hydra.sweeper.params.seed=0,1"), "+hydra.sweeper.params.seed=0,1", "type what varies itself"),
    Bad(("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=0", "seed=0,1"), "hydra.sweeper", "≥ 1"),
)
_OTHER = json.dumps({"config_digest": "0", "status": "completed", "command": "run"})
FOLDERS = (
    Bad(("hydra.run.dir=file",), "hydra.run.dir", "hydra.run.dir=DIR", files={"file": ""}),
    Bad(("hydra.run.dir=file/below",), "file", "hydra.run.dir=DIR", files={"file": ""}),
    Bad(("hydra.run.dir=/proc/kd",), "/proc/kd", "hydra.run.dir=DIR"),
    Bad(
        ("hydra.run.dir=other",),
        "other holds another run (seed: 7 there, 0 here",
        "another hydra.run.dir",
        files={"other/run.json": _OTHER, "other/config.yaml": "seed: 7\n"},
    ),
    Bad(("outputs=/proc/kd",), "/proc/kd", "hydra.run.dir=DIR"),
)

BAD: Mapping[str, tuple[Bad, ...]] = {
    "unknown keys": UNKNOWN_KEYS,
    "types": TYPES,
    "ranges": RANGES,
    "conflicts": CONFLICTS,
    "choices": CHOICES,
    "grammar": GRAMMAR,
    "broken yaml": YAML,
    "missing files": FILES,
    "flags": FLAGS,
    "run folders": FOLDERS,
}
