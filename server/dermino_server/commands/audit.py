"""`dermino data audit`: copies within and across tables of images, and tables without them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermino_core.console import say, warn
from dermino_core.errors import DerminoError
from dermino_server.commands.options import Precision, parse_columns

if TYPE_CHECKING:
    from dermino_core.leakage import Audit, Twins

LINES_SHOWN = 10
"""Leaking test images named on the terminal; all are in the table of pairs."""

_SURE = {
    "exact": "is the same file as",
    "perceptual": "shows the same as",
    "embedding": "has nearly the features of",
}


def audit(
    manifests: Annotated[list[Path], typer.Argument(help="CSV or Parquet tables of images.")],
    images: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder that entries are relative to; once for all tables or once for each, in "
            "their order. By default each table's own folder."
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="FIELD=COLUMN, for example label=binary. May be given again."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="Split that is never changed; by default test. May be given again."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Compare features of this pretrained backbone as well.")
    ] = None,
    distance: Annotated[
        int | None, typer.Option(help="Bits of 255 in which hashes may differ; by default 44.")
    ] = None,
    similarity: Annotated[
        float | None,
        typer.Option(help="Least cosine of whitened features; by default 0.8."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for pairs.csv and cleaned/.")] = Path("audit"),
    device: Annotated[str, typer.Option(help="Of the backbone: auto, cpu or cuda.")] = "auto",
    precision: Annotated[Precision, typer.Option(help="Of the backbone.")] = Precision.AUTO,
) -> None:
    """Find images that are copies of each other, and write tables without them.

    Copies are found by their bytes, by a perceptual hash that withstands scaling, compression,
    turning, mirroring, mild colour changes and cuts of about 5 percent, and with --backbone by
    their features, which finds larger cuts.

    OUT/pairs.csv lists them, the most dangerous first. In OUT/cleaned/ each table is written
    without the images that have a twin in a test half, and with copies outside the test halves
    kept once; rows of the test halves stay. A row without a split counts as pretraining. Columns
    that dermino does not know are left out.
    """
    from dermino_core.leakage import Features, audit_manifests
    from dermino_core.manifest import read_manifest
    from dermino_core.near_duplicates import DISTANCE

    if similarity is not None and backbone is None:
        raise typer.BadParameter("needs --backbone.", param_hint="--similarity")
    columns = parse_columns(column or ())
    halves = _halves(against or ["test"])
    roots = _roots(manifests, images or [])
    names = _names(manifests)
    _check_targets(manifests, names, out)
    tables = [
        read_manifest(file, root=root, columns=columns)
        for file, root in zip(manifests, roots, strict=True)
    ]
    features = None
    if backbone is not None:
        features = Features(backbone, similarity, device, precision.value)
    result = audit_manifests(
        tables,
        against=halves,
        max_distance=DISTANCE if distance is None else distance,
        features=features,
    )
    _write(result, names, out)
    _report(result, names, halves, out)
    if any(root is None for root in roots):
        say("Entries of the cleaned tables are relative to the same folders as before: --images.")


def _halves(splits: Sequence[str]) -> tuple[str, ...]:
    from dermino_core.manifest import SPLITS

    for split in splits:
        if split.casefold() not in SPLITS:
            raise typer.BadParameter(
                f"{split!r} is not one of {', '.join(SPLITS)}.", param_hint="--against"
            )
    return tuple(dict.fromkeys(SPLITS[split.casefold()] for split in splits))


def _roots(manifests: Sequence[Path], images: Sequence[Path]) -> list[Path | None]:
    if len(images) not in (0, 1, len(manifests)):
        raise typer.BadParameter(
            f"given {len(images)} times for {len(manifests)} tables; give it once, or once for "
            "each.",
            param_hint="--images",
        )
    if len(images) == len(manifests):
        return list(images)
    return [images[0] if images else None] * len(manifests)


def _names(manifests: Sequence[Path]) -> list[str]:
    """A short name for each table that no other has: its stem, or with its folder's name."""
    if twice := [str(file) for file, n in Counter(manifests).items() if n > 1]:
        raise DerminoError(
            "CONFIG_INVALID",
            "The same table is given twice.",
            where=twice[0],
            fix="Name every table once.",
        )
    names = [file.stem for file in manifests]
    if len(set(names)) < len(names):
        names = [f"{file.absolute().parent.name}-{file.stem}".lstrip("-") for file in manifests]
    if len(set(names)) < len(names):
        names = [f"{number}-{name}" for number, name in enumerate(names, start=1)]
    return names


