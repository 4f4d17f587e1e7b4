"""What Hydra's users expect works: overrides, presets, sweeps, --cfg, --info, their own folders, completion."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra._internal.utils import get_args_parser

from kd_cli.config.compose import compose
from kd_cli.launch.completion import complete
from tests.conftest import HERE, ROOT, SMALL

CONF = ROOT / "conf"
CHOICES = [
    (folder.name, path.stem)
    for folder in sorted(CONF.iterdir())
    if folder.is_dir() and folder.name != "hydra"  # whose groups are Hydra's
    for path in sorted(folder.glob("*.yaml"))
    if path.stem != "inherit"  # it refers to `trainer` and cannot be it
]


@pytest.mark.slow
@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=lambda part: part)
def test_every_yaml_composes_and_says_what_it_is(group: str, choice: str) -> None:
    config = compose([f"{group}={choice}"], config_name="transfer" if group == "transfer" else "run")
    assert group in ("experiment", "transfer") or config[group]  # presets set options of others
    lines = (CONF / group / f"{choice}.yaml").read_text().splitlines()
    headline = next(line for line in lines if line.startswith("#") and "@package" not in line)
    assert " · " in headline


@pytest.mark.parametrize("command", ["run", "train-teacher", "train-baseline", "distill"])
def test_cfg_prints_the_configuration_and_runs_nothing(kd, command: str) -> None:
    shown = yaml.safe_load(kd(command, "loss=kd", "loss.temperature=7", "--cfg", "job", "--resolve").out)
    assert shown["loss"]["temperature"] == 7
    assert shown["teacher_trainer"]["epochs"] == shown["trainer"]["epochs"]
    assert not Path("outputs").exists()


def test_cfg_shows_one_part_on_request(kd) -> None:
    assert yaml.safe_load(kd("distill", "--cfg", "job", "--package", "loss").out)["name"] == "kd"


@pytest.mark.parametrize("what", ["defaults", "defaults-tree", "searchpath", "config"])
def test_info_answers(kd, what: str) -> None:
    words = {"defaults": "mnist_mini", "defaults-tree": "<root>", "searchpath": "hydra.conf", "config": "temperature"}
    assert words[what] in kd("distill", "--info", what).out


def test_a_bare_info_shows_all(kd) -> None:
    assert "Hydra installation" in kd("distill", "--info").out or "Config search path" in kd("distill", "--info").out


@pytest.fixture
def _newer_argparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.14 formats a help text when its option is added, and Hydra 1.3 gives an object that is no text."""
    add = argparse.ArgumentParser.add_argument

    def add_and_check(self: argparse.ArgumentParser, *names: Any, **options: Any) -> argparse.Action:
        action = add(self, *names, **options)
        try:
            self._get_formatter()._expand_help(action)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError("badly formed help string") from error
        return action

    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", add_and_check)


@pytest.mark.usefixtures("_newer_argparse")
@pytest.mark.parametrize(
    "words", [("--cfg", "job"), ("--info", "all"), ("--dry-run",), ("--dry-run", "-m", "seed=0,1")]
)
def test_hydra_starts_where_argparse_looks_at_help_texts(kd, words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="badly formed"):
        get_args_parser()
    assert kd("train-baseline", *words, *SMALL).out


def test_options_can_be_added_and_removed_as_hydra_does(kd) -> None:
    shown = yaml.safe_load(kd("distill", "~experiment", "++loss.temperature=3", "--cfg", "job").out)
    assert shown["loss"]["temperature"] == 3


def test_flags_may_stand_behind_overrides(kd) -> None:
    assert yaml.safe_load(kd("distill", "seed=3", "--cfg", "job", "device=cpu").out)["seed"] == 3


def test_a_folder_of_the_user_shadows_ours_and_may_hold_presets_and_primary_configurations(kd) -> None:
    for folder in ("mine/loss", "mine/experiment"):
        Path(folder).mkdir(parents=True)
    Path("mine/loss/kd.yaml").write_text("name: kd\ntemperature: 99.0\nkl_weight: 1.0\nscale_by_t2: true\n")
    Path("mine/experiment/quick.yaml").write_text("# @package _global_\ntrainer:\n  epochs: 1\n")
    Path("mine/special.yaml").write_text("defaults: [distill, _self_]\nseed: 77\n")
    shown = yaml.safe_load(kd("distill", "--config-dir", "mine", "experiment=quick", "--cfg", "job", "--resolve").out)
    assert shown["loss"]["temperature"] == 99
    assert shown["trainer"]["epochs"] == shown["distill_trainer"]["epochs"] == 1
    named = yaml.safe_load(kd("distill", "--config-dir", "mine", "--config-name", "special", "--cfg", "job").out)
    assert named["seed"] == 77


