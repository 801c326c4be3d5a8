"""The house: a file imports only from floors below its own; light commands stay light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import distill

PACKAGE = Path(distill.__file__).parent
FLOORS = [
    {"machine"},
    {"", "losses", "models", "transfer", "seeds", "store", "progress", "memory", "interrupt"}
    | {"logs", "columns", "options", "terminal", "weights"}
    | {"data.views"}
    | {"data.downloaded", "data.embedded", "data.generated"},
    {"data", "stack", "optim", "contracts"},
    {"train", "evaluate", "gallery"},
    {"teacher", "checkpoint"},
    {"config", "results", "holders"},
    {"job", "tables", "storage"},
    {"fit"},
    {"run", "plan", "compose", "search"},
    {"workers", "naming", "explain", "best"},
    {"launcher", "tune"},
    {"rescore", "sweeper", "__main__"},
    {"commands"},
]
HYDRA = {"config", "compose", "workers", "naming", "launcher", "explain", "rescore", "__main__"} | {
    "search",
    "options",
    "best",
    "tune",
    "sweeper",
}
# Their imports of torch, and of what imports it, wait until a job runs.
LIGHT = {
    "",
    "machine",
    "sweeper",
    "__main__",
    "launcher",
    "naming",
    "compose",
    "columns",
    "results",
    "tables",
    "config",
    "explain",
    "store",
    "progress",
    "report.__main__",
    "terminal",
    "weights",
    "commands",
}
# What a command's --help loads none of.
LARGE = ("torch", "optuna", "pandas", "scipy", "matplotlib", "statsmodels", "rich.table")
COMMANDS = {
    "distill": "from distill.__main__ import main",
    "distill-evaluate": "from distill.commands import evaluate as main",
    "distill-summary": "from distill.commands import summary as main",
    "distill-report": "from distill.report.__main__ import main",
}


def name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


MODULES = {name(path): path for path in PACKAGE.rglob("*.py")}


def imports(path: Path, inner: bool = True) -> Iterator[str]:
    """The modules that a file imports; without ``inner``, those at its top alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if inner else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


REPORT = {module for module in MODULES if module.partition(".")[0] == "report"}
# What it reads files with; it stands beside the house, and nothing in the house imports it.
READS = {"", "results", "columns", "store", "terminal"}


def test_every_file_has_a_floor() -> None:
    assert sorted({*MODULES} - REPORT) == sorted(n for floor in FLOORS for n in floor)


@pytest.mark.parametrize("module", sorted(REPORT))
def test_the_report_reads_files_alone(module: str) -> None:
    used = [*imports(MODULES[module])]
    ours = {i.split(".", 1)[1] for i in used if i.startswith("distill.")} & MODULES.keys()
    assert ours <= REPORT | READS
    assert not {i.split(".")[0] for i in used} & {"torch", "torchvision", "hydra", "omegaconf"}


@pytest.mark.parametrize("module", sorted({*MODULES} - REPORT))
def test_imports_come_from_floors_below(module: str) -> None:
    height = next(i for i, floor in enumerate(FLOORS) if module in floor)
    below = set().union(*FLOORS[:height])
    ours = [i.split(".", 1) for i in imports(MODULES[module]) if i.startswith("distill.")]
    assert {i for _, i in ours if i in MODULES} <= below


@pytest.mark.parametrize("module", sorted(MODULES))
def test_only_the_upper_floors_know_hydra(module: str) -> None:
    used = {i.split(".")[0] for i in imports(MODULES[module])}
    assert module in HYDRA or not used & {"hydra", "omegaconf"}


@pytest.mark.slow
@pytest.mark.parametrize("module", sorted(LIGHT))
def test_light_modules_import_without_torch(module: str) -> None:
    code = f"import sys, distill.{module}" if module else "import sys, distill"
    code += "; sys.exit('torch' in sys.modules or 'optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_help_loads_nothing_large(name: str) -> None:
    code = (
        f"{COMMANDS[name]}\nimport atexit, sys\n"
        f"atexit.register(lambda: print(*[m for m in {LARGE} if m in sys.modules]))\n"
        f"sys.argv = ['{name}', '--help']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n\n"), done.stdout.splitlines()[-1]
    assert name in done.stdout
