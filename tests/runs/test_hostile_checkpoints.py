"""Checkpoints and records that somebody made to harm: none runs code, hangs, fills the memory or is read unsafely."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file

from kd_cli.errors import ConfigError, DataError, KDError
from kd_cli.models.state_dict import read_state_dict
from kd_cli.runs.predictions import FILE, read_predictions
from kd_cli.saved.network import Saved
from kd_cli.storage.tensors import read_tables, read_tensors
from kd_cli.types import DataSpec
from tests.conftest import SMALL, Outcome
from tests.support.sample import some

MARK = "executed"
GIGABYTE = 2**30
DATA = [word for word in SMALL if word.startswith("dataset")]
WORDS = [*DATA, "student=mlp"]
SPEC = DataSpec(2, 1, (1, 8, 8), ("a", "b"))


class Payload:
    """Pickled code, which must never run."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path(MARK),))


@pytest.fixture(autouse=True)
def _bounded(tmp_path: Path) -> Iterator[None]:
    """A gigabyte more than now and half a minute; afterwards nothing has been executed."""
    del tmp_path
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + GIGABYTE, limits[1]))
    signal.alarm(30)  # it ends this process
    yield
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, limits)
    assert not Path(MARK).exists()


def test_the_payload_would_be_executed_by_an_unsafe_reader() -> None:
    pickle.Unpickler(io.BytesIO(pickled())).load()
    assert Path(MARK).exists()
    Path(MARK).unlink()


def pickled() -> bytes:
    return pickle.dumps({"w": Payload()})


def torch_saved() -> bytes:
    file = io.BytesIO()
    torch.save({"w": Payload()}, file)
    return file.getvalue()


def zip_of(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def zip_bomb() -> bytes:
    return zip_of({"archive/data.pkl": bytes(2**26), "../../escaped": b"x", "archive/../../escaped": b"x"})


def framed(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: Any = (2,), offsets: Any = (0, 8), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


CONTENTS: dict[str, Callable[[], bytes]] = {
    "a pickle": pickled,
    "a file of torch.save": torch_saved,
    "a zip bomb with ../ in it": zip_bomb,
    "nothing": bytes,
    "seven bytes": lambda: b"\x01" * 7,
    "a header of 2^63 bytes": lambda: framed({}, length=2**63),
    "a header of 2^64 - 1 bytes": lambda: framed({}, length=2**64 - 1),
    "a header of 100 MB": lambda: framed(b'{"a":"' + b"x" * 99_000_000 + b'"}'),
    "a header longer than the file": lambda: framed({}, length=1000),
    "a header that is a list": lambda: framed([tensor()], bytes(8)),
    "a header of 120,000 tensors": lambda: framed(
        b"{" + b",".join(b'"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(120_000)) + b"}"
    ),
    "a header nested 100,000 deep": lambda: framed(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a header that is not UTF-8": lambda: framed(
        b'{"\xff\xfe":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)
    ),
    "a header with a name twice": lambda: framed(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}}',
        bytes(8),
    ),
    "negative offsets": lambda: framed({"a": tensor(offsets=[-8, 8])}, bytes(8)),
    "overlapping tensors": lambda: framed({"a": tensor(), "b": tensor(offsets=[4, 12])}, bytes(12)),
    "bytes of no tensor": lambda: framed({"a": tensor()}, bytes(800)),
    "offsets past the end": lambda: framed({"a": tensor([200], [0, 800])}, bytes(8)),
    "a shape whose product overflows": lambda: framed({"a": tensor([2**40, 2**40])}, bytes(8)),
    "a shape of 2^64 - 1": lambda: framed({"a": tensor([2**64 - 1, 0], [0, 0])}),
    "a shape of 2^62 by nothing": lambda: framed({"a": tensor([2**62, 0], [0, 0])}),
    "an unknown type of numbers": lambda: framed({"a": tensor(dtype="X9")}, bytes(8)),
    "numbers of six bits": lambda: framed({"a": tensor([4], [0, 3], "F6_E2M3")}, bytes(3)),
    "facts that are no text": lambda: framed({"__metadata__": {"a": {"b": 1}}, "a": tensor()}, bytes(8)),
    "names that mean something to Python": lambda: framed({"__class__": tensor()}, bytes(8)),
    "names of other files": lambda: framed({"../../a": tensor()}, bytes(8)),
}
# Such files are whole; no network has tensors of these names and shapes.
STRANGE = ("a shape of 2^62 by nothing", "names that mean something to Python", "names of other files")
NUMBERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "whole numbers": lambda tensor: tensor.to(torch.int64),
    "truth values": lambda tensor: tensor > 0,
    "complex numbers": lambda tensor: tensor.to(torch.complex64),
    "NaN": lambda tensor: tensor * torch.nan,
    "infinities": lambda tensor: tensor / 0,
    "another shape": lambda tensor: tensor.unsqueeze(0),
    "huge shapes of nothing": lambda tensor: tensor.new_empty((0, 2**40)),
}


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a teacher's run, to be made hostile."""
    return shutil.copytree(trained, tmp_path / "run")


