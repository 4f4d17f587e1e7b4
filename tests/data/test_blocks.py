"""Blocks of shared memory that batches are written to: used again, and never while somebody looks at them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kd_cli.data import blocks as blocks_module
from kd_cli.data.blocks import Blocks
from kd_cli.data.store import Store
from kd_cli.data.workers import each_chunk
from kd_cli.errors import DataError

BATCHES, SIZE = 24, 5


def fill(blocks: Blocks, block: int, value: int) -> Tensor:
    shape = blocks.write(block, [torch.full((2, 3), value, dtype=torch.uint8)] * 4)
    return blocks.take(block, shape)


def test_a_block_is_lent_again_once_no_view_of_it_is_left() -> None:
    blocks = Blocks(1, 64)
    block = blocks.lend()
    assert block == 0
    assert blocks.lend() is None
    view = fill(blocks, block, 7).permute(2, 0, 1)[1:]  # the tensor itself is gone
    assert blocks.lend() is None
    assert view.eq(7).all()
    del view
    assert blocks.lend() == 0


def images() -> Tensor:
    return torch.arange(BATCHES * SIZE * 12, dtype=torch.int64).to(torch.uint8).view(-1, 2, 2, 3)


def rows() -> list[Tensor]:
    return list(torch.arange(BATCHES * SIZE).split(SIZE))


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_batches_that_are_kept_are_not_overwritten(start_method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "get_start_method", lambda: start_method)
    store = Store(images(), streamed=True, workers=2)
    kept = list(store.batches(rows(), torch.device("cpu")))
    assert torch.equal(torch.cat(kept), images())


def test_batches_that_are_let_go_share_few_blocks() -> None:
    store, places = Store(images(), streamed=True, workers=2), set()
    for number, pixels in enumerate(store.batches(rows(), torch.device("cpu"))):
        assert torch.equal(pixels, images()[number * SIZE : (number + 1) * SIZE])
        places.add(pixels.data_ptr())
    assert len(places) <= 6


class Unreadable:
    """Only the last two images can be read."""

    num_bytes = 3

    def __len__(self) -> int:
        return BATCHES

    def read(self, places: Sequence[int]) -> tuple[Tensor | list[Tensor], dict[int, DataError]]:
        if places[0] < BATCHES - 2:
            return torch.empty(0, 3, dtype=torch.uint8), {0: DataError("damaged")}
        return [torch.full((3,), places[0], dtype=torch.uint8)], {}


def test_a_block_that_nothing_was_written_to_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Blocks] = []

    class Seen(Blocks):
        def __init__(self, count: int, num_bytes: int) -> None:
            super().__init__(count, num_bytes)
            made.append(self)

    monkeypatch.setattr(blocks_module, "Blocks", Seen)
    read = [pixels.tolist() for pixels, _ in each_chunk(Unreadable(), 2, 1)]
    assert read == [[]] * (BATCHES - 2) + [[[BATCHES - 2] * 3], [[BATCHES - 1] * 3]]
    (blocks,) = made
    free = []
    while (block := blocks.lend()) is not None:
        free.append(block)
    assert sorted(free) == list(range(6))
