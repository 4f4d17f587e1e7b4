"""Rules of the design that a reader relies on."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.startup import Build
from tests.conftest import ROOT, SMALL

PACKAGE = ROOT / "kd_cli"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the ground up: a module may import from its own floor and from those below. A folder is one room.
FLOORS = (
    "types errors console seeds ranges",
    "registry plugins taps signals turns arithmetic machine out_of_memory storage",
    "data models losses",
    "config metrics",
    "runs",
    "training",
    "saved sweeps",
    "teachers export",
    "experiments evaluation",
    "launch report",
    "commands api",
    "cli",
    "__main__",
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
# What `kd --help` and a refused command line read: no torch and no Hydra.
LIGHT = {"cli", "commands", "launch", "config", "sweeps", *FLOORS[0].split(), *FLOORS[1].split()}
LIGHT -= {"types", "taps"}
HEAVY_FILES = {"config/search_path.py", "launch/completion.py", "launch/hydra_errors.py", "sweeps/launchers.py"}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_level_imports(path: Path) -> set[str]:
    """Dotted names that are imported when the module is, those for the type checker left out."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_imports_go_down_the_floors() -> None:
    for path in (path for path in FILES if part_of(path) != "__init__"):
        inside = {name.split(".")[1] for name in module_level_imports(path) if name.startswith("kd_cli.")}
        too_high = {room for room in inside - {"__version__"} if FLOOR[room] > FLOOR[part_of(path)]}
        assert not too_high, path


def test_light_modules_do_not_import_torch() -> None:
    for path in (path for path in FILES if part_of(path) in LIGHT):
        name = str(path.relative_to(PACKAGE))
        if name in HEAVY_FILES or name.startswith("sweeps/search/"):
            continue
        heavy = {part.split(".")[0] for part in module_level_imports(path)}
        assert not heavy & {"torch", "torchvision", "safetensors", "hydra"}, path


def test_help_imports_neither_torch_nor_hydra() -> None:
    code = (
        "import sys; sys.argv = ['kd', '--help']\nfrom kd_cli.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    )
    code += "print('HEAVY', sorted({'torch', 'hydra', 'omegaconf', 'torchvision'} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "HEAVY []" in printed
    assert "distill" in printed


def imported_by(*words: str) -> list[str]:
    """Every module that `kd …` imports in a process of its own."""
    code = f"import sys; sys.argv = {['kd', *words]!r}\nfrom kd_cli.cli import main\n"
    code += "try: main()\nexcept SystemExit as left: print('IMPORTED', left.code, *sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    code, *modules = printed.partition("IMPORTED")[2].split()
    assert code in ("0", "None"), printed
    return modules


def test_a_command_imports_no_other_one() -> None:
    commands = [name for name in imported_by("distill", "--help") if name.startswith("kd_cli.commands.")]
    assert commands == ["kd_cli.commands.distill"]


def test_opening_a_network_imports_neither_launchers_nor_slurm_nor_optuna(comparison: Path) -> None:
    modules = imported_by("evaluate", str(comparison / "distilled"), "--json")
    assert "kd_cli.saved.network" in modules
    strange = (
        "kd_cli.sweeps",
        "kd_cli.experiments",
        "kd_cli.launch.hydra_app",
        "submitit",
        "optuna",
        "ray",
        "sqlalchemy",
    )
    assert not [name for name in modules if name.startswith(strange)]


def test_training_imports_no_compiler_and_no_launcher() -> None:
    modules = imported_by("train-baseline", *SMALL, "--json")
    assert "kd_cli.training.trainer" in modules
    assert not [name for name in modules if name.startswith(("torch._dynamo", "sympy", "kd_cli.sweeps"))]


@pytest.mark.slow
def test_the_way_to_the_first_step_is_short(tmp_path: Path) -> None:
    build = Build(ROOT, tmp_path / "here")
    build.prepare()
    facts = build.facts()
    most = {
        "entries at the top of kd_cli/": 35,
        "files from cli.main to optimizer.step()": 7,
        "own calls before the first step": 2750,  # one for each text of config.yaml
        "files imported before it": 87,
    }
    assert {name: facts[name] for name, limit in most.items() if facts[name] > limit} == {}


def test_functions_and_files_are_short() -> None:
    for path in FILES:
        text = path.read_text()
        assert text.count("\n") <= 300, path
        for node in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert lines <= 40, f"{path}: {node.name}: {lines} lines"


def test_no_method_is_named_outside_its_own_file() -> None:
    methods = {path.stem for path in (PACKAGE / "losses").glob("*.py")} - {"__init__", "base", "common"}
    for path in FILES:
        if path.parent.name == "losses":
            continue
        words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        # "kd" is also the program, and label smoothing also an option of the cross-entropy.
        assert not words & (methods - {"kd", "label_smoothing"}), path


UNSAFE = {"pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.unsafe_load", "yaml.full_load", "eval", "exec"}
SAFE_LOADERS = {"SafeLoader", "CSafeLoader", "_LOADER"}


def unsafe_calls(tree: ast.AST) -> list[str]:
    """Calls that can run what is in a file."""
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        words = {word.arg: word.value for word in call.keywords}
        strict = ast.unparse(words["weights_only"]) if "weights_only" in words else ""
        pickled = ast.unparse(words["allow_pickle"]) if "allow_pickle" in words else "False"
        unpickles = name == "torch.load" and strict != "True"
        loads = name == "yaml.load" and ast.unparse(words.get("Loader", call)).rpartition(".")[2] not in SAFE_LOADERS
        if name in UNSAFE or unpickles or loads or strict not in ("", "True", "weights_only") or pickled != "False":
            found.append(ast.unparse(call))
    return found


def test_nothing_is_loaded_in_a_way_that_could_run_it() -> None:
    for path in [*FILES, *sorted((ROOT / "benchmarks").rglob("*.py"))]:
        assert not unsafe_calls(ast.parse(path.read_text())), path


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "load(path, weights_only=False)",
        "pickle.load(file)",
        "pickle.loads(text)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "exec(text)",
    ],
)
def test_an_unsafe_way_to_load_would_be_found(line: str) -> None:
    assert unsafe_calls(ast.parse(line))


def test_the_top_level_holds_what_the_design_says() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: there is no list of the project's own files")
    top = {Path(name).parts[0] for name in listed.stdout.splitlines()}
    allowed = {"kd_cli", "conf", "tests", "benchmarks", "docs", "findings", "pyproject.toml", "LICENSE"}
    allowed |= {f"{page}.md" for page in ("README", "CHANGELOG", "CONTRIBUTING")}
    assert {name for name in top if not name.startswith(".")} <= allowed