def test_a_preset_may_say_to_hydra_where_and_how_a_run_is_made_and_not_that_it_is_a_sweep(kd) -> None:
    Path("mine/experiment").mkdir(parents=True)
    preset = Path("mine/experiment/mine.yaml")
    words = ("train-baseline", "--config-dir", "mine", "experiment=mine", "--cfg", "hydra")
    preset.write_text(
        "# @package _global_\nhydra:\n  verbose: true\n  output_subdir: .hydra\n  run: {dir: runs/mine}\n"
        "  job: {name: mine, env_set: {KD_DATA: data}}\n  launcher: {n_jobs: 2}\n  sweeper: {params: {seed: '0,1'}}\n"
        "  job_logging:\n    formatters: {plain: {format: '%(message)s'}}\n    loggers: {kd: {level: INFO}}\n"
        "    handlers: {console: {class: logging.StreamHandler, formatter: plain, stream: 'ext://sys.stderr'}}\n"
        "    root: {level: INFO, handlers: [console]}\n"
    )
    assert yaml.safe_load(kd(*words).out)["hydra"]["run"]["dir"] == "runs/mine"
    preset.write_text("# @package _global_\nhydra: {mode: MULTIRUN}\n")
    assert "a file makes no sweep of a command: type -m" in kd(*words, code=2).message


OVERRIDDEN = {
    "hydra/launcher": "basic",
    "hydra/sweeper": "optuna",
    "hydra/job_logging": "default",
    "hydra/hydra_logging": "default",
    "logger": "tensorboard",
    "loss": "dkd",
    "trainer@teacher_trainer": "cifar240",
}


@pytest.mark.slow
@pytest.mark.parametrize("group", ["experiment", "study"])
@pytest.mark.parametrize("choice", OVERRIDDEN)
def test_what_a_preset_overrides_is_heeded_and_what_is_typed_wins(kd, group: str, choice: str) -> None:
    Path("mine", group).mkdir(parents=True)
    text = f"# @package _global_\ndefaults:\n  - override /{choice}: {OVERRIDDEN[choice]}\n"
    Path("mine", group, "mine.yaml").write_text(text)
    words = ("run", "--config-dir", "mine", f"{group}=mine", "--cfg", "hydra")
    chosen = yaml.safe_load(kd(*words).out)["hydra"]["runtime"]["choices"]
    assert chosen[choice] == OVERRIDDEN[choice]
    default = yaml.safe_load(kd("run", "--cfg", "hydra").out)["hydra"]["runtime"]["choices"]
    typed = yaml.safe_load(kd(*words, f"{choice}={default[choice]}").out)["hydra"]["runtime"]["choices"]
    assert typed[choice] == default[choice] != chosen[choice]


def test_the_launcher_of_a_preset_runs_the_points_and_one_that_is_not_there_is_named(kd) -> None:
    Path("mine/experiment").mkdir(parents=True)
    preset = Path("mine/experiment/mine.yaml")
    words = ("train-baseline", "--config-dir", "mine", "experiment=mine", *SMALL, "trainer.epochs=1")
    preset.write_text("# @package _global_\ndefaults:\n  - override /hydra/launcher: basic\n")
    assert "point 1: seed=0" in kd(*words, "-m", "seed=0,1").out
    preset.write_text("# @package _global_\ndefaults:\n  - override /hydra/launcher: submitit_locl\n")
    for more in ((), ("-m", "seed=0,1")):
        message = kd(*words, *more, code=2).message
        assert "there is no launcher 'submitit_locl'; did you mean 'submitit_local'?" in message


