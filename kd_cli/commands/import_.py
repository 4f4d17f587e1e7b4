"""kd import: weights from elsewhere, read safely, as a safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kd_cli import console
from kd_cli.errors import ConfigError
from kd_cli.launch.options import Json

if TYPE_CHECKING:
    from torch import Tensor

PANEL = "Results"


def command(
    file: Annotated[Path, typer.Argument(help="A state dict by torch.save, or what holds one.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write.", show_default=False)],
    json: Json = False,
) -> None:
    """Turn a file of weights by torch.save into .safetensors: tensors are read and nothing is run."""
    console.setup(as_json=json)
    if out.suffix != ".safetensors" or out.exists():
        reason = "is there already" if out.exists() else "is no name of a safetensors file"
        raise ConfigError(f"{out} {reason}; name a new file: {out.with_suffix('.new.safetensors')}")
    from safetensors.torch import save

    from kd_cli.storage.files import file_digest, write_bytes

    tensors = _tensors(file)
    write_bytes(out, save({name: tensor.clone().contiguous() for name, tensor in tensors.items()}))
    report = {"file": str(out), "tensors": len(tensors), "sha256": file_digest(out), **_counted(tensors)}
    console.say(f"{out}: {report['tensors']:,} tensors, {report['numbers']:,} numbers ({', '.join(report['types'])})")
    console.emit(report)


def _tensors(file: Path) -> dict[str, Tensor]:
    """Under the names of the network; what wrapped it in PyTorch is taken off."""
    from kd_cli.models.state_dict import WRAPPERS, read_state_dict, without_prefixes

    tensors = read_state_dict(file)
    while (shorter := without_prefixes(tensors, WRAPPERS)).keys() != tensors.keys():
        tensors = shorter
    return tensors


def _counted(tensors: dict[str, Tensor]) -> dict[str, Any]:
    types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
    return {"numbers": sum(tensor.numel() for tensor in tensors.values()), "types": types}