def _check_targets(manifests: Sequence[Path], names: Sequence[str], out: Path) -> None:
    given = {file.resolve() for file in manifests}
    for name in names:
        target = _cleaned(out, name)
        if target.resolve() in given:
            raise DerminoError(
                "OUTPUT_EXISTS",
                "The cleaned table would overwrite the one it is made from.",
                where=target,
                fix="Choose another folder: --out FOLDER.",
            )


def _cleaned(out: Path, name: str) -> Path:
    return out / "cleaned" / f"{name}.csv"


def _write(result: Audit, names: Sequence[str], out: Path) -> None:
    from dermino_core.manifest import write_manifest

    heading = ["danger", "kind", "distance", "similarity", "labels", "removed"]
    for side in ("first", "second"):
        heading += [f"{side}_{field}" for field in ("table", "row", "image", "split", "label")]
    _write_csv(out / "pairs.csv", heading, (_cells(result, pair, names) for pair in result.pairs))
    _write_csv(
        out / "unreadable.csv",
        ["table", "row", "image", "reason"],
        (
            (names[row.table], row.number, row.record.image, reason)
            for row, reason in ((result.rows[n], why) for n, why in result.unreadable.items())
        ),
    )
    for table, name in enumerate(names):
        write_manifest(_cleaned(out, name), result.cleaned(table))


def _cells(result: Audit, pair: Twins, names: Sequence[str]) -> list[object]:
    gone = [
        side
        for side, place in (("first", pair.first), ("second", pair.second))
        if place in result.removed
    ]
    cells: list[object] = [
        pair.danger,
        pair.kind,
        "" if pair.distance is None else pair.distance,
        "" if pair.similarity is None else f"{pair.similarity:.4f}",
        "differ" if pair.labels_differ else "",
        " and ".join(gone),
    ]
    for place in (pair.first, pair.second):
        row = result.rows[place]
        record = row.record
        cells += [names[row.table], row.number, record.image, record.split, record.label]
    return cells


def _write_csv(file: Path, heading: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    from dermino_core.files import write_atomically

    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(heading)
    writer.writerows(rows)
    write_atomically(file, text.getvalue().encode("utf-8", errors="backslashreplace"))


def _report(result: Audit, names: Sequence[str], halves: Sequence[str], out: Path) -> None:
    from dermino_core.leakage import KINDS

    kinds = Counter(pair.kind for pair in result.pairs)
    listed = ", ".join(f"{kind} {kinds[kind]:,}" for kind in KINDS if kinds[kind])
    say(
        f"{len(result.rows):,} rows in {len(names)} tables: {len(result.pairs):,} pairs show the "
        f"same picture{f' ({listed})' if listed else ''}."
    )
    if result.unreadable:
        warn(f"{len(result.unreadable):,} images are unreadable; see {out / 'unreadable.csv'}.")
    if result.plain:
        warn(
            f"{len(result.plain):,} images are too plain to be hashed (one even colour); of these "
            "only equal files are found."
        )
    test = " and ".join(halves)
    if not result.protected:
        warn(f"No row has the split {test}: only copies elsewhere could be looked for.")
    else:
        _say_leaks(result, names, test)
    if differ := sum(pair.labels_differ for pair in result.pairs):
        say(f"{differ:,} pairs have different labels (column labels in pairs.csv).")
    protecting = Counter(
        (result.rows[row].table, by in result.protected) for row, by in result.removed.items()
    )
    rows_of = Counter(row.table for row in result.rows)
    for table, name in enumerate(names):
        twins, copies = protecting[table, True], protecting[table, False]
        say(
            f"{_cleaned(out, name)}: {rows_of[table] - twins - copies:,} of "
            f"{rows_of[table]:,} rows; left out {twins:,} with a twin in {test}, {copies:,} copies."
        )
    say(f"All pairs: {out / 'pairs.csv'}")


def _say_leaks(result: Audit, names: Sequence[str], test: str) -> None:
    from dermino_core.manifest_table import printable

    worst: dict[int, Twins] = {}
    for pair in result.leaks:
        worst.setdefault(pair.first, pair)
    total = len(result.protected)
    if not worst:
        say(f"None of the {total:,} {test} images has a twin in pretraining or training.")
        return
    say(f"{len(worst):,} of {total:,} {test} images have a twin in pretraining or training:")
    for pair in list(worst.values())[:LINES_SHOWN]:
        one, other = result.rows[pair.first], result.rows[pair.second]
        say(
            f"  {names[one.table]}: {printable(one.record.image)} {_SURE[pair.kind]} "
            f"{printable(other.record.image)} in {names[other.table]} "
            f"({other.record.split or 'pretraining'})"
        )
    if len(worst) > LINES_SHOWN:
        say(f"  ... and {len(worst) - LINES_SHOWN:,} more, in pairs.csv")