def test_a_single_run_does_not_mind_the_launcher_of_its_preset(kd) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    Path("mine/experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - override /hydra/launcher: submitit_local\n"
    Path("mine/experiment/mine.yaml").write_text(f"{text}hydra: {{launcher: {{timeout_min: 7}}}}\n")
    said = kd("train-baseline", "--dry-run", "--config-dir", "mine", "experiment=mine", *SMALL).out
    assert "Nothing speaks against it" in said


def test_a_sweep_has_a_folder_per_point_and_says_whether_distillation_helped(kd) -> None:
    sweep = ("run", "-m", HERE, *SMALL, "seed=0,1", "hydra.sweep.dir=swept")
    shown = kd(*sweep)
    assert sorted(path.name for path in Path("swept").iterdir() if path.is_dir()) == ["parts", "seed=0", "seed=1"]
    assert "Over 2 seeds distillation" in shown.out
    assert "kd report swept draws it" in shown.out
    again = kd(*sweep, "--json")
    assert "nothing was trained again" in again.err
    assert [point["seed"] for point in again.json["points"]] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("subdir", "folders"),
    {
        "${hydra.job.num}": ["0", "1"],
        "n${hydra.job.num}": ["n0", "n1"],
        "${hydra.job.override_dirname}": ["seed=0,trainer.epochs=1", "seed=1,trainer.epochs=1"],
    }.items(),
)
@pytest.mark.parametrize("launcher", ["basic", "process"])
def test_a_points_folder_may_be_named_as_hydra_users_do(kd, launcher: str, subdir: str, folders: list[str]) -> None:
    small = [word for word in SMALL if not word.startswith("trainer.epochs")]
    names = (
        "hydra.job.config.override_dirname.exclude_keys=[" + ",".join(word.partition("=")[0] for word in small) + "]"
    )
    words = [*small, "trainer.epochs=1", "seed=0,1", f"hydra/launcher={launcher}", names]
    for _ in range(2):  # the second time they are found again
        swept = kd(
            "train-baseline", "-m", *words, "hydra.sweep.dir=swept", f"hydra.sweep.subdir={subdir}", "--json"
        ).json
        assert [Path(point["folder"]).name for point in swept["points"]] == folders
        assert sorted(path.parent.name for path in Path("swept").glob("*/*/")) == folders
        assert sorted(path.parent.name for path in Path("swept").rglob("result.json")) == folders


@pytest.mark.slow
def test_points_may_have_folders_inside_of_folders(kd) -> None:
    nested = ("hydra.sweep.dir=swept", "hydra.sweep.subdir=${loss.name}/${seed}")
    swept = kd("run", "-m", HERE, *SMALL, "loss=kd,mse_logits", "seed=0,1", *nested)
    assert "kd report swept draws it" in swept.out
    points = [Path("swept", loss, seed) for loss in ("kd", "mse_logits") for seed in "01"]
    parts = {(point / part).resolve() for point in points for part in ("teacher", "baseline")}
    assert parts == set(Path("swept/parts").resolve().iterdir())
    assert len(parts) == 4
    labels = [each["point"] for each in kd("report", "swept", "--json").json["comparisons"]]
    assert sorted(labels) == [f"loss={point.parent.name} seed={point.name}" for point in points]


def test_a_file_of_another_program_above_makes_no_sweep_of_a_run(kd) -> None:
    Path("sweep.json").write_text('{"method": "bayes"}')
    kd("run", *SMALL, "hydra.run.dir=here/run")
    assert not [path for path in Path().rglob("*") if path.is_symlink() or path.name == "parts"]


def test_a_sweep_over_losses_and_seeds_compares_each_with_the_baseline_of_its_seed(kd, teacher) -> None:
    swept = kd("distill", "-m", HERE, *SMALL, "loss=none,kd", "seed=0,1", "--json")
    tops = {(point["point"].split()[0], point["seed"]): point["test_top1"] for point in swept.json["points"]}
    gains = [tops["loss=kd", seed] - tops["loss=none", seed] for seed in (0, 1)]
    (line,) = [line for line in swept.err.splitlines() if line.split()[:2] == ["loss=kd", "2"]]
    assert f"{sum(gains) / 2:+.2f} ± " in line
    (line,) = [line for line in swept.err.splitlines() if line.split()[:2] == ["loss=none", "2"]]
    assert line.split()[-2:] == ["–", "–"]


def test_a_sweep_of_groups_and_of_options(kd) -> None:
    small = [word for word in SMALL if not word.startswith("student")]
    axes = ("student=linear,mlp", "trainer.lr=0.01,0.1")
    points = kd("train-baseline", "-m", HERE, *small, "trainer.epochs=1", *axes, "--json").json["points"]
    assert [point["point"] for point in points] == [
        f"student={student} trainer.lr={rate}" for student in ("linear", "mlp") for rate in ("0.01", "0.1")
    ]
    assert len({point["run"] for point in points}) == 4
    assert len({point["weights_sha256"]["last"] for point in points}) == 4


