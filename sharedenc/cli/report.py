"""`sharedenc report`: a study's tables, figures and page, from what its MLflow server holds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sharedenc.cli.options import runs_option, runs_root
from sharedenc.errors import SharedencError, SpecError, TrackingError
from sharedenc.report.published import PUBLISHED

if TYPE_CHECKING:
    from sharedenc.report.collect import StudyRows
    from sharedenc.report.contents import Contents
    from sharedenc.report.write import ReportPaths

# A study whose cells are all in one of these states changes no more by itself.
ENDED = frozenset({"done", "failed", "skipped"})

EXAMPLES = """\b
Examples:
  sharedenc report full-grid-coco2017
  sharedenc report full-grid-coco2017 --out report --json
  sharedenc report full-grid-coco2017 --watch
  sharedenc report full-grid-coco2017 --table table.yaml
  sharedenc report full-grid-coco2017 full-grid-mine --out compared
  sharedenc report --published --out published
"""


@click.command(epilog=EXAMPLES)
@click.argument("studies", nargs=-1, metavar="[STUDY [STUDY]]")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for index.html, report.md, tables/ and figures/ [default: report/<study>].",
)
@click.option("--published", is_flag=True, help="The published numbers alone; no study is read.")
@click.option(
    "--table",
    "table_files",
    multiple=True,
    metavar="FILE.yaml",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write only the tables that this file asks for; may be given several times.",
)
@click.option("--watch", is_flag=True, help="Write again while trials run, and end with them.")
@click.option(
    "--every",
    "every_s",
    default=60,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="SECONDS",
    help="How often --watch looks.",
)
@click.option(
    "--predictions/--no-predictions",
    default=True,
    show_default=True,
    help="Show what every network predicts on the same test photos.",
)
@click.option(
    "--curves/--no-curves", default=True, show_default=True, help="Show the training curves."
)
@click.option(
    "--upload/--no-upload",
    default=True,
    show_default=True,
    help="Also put the report on the study's parent run in MLflow.",
)
@runs_option
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object with what was written."
)
def report(
    studies: tuple[str, ...],
    out: Path | None,
    published: bool,
    table_files: tuple[Path, ...],
    watch: bool,
    every_s: int,
    predictions: bool,
    curves: bool,
    upload: bool,
    runs_dir: Path | None,
    as_json: bool,
) -> None:
    """Write the tables and figures of STUDY beside the published ones, and a page that holds them.

    The study is read from the server in MLFLOW_TRACKING_URI, else from the private one of the
    runs folder. It may still be running: what is missing says why. Two studies are compared cell
    by cell.
    """
    published = published or (studies == (PUBLISHED,) and not table_files)
    studies = () if published and studies == (PUBLISHED,) else studies
    _check(studies, published, table_files, watch)
    if published:
        from sharedenc.report.write import write_published

        _say(write_published(out or Path("report") / "published"), "", as_json)
        return
    if studies == (PUBLISHED,):
        _user_tables("", PUBLISHED, table_files, out, as_json)
        return
    from sharedenc.mlflow_server import serve

    with serve(runs_root(runs_dir)) as server:
        if len(studies) == 2:
            _compare(server.uri, studies[0], studies[1], out, as_json)
        elif table_files:
            _user_tables(server.uri, studies[0], table_files, out, as_json)
        else:
            _report(
                server.uri,
                studies[0],
                out or _folder(studies[0]),
                predictions=predictions,
                curves=curves,
                upload=upload,
                every_s=every_s if watch else None,
                as_json=as_json,
            )


def _check(
    studies: tuple[str, ...], published: bool, table_files: tuple[Path, ...], watch: bool
) -> None:
    if published and studies:
        raise click.UsageError(f"--published reads no study, so leave out {studies[0]!r}.")
    if published and (table_files or watch):
        raise click.UsageError("--published goes with none of --table and --watch.")
    if not published and not studies:
        raise click.UsageError("say which study, or --published for the published numbers.")
    if len(studies) > 2:
        raise click.UsageError(f"one study is reported and two are compared, not {len(studies)}.")
    if len(studies) == 2 and (table_files or watch):
        raise click.UsageError("two studies are compared without --table and --watch.")
    if table_files and watch:
        raise click.UsageError("--table goes without --watch.")


def _folder(*studies: str) -> Path:
    from jetson_agent.protocol import slug

    return Path("report") / "-and-".join(slug(study) for study in studies)


def _report(
    uri: str,
    study: str,
    out: Path,
    *,
    predictions: bool,
    curves: bool,
    upload: bool,
    every_s: int | None,
    as_json: bool,
) -> None:
    from sharedenc.report.collect import collect
    from sharedenc.report.write import write_report

    for rows, ended in _readings(lambda: collect(uri, study), every_s):
        contents, paths = write_report(
            uri,
            study,
            out,
            predictions=predictions,
            curves=curves,
            refresh_s=None if ended else every_s,
            rows=rows,
            shown=every_s is None,
        )
        if upload:
            _upload(uri, contents, out)
        if ended or not as_json:
            _say(paths, study, as_json)


def _readings(
    read: Callable[[], StudyRows], every_s: int | None
) -> Iterator[tuple[StudyRows, bool]]:
    """What a study holds, whenever that changed, and whether it was the last time.

    Without ``every_s`` once. A server that is away is waited for, and said to be so once.
    """
    known, said = None, ""
    while True:
        try:
            rows = read()
        except TrackingError as error:
            if known is None or every_s is None:
                raise
            if str(error) != said:
                click.echo(f"{error}; looking again every {every_s} s", err=True)
            said = str(error)
            time.sleep(every_s)
            continue
        said = ""
        ended = every_s is None or all(row.state in ENDED for row in (*rows.final, *rows.search))
        if ended or rows != known:
            yield rows, ended
        if ended or every_s is None:
            return
        known = rows
        time.sleep(every_s)


def _upload(uri: str, contents: Contents, out: Path) -> None:
    from sharedenc.report.publish import publish

    try:
        publish(uri, contents, out)
    except SharedencError as error:
        click.echo(f"the report is in {out} and not in MLflow: {error}", err=True)


def _say(paths: ReportPaths, name: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(paths.to_dict(), default=str))
        return
    if name:
        cells = ", ".join(f"{count} {state}" for state, count in paths.summary.cells.items())
        click.echo(f"{name}: {cells}")
    for note in paths.notes:
        click.echo(f"  {note}")
    click.echo(
        f"{len(paths.tables)} tables and {len(paths.figures)} figures; the page is {paths.index}"
    )


def _rows(uri: str, study: str) -> StudyRows:
    """A study's rows; the published numbers stand for one, as in `sharedenc recommend`."""
    from sharedenc.report.collect import collect
    from sharedenc.report.thesis import published_rows

    return published_rows() if study == PUBLISHED else collect(uri, study)


