"""report.md: what a report says, without its pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kd_cli.console import printable
from kd_cli.errors import listed
from kd_cli.report.tables import Table, tables

_LISTED = 8  # runs named for one value of an option; more are counted
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~$&!])")


def markdown(results: Mapping[str, Any]) -> str:
    """Title, findings, warnings, tables, differences, provenance and rerun lines."""
    return "\n".join([*_head(results), *_body(results), ""])


def _head(results: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {escape(results['title'])}"
    yield ""
    yield f"Made by {_code(results['command'])} (kd {escape(results['kd'])}, {results['made'][:19]} UTC)."
    if results["study"] and results["study"].get("question"):
        yield f"\n> {escape(results['study']['question'])}"
    yield from _list("Findings", results["findings"])
    yield from _list("Warnings", results["warnings"])


def _body(results: Mapping[str, Any]) -> Iterator[str]:
    for table in tables(results):
        yield from _table(table)
    yield from _table(_scores(results))
    yield from _table(_differences(results))
    yield from _table(_runs(results))


def _scores(results: Mapping[str, Any]) -> Table:
    names = ("top1", "top5", "nll", "brier", "ece", "mce", "agreement", "agreement_when_wrong", "kl")
    judged = [run for run in results["runs"] if run["scores"]]
    digits = {"nll": 4, "brier": 4, "kl": 4}
    rows = [[run["name"], *(_digits(run["scores"].get(name), digits.get(name, 2)) for name in names)] for run in judged]
    return Table("Scores on the test images", ("run", *names), rows, ("run",))


def _differences(results: Mapping[str, Any]) -> Table:
    rows = [
        [each["key"], "; ".join(f"{value['value']}: {listed(value['runs'], _LISTED)}" for value in each["values"])]
        for each in results["differences"]
    ]
    return Table("Options that differ between runs", ("option", "value: runs"), rows, ("option", "value: runs"))


def _runs(results: Mapping[str, Any]) -> Table:
    columns = ("", "run", "status", "folder", "again")
    rows = [[run["id"], run["name"], run["status"], run["run"], run["rerun"]] for run in results["runs"]]
    return Table("Runs", columns, rows, columns)


def _table(table: Table) -> Iterator[str]:
    if not table.rows:
        return
    yield f"\n## {escape(table.title)}\n"
    yield f"| {' | '.join(map(escape, table.columns))} |"
    yield f"|{'|'.join('---' if name in table.left else '---:' for name in table.columns)}|"
    for row in table.rows:
        yield f"| {' | '.join('–' if cell is None else escape(cell) for cell in row)} |"


def _list(title: str, sentences: Sequence[str]) -> Iterator[str]:
    if sentences:
        yield f"\n## {title}\n"
        yield from (f"- {escape(sentence)}" for sentence in sentences)


def escape(text: str) -> str:
    """Names may hold anything; as Markdown, and the HTML in it, they are only text, on one line."""
    return _MARKUP.sub(r"\\\1", printable(" ".join(text.split())))


def _code(text: str) -> str:
    """A command on one line; inside of code nothing but a backquote has a meaning."""
    plain = printable(" ".join(text.split())).replace("`", "'")
    return f"`{plain}`"


def _digits(value: Any, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"