def best(run: Path) -> Path:
    epoch = json.loads((run / "result.json").read_text())["best_epoch"]
    return run / "checkpoints" / f"epoch-{epoch:04d}"


def sign_manifest(checkpoint: Path) -> dict[str, str]:
    """Lets the manifest say what the files are: whoever wrote them wrote it too."""
    names = ("model.safetensors", "training.safetensors", "state.json")
    digests = {name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in names}
    (checkpoint / "manifest.json").write_text(json.dumps(digests, indent=2))
    return digests


def sign(run: Path) -> None:
    """Likewise the manifest of the best epoch, and the result."""
    digests = sign_manifest(best(run))
    edit(run / "result.json", lambda result: result["weights_sha256"].update(best=digests["model.safetensors"]))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def refused(path: Path, *overrides: str) -> str:
    """That a network cannot be had of this, and why: a sentence, not a traceback."""

    def ask() -> None:
        saved = Saved(path, overrides=overrides)
        saved.network(torch.device("cpu"), None if saved.facts else SPEC)

    with pytest.raises((ConfigError, DataError)) as caught:
        ask()
    return str(caught.value)


LARGE = ("a header of 100 MB", "a header of 120,000 tensors", "a zip bomb with ../ in it", "a million names")


def slow_if_large(names: Iterable[str]) -> list[Any]:
    """Some take their time to be written."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in names]


@pytest.mark.parametrize("name", slow_if_large(CONTENTS))
def test_a_hostile_weights_file_is_refused(name: str) -> None:
    path = Path("weights.safetensors")
    path.write_bytes(CONTENTS[name]())
    if name in STRANGE:
        read_tensors(path)
    else:
        with pytest.raises(DataError, match="is damaged or no safetensors file"):
            read_tensors(path)
    with suppress(DataError):
        assert read_tables(path) == {}


@pytest.mark.parametrize("name", NUMBERS)
def test_wrong_numbers_are_refused(name: str, run: Path) -> None:
    weights = load_file(best(run) / "model.safetensors")
    save_file({key: NUMBERS[name](value) for key, value in weights.items()}, best(run) / "model.safetensors")
    sign(run)
    assert "model.safetensors" in refused(run)


def test_numbers_of_another_precision_are_told(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = load_file(best(run) / "model.safetensors")
    save_file({key: value.double() for key, value in weights.items()}, best(run) / "model.safetensors")
    sign(run)
    Saved(run).network(torch.device("cpu"))
    assert "has numbers of type float64" in caplog.text


def test_files_of_torch_are_named_as_such_under_any_name(run: Path) -> None:
    for content in (pickled(), torch_saved()):
        (best(run) / "model.safetensors").write_bytes(content)
        sign(run)
        assert "pickle" in refused(run)
        assert "name it model.pt" in refused(run)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".ckpt", ".bin", ".PT", ".tar", ""])
@pytest.mark.parametrize("content", [pickled, torch_saved])
def test_code_in_a_file_of_torch_is_refused_by_name_and_not_run(content: Callable[[], bytes], suffix: str) -> None:
    Path(f"it's{suffix}").write_bytes(content())
    said = refused(Path(f"it's{suffix}"), *WORDS)
    assert (
        "asks for getattr, which is code, and kd runs none" if content is torch_saved else "as tensors alone"
    ) in said
    assert "weights_only" not in said  # how to run it


def saved(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def script() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    return file.getvalue()


def renamed(content: bytes, **members: str) -> bytes:
    """A zip file with other names in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name.replace("archive/", members["archive"]), old.read(name))
    return file.getvalue()


