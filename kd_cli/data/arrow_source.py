"""Images in a column of Arrow tables that are mapped into memory."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from kd_cli.data.decode import Unreadable
from kd_cli.data.names import CHUNK
from kd_cli.data.sources import Edges


class ArrowSource:
    """The rows of tables, with the bytes of an image each.

    Args:
        root: what messages begin with.
        tables: of the splits, as the datasets package has them.
        column: of the images: their bytes, and the names of files that are not opened.
        places: table and row of each image [N, 2], int64; none: all.
        sizes: their bytes [N], int64; -1 where there are none.
    """

    def __init__(
        self,
        root: Path,
        tables: Mapping[str, Any],
        column: str,
        places: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> None:
        self.root, self._tables, self._column = root, tables, column
        counts = [len(table) for table in tables.values()]
        which = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        every = torch.stack([which, torch.cat([torch.arange(count) for count in counts])], dim=1)
        self.places = every if places is None else places
        self.sizes = self._all_sizes() if sizes is None else sizes
        self._splits = list(tables)

    def __len__(self) -> int:
        return len(self.places)

    def name(self, row: int) -> str:
        """The split and the row in it."""
        split, place = self.places[row].tolist()
        return f"{self.root}/{self._splits[split]}/{place}"

    @contextmanager
    def open(self, row: int) -> Iterator[BinaryIO]:
        """The bytes of the row."""
        yield io.BytesIO(self._bytes(row))

    def edges(self, rows: Sequence[int], count: int) -> list[Edges]:
        """Of the rows."""
        return [self._edges(row, count) for row in rows]

    def _edges(self, row: int, count: int) -> Edges:
        try:
            content = memoryview(self._bytes(row))
        except Unreadable:
            return None
        return bytes(content[:count]), bytes(content[-2:])

    def described(self) -> Iterator[bytes]:
        """Splits, rows and bytes."""
        for places, sizes in zip(self.places.split(CHUNK), self.sizes.split(CHUNK), strict=True):
            rows = zip(places.tolist(), sizes.tolist(), strict=True)
            yield "".join(f"\n{self._splits[split]}/{place}\t{size}" for (split, place), size in rows).encode()

    def subset(self, rows: Tensor) -> ArrowSource:
        """Some of them, in the order given."""
        return ArrowSource(self.root, self._tables, self._column, self.places[rows], self.sizes[rows])

    def _bytes(self, row: int) -> Any:
        split, place = self.places[row].tolist()
        value = self._tables[self._splits[split]].column(self._column)[place]
        content = value["bytes"].as_buffer() if value.is_valid else None
        if content is None:
            path = value["path"].as_py() if value.is_valid else None
            raise Unreadable(
                f"{self.name(row)} has no bytes of an image, only the path {path}, which is not opened; write it again "
                "with save_to_disk, which takes the files in"
            )
        return content

    def _all_sizes(self) -> Tensor:
        import pyarrow.compute

        sizes = []
        for table in self._tables.values():
            content = pyarrow.compute.struct_field(table.column(self._column), "bytes")
            sizes.append(pyarrow.compute.binary_length(content).fill_null(-1).to_numpy())
        return torch.cat([torch.tensor(each, dtype=torch.int64) for each in sizes])
