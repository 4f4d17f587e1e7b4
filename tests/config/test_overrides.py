"""The words of a command line: what of them is typed, and how a text is quoted."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from kd_cli.config.compose import composed
from kd_cli.config.overrides import hydra_quote

TEXTS = (
    *"a\\\"'",
    "",
    "a b",
    "a, b=[c] {d: e}",
    "C:\\new\\{x\\}",
    '\\"',
    '\\\\"',
    "\\\\",
    "x\\\\",
    'say "a\\b"',
    "two\nlines",
    "ü",
)


@pytest.mark.parametrize("text", TEXTS)
def test_a_quoted_text_is_what_hydra_reads(text: str) -> None:
    (read,) = OverridesParser.create().parse_overrides([f"key={hydra_quote(text)}"])
    assert read.value() == text


def test_override_dirname_names_what_is_typed_and_as_hydra_does() -> None:
    words = ["trainer.epochs=3", "seed=1", "trainer@teacher_trainer=mnist_cnn", "baseline_trainer.lr=0.5"]
    for options, name in (
        ([], "baseline_trainer.lr=0.5,seed=1,trainer.epochs=3,trainer@teacher_trainer=mnist_cnn"),
        (
            ["item_sep=+", "kv_sep=-"],
            "baseline_trainer.lr-0.5+seed-1+trainer.epochs-3+trainer@teacher_trainer-mnist_cnn",
        ),
        (["exclude_keys=[seed,trainer]"], "baseline_trainer.lr=0.5,trainer.epochs=3"),
    ):
        asked = [f"hydra.job.config.override_dirname.{option}" for option in options]
        with composed("run", [*words, *asked]) as (_, config):
            assert config.distill_trainer.epochs == 3
            assert config.hydra.job.override_dirname == name