def _compare(uri: str, first: str, second: str, out: Path | None, as_json: bool) -> None:
    from sharedenc.report.compare import compare, write_comparison

    found = compare(_rows(uri, first), _rows(uri, second))
    paths = write_comparison(found, out or _folder(first, second))
    if as_json:
        click.echo(json.dumps(paths.to_dict(), default=str))
    else:
        click.echo(f"the page is {paths.index}")


def _user_tables(
    uri: str, study: str, files: tuple[Path, ...], out: Path | None, as_json: bool
) -> None:
    from sharedenc.report.table_spec import Facts
    from sharedenc.report.user_tables import build, load, write
    from sharedenc.report.write import count_parameters

    specs = [spec for file in files for spec in load(file)]
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SpecError(
            f"several tables are called {', '.join(twice)} and would overwrite each other: give "
            "each a name of its own"
        )
    facts = Facts.of(_rows(uri, study), count_parameters())
    filled = [build(spec, facts) for spec in specs]
    folder = (out or _folder(study)) / "tables"
    written = {table.spec.name: write(table, folder) for table in filled}
    if as_json:
        click.echo(json.dumps({"study": study, "tables": written}, default=str))
        return
    for name, paths in written.items():
        click.echo(paths["md"].read_text())
        click.echo(f"{name}: {', '.join(str(path) for path in paths.values())}", err=True)
