"""`distill-report DIR [DIR ...]`: figures, verdicts and a page, from what sweeps left."""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from distill.cli import modules
from distill.runs.results import SUMMARY
from distill.system.store import home, write_text
from distill.system.store import told as told_of
from distill.system.terminal import command
from distill.tuning import searched

if TYPE_CHECKING:
    from rich.console import Console

    from distill.report.check import Comparison
    from distill.report.contents import Finding, Sweep

MARKDOWN = "report.md"
PACKAGE = Path(__file__).resolve().parents[1]
# In a wheel the reference sweeps lie in the package, in a checkout in multirun.
PLACES = (PACKAGE / "findings" / "reference", PACKAGE.parent / "multirun" / "reference")
REFERENCE = next((place for place in PLACES if place.is_dir()), PLACES[0])


def _folder(argument: str) -> Path:
    return Path(home(argument))


def _arguments() -> argparse.Namespace:
    parser = modules.Parser(
        prog="distill-report",
        description="Write figures, verdicts and one page of what the sweeps in DIR found.",
    )
    parser.add_argument("directories", metavar="DIR", nargs="+", type=_folder, help="a sweep")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=_folder,
        help="where to write; by default the sweep's directory, or that which holds them all",
    )
    parser.add_argument(
        "--check",
        metavar="DIR",
        type=_folder,
        nargs="?",
        const=REFERENCE,
        help="compare with the sweeps of the same settings in DIR, by default the reference sweeps",
    )
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="where the studies of the sweeps are kept, or a journal file; by default that which "
        "lies in the folder, or the file that its runs name",
    )
    return parser.parse_args()


def _sweep(folder: Path, url: str | None) -> "Sweep":
    """The sweep in a folder, and the studies that it is of.

    Raises:
        ReportError: there is none, or it is damaged.
    """
    from distill.report import reading

    sweep = reading.sweep(folder)
    if url is None and not searched(folder):
        return sweep
    from distill.tuning.reading import studies  # with Optuna, which other sweeps do without

    return replace(sweep, studies=studies(folder, url))


def _show(found: "list[Finding]", console: "Console") -> None:
    """The verdicts, as a table."""
    from rich.table import Table

    from distill.report.numbers import counted

    table = Table(title="claims")
    for column in ("claim", "source", "ours", "verdict"):
        table.add_column(column, overflow="fold")
    for finding in found:
        ours = "\n".join(f"{e.label}: {counted(e)} {e.unit}" for e in finding.estimates)
        table.add_row(finding.id, finding.source, ours, finding.verdict)
    console.print(table)


def _check(sweeps: "list[Sweep]", folder: Path, console: "Console") -> bool:
    """Compare each sweep with the reference that has its settings, and print how they stand."""
    from distill.findings.claims import findings
    from distill.report import reading
    from distill.report.check import closest, compare

    agree = []
    references = [reading.sweep(path.parent) for path in sorted(folder.glob(f"*/{SUMMARY}"))]
    for sweep in sweeps:
        reference = closest(sweep, references)
        if reference is None:
            names = ", ".join(other.name for other in references)
            others = f"; it holds {names}" if names else ""
            message = f"it holds no sweep {sweep.name}, nor one that shares a setting with it"
            raise reading.ReportError(f"--check={folder}: {message}{others}")
        found = compare(sweep, reference, findings)
        agree.append(found.agrees)
        for line in _lines(found):
            console.print(line, markup=False, soft_wrap=True)
    return all(agree)


def _lines(found: "Comparison") -> list[str]:
    state = "agrees with the reference" if found.agrees else "differs from the reference"
    return [
        f"{found.name} {state}: {found.settings} settings compared, {len(found.differ)} differ; "
        f"{found.same} of {found.runs} runs that both hold have the same figures",
        *(f"  {text}" for text in (*found.differ, *found.verdicts, *found.notes)),
    ]


@command
def main() -> None:
    """Write the report; exit code 1 where a sweep cannot be read, or differs from its reference."""
    arguments = _arguments()

    # After the arguments, since --help needs none of it.
    from rich.console import Console

    from distill.findings.claims import findings
    from distill.report import comparison, page, reading

    console = Console() if sys.stdout.isatty() else Console(width=160)
    folders: list[Path] = arguments.directories
    try:
        sweeps = [_sweep(folder, arguments.storage) for folder in folders]
        found = findings(sweeps)
        out = arguments.out or Path(os.path.commonpath([f.absolute() for f in folders]))
        written = page.write(out, found, sweeps)
        if found:
            _show(found, console)
        compared = [sweep for sweep in sweeps if sweep.comparisons]
        texts = [page.markdown(found)] * bool(found) + [comparison.markdown(compared)] * bool(
            compared
        )
        if texts:
            write_text(out / MARKDOWN, "\n".join(texts))
        for sweep in (sweep for sweep in sweeps if sweep.unfinished is not None):
            line = f"{sweep.name} is not finished: {sweep.unfinished}"
            console.print(line, markup=False, soft_wrap=True)
        console.print(written, markup=False, soft_wrap=True)
        agrees = arguments.check is None or _check(sweeps, arguments.check, console)
    except reading.ReportError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(told_of(error) or str(error))
    if not agrees:
        sys.exit(1)


if __name__ == "__main__":
    main()