@pytest.mark.parametrize(
    ("words", "incomplete", "found"),
    [
        ([], "lo", "loss="),
        ([], "loss=k", "loss=kd"),
        (["loss", "="], "k", "kd"),
        (["loss=kd"], "loss.temp", "loss.temperature="),
        ([], "student=resnet5", "student=resnet56"),
        (["experiment", "="], "mnist_c", "mnist_cnn"),
    ],
)
def test_tab_completes_groups_options_and_values(words: list[str], incomplete: str, found: str) -> None:
    assert any(text.startswith(found) for text in complete("distill", words, incomplete))


def test_tab_knows_the_users_own_choices() -> None:
    Path("mine/loss").mkdir(parents=True)
    Path("mine/loss/cosine.yaml").write_text("name: cosine\n")
    assert complete("distill", [], "loss=cos", ["mine"]) == ["loss=cosine"]


def test_the_shell_gets_completions(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "_KD_COMPLETE": "complete_bash",
        "COMP_WORDS": "kd distill student=wrn_1",
        "COMP_CWORD": "2",
    }
    kd_file = Path(sys.executable).with_name("kd")
    if not kd_file.exists():
        pytest.skip("kd is not installed in this environment, so there is no command to complete")
    done = subprocess.run([str(kd_file)], capture_output=True, text=True, env=environment)
    assert "student=wrn_16_1" in done.stdout.split()


def test_python_m_is_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "kd_cli", "list", "losses", "--json"], capture_output=True, text=True)
    assert "kd" in {row["name"] for row in json.loads(done.stdout)["losses"]}


def test_list_shows_a_source_for_everything(kd) -> None:
    for what in ("losses", "models", "datasets", "experiments"):
        rows = kd("list", what, "--json").json[what]
        assert rows
        assert all(row["what"] and row["source"] for row in rows), what


COPIES = {
    "torchrun": {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "RANK": "1"},
    "srun": {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"},
    "mpirun": {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
}
ALONE = {
    "torchrun of one": {"WORLD_SIZE": "1", "LOCAL_RANK": "0", "RANK": "0"},
    "a batch script": {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_NPROCS": "4"},
    "srun --pty": {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0", "SLURM_PTY_PORT": "4242"},
    "a job of submitit": {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SUBMITIT_LOCAL_NTASKS": "1"},
    "a variable that somebody has set": {"WORLD_SIZE": "2"},
}


@pytest.mark.parametrize("starter", COPIES)
@pytest.mark.parametrize("words", [("run",), ("run", "-m", "seed=0,1"), ("distill", "--dry-run")], ids=" ".join)
def test_one_of_several_copies_trains_nothing_and_says_what_to_type(
    kd, monkeypatch: pytest.MonkeyPatch, starter: str, words: tuple[str, ...]
) -> None:
    for name, value in COPIES[starter].items():
        monkeypatch.setenv(name, value)
    message = kd(*words, *SMALL, code=2).message
    assert f"this is one of {next(iter(COPIES[starter].values()))} copies of kd" in message
    assert "Type the command without torchrun" in message
    assert not list(Path().iterdir())


@pytest.mark.parametrize("place", ALONE)
def test_a_single_copy_trains_wherever_it_runs(kd, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    for name, value in ALONE[place].items():
        monkeypatch.setenv(name, value)
    assert "Nothing speaks against it" in kd("train-baseline", "--dry-run", *SMALL).out


def test_mappings_for_functions_of_others_take_keys_without_a_plus(kd, tmp_path: Path) -> None:
    (tmp_path / "mine" / "student").mkdir(parents=True)
    yaml = "name: external\ncallable: torchvision.models.resnet18\nkwargs: {width_per_group: 32}\n"
    (tmp_path / "mine" / "student" / "my.yaml").write_text(f"{yaml}pretrained: null\ntaps: null\n")
    words = ("distill", "--config-dir", "mine", "--cfg", "job", "-p", "student")
    for typed in ("student.kwargs.groups=2", "+student.kwargs.groups=2", "student.kwargs={groups: 2}"):
        assert "groups: 2" in kd(*words, "student=external", typed).out
        assert "width_per_group: 32\n  groups: 2" in kd(*words, "student=my", typed).out
    wrong = ("student=my", "student.kwargs.depth=3", "--dry-run")
    assert "student.kwargs: " in kd("train-baseline", "--config-dir", "mine", *wrong, code=2).message
    assert "did you mean 'student.kwargs'" in kd(*words, "student=my", "student.kwarg.a=1", code=2).message