class Nested:
    """A function with arguments of the writer's choice."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


ONES = torch.ones(4)
PICKLED: dict[str, Callable[[], bytes]] = {
    **CONTENTS,
    "code beside weights": lambda: saved({"state_dict": {"w": ONES}, "best": Payload()}),
    "code in the old format": lambda: saved({"w": ONES, "x": Payload()}, _use_new_zipfile_serialization=False),
    "a command": lambda: saved({"w": Nested(os.system, f"touch {MARK}")}),
    "a built-in function": lambda: saved({"w": Nested(eval, f"open('{MARK}', 'w')")}),
    "an unsafe load inside": lambda: saved({"w": Nested(pickle.loads, pickled())}),
    "a whole network": lambda: saved(torch.nn.Linear(2, 2)),
    "TorchScript": lambda: script(),
    "a tensor that claims 2^40 numbers": lambda: saved({"w": torch.ones(1).expand(2**20, 2**20)}),
    "tensors that claim 2^36 numbers": lambda: saved({str(i): torch.ones(1).expand(2**30) for i in range(64)}),
    "a sparse tensor": lambda: saved({"w": torch.sparse_coo_tensor(torch.zeros(1, 1), torch.ones(1), (2**40,))}),
    "a tensor without numbers": lambda: saved({"w": torch.empty(2**40, device="meta")}),
    "a quantised tensor": lambda: saved({"w": torch.quantize_per_tensor(ONES, 0.1, 0, torch.qint8)}),
    "lists": lambda: saved([ONES, ONES]),
    "nothing inside": lambda: saved({}),
    "dictionaries 9 deep": lambda: saved(functools.reduce(lambda inner, _: {"model": inner}, range(9), {"w": ONES})),
    "lists 100,000 deep": lambda: b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a text of 2^62 bytes": lambda: b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "names above the file": lambda: renamed(saved({"w": ONES}), archive="../../"),
    "half of a file": lambda: saved({"w": torch.ones(1000)})[:2000],
    "a tar": lambda: tar_of({"../../escaped": pickled(), "pickle": pickled()}),
}


def made(name: str) -> bytes:
    with warnings.catch_warnings():  # PyTorch's, of what it writes no longer gladly
        warnings.simplefilter("ignore")
        return PICKLED[name]()


def tar_of(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def link(path: Path, target: str | Path) -> None:
    path.symlink_to(target)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a link to /dev/zero": lambda path: link(path, "/dev/zero"),
    "a link to /etc/passwd": lambda path: link(path, "/etc/passwd"),
    "a link to itself": lambda path: link(path, path),
    "a link to nothing": lambda path: link(path, "nothing"),
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
}


@pytest.mark.parametrize("name", slow_if_large(PICKLED))
def test_the_reader_of_weights_refuses_every_hostile_file_under_any_name(name: str) -> None:
    content = made(name)
    for path in (Path("w.pth"), Path("w.safetensors"), Path("w")):
        path.write_bytes(content)
        if path.suffix != ".safetensors" or name not in STRANGE:
            with pytest.raises(DataError, match=f"^{path}"):
                read_state_dict(path)
    assert not Path("../../escaped").exists()


@pytest.mark.parametrize("kind", SPECIAL)
def test_the_reader_of_weights_reads_regular_files_alone(kind: str) -> None:
    for path in (Path("w.pth"), Path("w.safetensors")):
        SPECIAL[kind](path)
        with pytest.raises(DataError, match="w"):
            read_state_dict(path)


@pytest.mark.parametrize("name", slow_if_large(PICKLED))
def test_nothing_hostile_is_imported(name: str, kd: Callable[..., Outcome]) -> None:
    Path("w.pth").write_bytes(made(name))
    check(kd, "import", "w.pth", "out.safetensors")
    assert not Path("out.safetensors").exists()


def test_a_file_of_torch_is_imported_without_what_was_around_its_tensors(kd: Callable[..., Outcome]) -> None:
    state = {"module.a.w": torch.ones(2, 3).half().T, "module.b": torch.tensor(7)}
    torch.save({"state_dict": state, "epoch": 3}, "it's.pth")
    told = kd("import", "it's.pth", "out.safetensors", "--json").json
    assert (told["tensors"], told["numbers"], told["types"]) == (2, 7, ["float16", "int64"])
    assert told["sha256"] == digest_of("out.safetensors")
    assert torch.equal(read_tensors(Path("out.safetensors"))[0]["a.w"], torch.ones(3, 2).half())
    assert "is there already" in kd("import", "it's.pth", "out.safetensors", code=2).message
    assert "out.new.safetensors" in kd("import", "it's.pth", "out.pth", code=2).message
    assert "there is no file nothing.pth" in kd("import", "nothing.pth", "new.safetensors", code=3).message


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx", "notes.txt", "weights"])
def test_exported_and_other_files_are_not_read(name: str) -> None:
    Path(name).write_bytes(zip_of({"archive/data.pkl": pickled(), "../../escaped": b"x"}))
    assert "not a file of weights" in refused(Path(name), *WORDS)


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_not_read(kind: str, name: str, run: Path) -> None:
    path = best(run) / name
    path.unlink()
    SPECIAL[kind](path)
    if kind == "a link to /etc/passwd" and name != "manifest.json":
        sign(run)
    assert name in refused(run)


@pytest.mark.parametrize("kind", SPECIAL)
def test_weights_that_are_no_regular_file_are_not_read(kind: str, tmp_path: Path) -> None:
    SPECIAL[kind](tmp_path / "weights.safetensors")
    assert str(tmp_path / "weights.safetensors") in refused(tmp_path / "weights.safetensors", *WORDS)


@pytest.mark.parametrize("kind", ["a link to itself", "a pipe", "a link to /dev/zero"])
def test_a_checkpoint_or_record_that_is_none_is_not_read(kind: str, run: Path) -> None:
    for path in (run / "run.json", run / "result.json", best(run)):
        kept = path.with_name("kept")
        path.rename(kept)
        SPECIAL[kind](path)
        refused(run)
        path.unlink()
        kept.rename(path)
    assert Saved(run).source.run == run


def digest_of(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


MANIFESTS: dict[str, Callable[[], Any]] = {
    "an absolute name": lambda: {"/etc/passwd": digest_of("/etc/passwd")},
    "a name above": lambda: {"../../../../../../../../etc/passwd": digest_of("/etc/passwd")},
    "its folder": lambda: {".": "", "..": ""},
    "an empty name": lambda: {"": ""},
    "numbers": lambda: {"model.safetensors": 1},
    "lists": lambda: {"model.safetensors": [], "state.json": {}},
    "nothing": dict,
    "a list": lambda: ["model.safetensors"],
    "a million names": lambda: {f"{number}.json": "0" * 64 for number in range(10**6)},
    "itself": lambda: {"manifest.json": "0" * 64},
}


@pytest.mark.parametrize("name", slow_if_large(MANIFESTS))
def test_a_hostile_manifest_is_refused(name: str, run: Path) -> None:
    path = best(run) / "manifest.json"
    known, change = json.loads(path.read_text()), MANIFESTS[name]()
    path.write_text(json.dumps(known | change if isinstance(change, dict) and change else change, indent=2))
    assert "manifest.json" in refused(run)


DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


@pytest.mark.parametrize("name", ["run.json", "result.json", "checkpoint"])
@pytest.mark.parametrize("content", [DEEP, "[" * 10**5, "[]", "3", '"text"', "", "\x00", "NaN", "\ufeff{}{}"])
def test_a_record_that_is_no_object_is_refused(content: str, name: str, run: Path) -> None:
    path = best(run) / "manifest.json" if name == "checkpoint" else run / name
    path.write_text(content)
    assert path.name in refused(run)


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda record: record.pop(key)


RECORDS: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "an epoch that is a path": ("result.json", lambda result: result.update(best_epoch="../../../x")),
    "an epoch that is a list": ("result.json", lambda result: result.update(best_epoch=[1])),
    "a negative epoch": ("result.json", lambda result: result.update(best_epoch=-1)),
    "an endless epoch": ("result.json", lambda result: result.update(best_epoch=10**400)),
    "no digests": ("result.json", without("weights_sha256")),
    "digests that are a list": ("result.json", lambda result: result.update(weights_sha256=["x"])),
    "a model that is text": ("run.json", lambda run: run.update(model="os.system")),
    "a model without a name": ("run.json", lambda run: run.update(model={"hidden": [8]})),
    "a model that no memory holds": ("run.json", lambda run: run["model"].update(hidden=[10**6, 10**6])),
    "a model that no number counts": ("run.json", lambda run: run["model"].update(hidden=[10**30])),
    "data that are a list": ("run.json", lambda run: run.update(data=[1])),
    "data without classes": ("run.json", lambda run: run["data"].pop("classes")),
    "classes that are a number": ("run.json", lambda run: run["data"].update(classes=10**9)),
    "images of 10^9 pixels": ("run.json", lambda run: run["data"].update(image_shape=[3, 10**9, 10**9])),
    "images of one dimension": ("run.json", lambda run: run["data"].update(image_shape=[3])),
    "a mean that is text": ("run.json", lambda run: run["data"]["preprocessing"].update(mean="0.5")),
    "a loss that is a list": ("run.json", lambda run: run.update(loss=[])),
    "a teacher without weights": ("run.json", lambda run: run.update(teacher={"sources": ["/etc/passwd"]})),
    "a network that is shown text": (
        "run.json",
        lambda run: run["model"].update(mean="0.5"),
    ),
    "image sizes that are text": ("run.json", lambda run: run["data"]["preprocessing"].update(image_size="16")),
    "a teacher of no kind": ("run.json", lambda run: run.update(teacher=7)),
    "a teacher whose network is a number": (
        "run.json",
        lambda run: run.update(teacher={"sources": ["x"], "sha256": ["0"], "models": [7], "grafts": [{}]}),
    ),
    "specialised in text": ("run.json", lambda run: run.update(specialist="0,1")),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_with_values_that_kd_never_writes_is_refused(name: str, run: Path) -> None:
    file, change = RECORDS[name]
    edit(run / file, change)
    assert str(run) in refused(run)


def test_a_state_without_its_epoch_is_refused(run: Path) -> None:
    for state in ({}, {"epoch": "1"}, {"epoch": True, "step": 0}, {"epoch": -1, "step": 0}):
        (best(run) / "state.json").write_text(json.dumps(state))
        sign(run)
        assert "state.json is damaged" in refused(run)


STATES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no records": without("records"),
    "records that are text": lambda state: state.update(records="[]"),
    "records of no epoch": lambda state: state.update(records=[{}]),
    "records of text": lambda state: state["records"][0].update(val_top1="x"),
    "an optimizer that is a list": lambda state: state.update(optimizer=[1]),
    "an optimizer of other names": lambda state: state.update(optimizer={"x": 1}),
    "an optimizer that is not there": lambda state: state.update(optimizer={"7.0.step": 1}),
    "no scaler": without("scaler"),
}
TENSORS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "nothing": dict.clear,
    "names of no part": lambda tensors: tensors.update({"__class__": torch.ones(1)}),
    "other shapes": lambda tensors: tensors.update({key: value.new_zeros(3, 3) for key, value in tensors.items()}),
    "another optimizer": lambda tensors: tensors.update({"optimizer.0.0.exp_avg": torch.ones(5)}),
    "an optimizer of text": lambda tensors: tensors.update({"optimizer.a.b.c": torch.ones(1)}),
}


@pytest.fixture
def unfinished(run: Path) -> Path:
    """Its checkpoint after the first of two epochs."""
    (run / "result.json").unlink()
    shutil.rmtree(run / "checkpoints" / "epoch-0002")
    return run / "checkpoints" / "epoch-0001"


def check_not_resumed(kd: Callable[..., Outcome], checkpoint: Path) -> None:
    sign_manifest(checkpoint)
    check(kd, "train-teacher", *SMALL, "hydra.run.dir=run")


@pytest.mark.slow  # a command line for each
@pytest.mark.parametrize("name", STATES)
def test_no_training_goes_on_from_a_hostile_state(name: str, kd: Callable[..., Outcome], unfinished: Path) -> None:
    edit(unfinished / "state.json", STATES[name])
    check_not_resumed(kd, unfinished)


@pytest.mark.slow  # likewise
@pytest.mark.parametrize("name", TENSORS)
def test_no_training_goes_on_from_hostile_tensors(name: str, kd: Callable[..., Outcome], unfinished: Path) -> None:
    tensors = load_file(unfinished / "training.safetensors")
    TENSORS[name](tensors)
    save_file(tensors, unfinished / "training.safetensors")
    check_not_resumed(kd, unfinished)


PREDICTED = {
    **CONTENTS,
    "no seal": lambda: save({"logits": torch.zeros(2, 3), "labels": torch.zeros(2, dtype=torch.long)}),
}


@pytest.mark.parametrize("name", slow_if_large(PREDICTED))
def test_hostile_predictions_are_not_taken(name: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(PREDICTED[name]())
    assert read_predictions(tmp_path, weights=None) is None


# --- the same through the command line


def check(kd: Callable[..., Outcome], *words: str, code: int = 3) -> None:
    """Refused in a panel of our own."""
    said = kd(*words, code=code).err
    assert "Traceback" not in said
    assert ("DataError" if code == 3 else "ConfigError") in said


@pytest.mark.slow  # two command lines for each; what reads them is tested with all of them above
@pytest.mark.parametrize("name", some(list(CONTENTS), 9))
def test_no_command_takes_a_hostile_file(name: str, kd: Callable[..., Outcome], run: Path) -> None:
    content = CONTENTS[name]()
    Path("weights.safetensors").write_bytes(content)
    (best(run) / "model.safetensors").write_bytes(content)
    sign(run)
    check(kd, "evaluate", "run")
    check(kd, "distill", *SMALL, "teacher.checkpoint=weights.safetensors")


@pytest.mark.slow  # likewise
@pytest.mark.parametrize("command", ["evaluate", "export", "profile", "predict"])
def test_no_command_takes_a_file_of_torch(command: str, kd: Callable[..., Outcome]) -> None:
    Image.new("L", (16, 16)).save("x.png")
    for suffix in some((".pt", ".pth", ".ckpt", ".bin", ".pt2"), 2):
        Path(f"hostile{suffix}").write_bytes(torch_saved())
        typed = WORDS if command == "evaluate" else []  # the others need to know its classes first
        words = [f"hostile{suffix}", *(["x.png"] if command == "predict" else []), *typed]
        check(kd, command, *words, code=3 if typed else 2)
    check(kd, "distill", *SMALL, "teacher.checkpoint=hostile.pt")


@pytest.mark.slow  # likewise
@pytest.mark.parametrize("content", [pickled, torch_saved, zip_bomb, bytes])
def test_no_hostile_file_is_a_beginning(content: Callable[[], bytes], kd: Callable[..., Outcome]) -> None:
    for name in ("hostile.pt", "hostile.safetensors"):
        Path(name).write_bytes(content())
        check(kd, "train-baseline", *DATA, "student=torchvision", f"student.pretrained={name}", code=2)


@pytest.mark.slow  # likewise
@pytest.mark.parametrize("name", [*list(CONTENTS)[:3], "a header nested 100,000 deep", "no seal"])
def test_a_report_leaves_hostile_predictions_out(name: str, kd: Callable[..., Outcome], run: Path) -> None:
    (run / FILE).write_bytes(PREDICTED[name]())
    kd("report", "run", "--out", "page")
    assert f"{FILE} is damaged" in Path("page/report.md").read_text()


@pytest.mark.slow  # likewise
@pytest.mark.parametrize("name", some(list(RECORDS), 8))
def test_no_command_takes_a_hostile_record(name: str, kd: Callable[..., Outcome], run: Path) -> None:
    file, change = RECORDS[name]
    edit(run / file, change)
    for command in ("evaluate", "export", "profile"):
        check(kd, command, "run")
    kd("list", "runs", "--outputs", ".")


def test_there_are_more_than_twenty_hostile_files() -> None:
    assert len(CONTENTS) + len(NUMBERS) + len(SPECIAL) + len(MANIFESTS) + len(RECORDS) >= 60
    assert issubclass(DataError, KDError)
