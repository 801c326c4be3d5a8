"""The house: a file imports only from floors below its own; light commands stay light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import distill

PACKAGE = Path(distill.__file__).parent
# Packages and modules, from low to high: each imports only from those before it, and from itself.
FLOORS = [
    *(
        "system",
        "seeds",
        "losses",
        "models",
        "optim",
        "transfer",
        "views",
        "augment",
        "loggers",
        "data",
        "config",
    ),
    *("training", "teachers", "runs", "deploy", "report", "findings", "sweeps", "tuning", "cli"),
    "__main__",
]
# These alone know Hydra or OmegaConf.
HYDRA = {"config", "sweeps", "tuning", "cli"}
# What reads files stands beside the rest: it imports of it only this, and never torch.
READERS = {"report", "findings"}
READS = {
    *("runs.results", "runs.summaries", "runs.columns", "runs.planned", "runs.standing"),
    *("runs.wrong", "system.bits", "system.store", "system.terminal"),
}
# Their imports of torch, and of what imports it, wait until a job runs.
LIGHT = {
    *("", "__main__", "runs.columns", "runs.results", "runs.summaries", "runs.wrong", "config"),
    "teachers.misfits",
    *("sweeps.launcher", "sweeps.members", "sweeps.names", "sweeps.summary", "sweeps.compose"),
    "sweeps.tables",
    *(
        "tuning",
        "tuning.sweeper",
        "system.machine",
        "system.trust",
        "system.store",
        "system.disk",
        "system.locks",
        "system.pulse",
        "system.progress",
        "system.terminal",
    ),
    *("cli.main", "cli.explain", "cli.commands", "cli.report", "cli.modules", "cli.python"),
}
# What a command's --help loads none of.
LARGE = ("torch", "optuna", "pandas", "scipy", "matplotlib", "statsmodels", "rich.table")
COMMANDS = {
    "distill": "from distill.cli.main import main",
    "distill-evaluate": "from distill.cli.commands import evaluate as main",
    "distill-summary": "from distill.cli.commands import summary as main",
    "distill-report": "from distill.cli.report import main",
    "distill-predict": "from distill.cli.commands import predict as main",
    "distill-export": "from distill.cli.commands import export as main",
}


def name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


MODULES = {name(path): path for path in PACKAGE.rglob("*.py")}


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path, inner: bool = True) -> Iterator[str]:
    """The modules that a file imports; without ``inner``, those at its top alone."""
    for node in ast.walk(_tree(path)) if inner else _tree(path).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(module: str, inner: bool = True) -> set[str]:
    """The modules of the package that one of them imports."""
    found = {i.split(".", 1)[1] for i in imports(MODULES[module], inner) if "distill." in i}
    return (found & MODULES.keys()) - {module}


def floor(module: str) -> str:
    return module.partition(".")[0]


def test_every_file_has_a_floor() -> None:
    assert {floor(module) for module in MODULES} == {"", *FLOORS}


@pytest.mark.parametrize("module", sorted(module for module in MODULES if floor(module) in READERS))
def test_what_reads_files_needs_nothing_else(module: str) -> None:
    assert {used for used in ours(module) if floor(used) not in READERS} <= READS
    used = {i.split(".")[0] for i in imports(MODULES[module])}
    assert not used & {"torch", "torchvision", "hydra", "omegaconf"}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {""}))
def test_imports_come_from_floors_below(module: str) -> None:
    below = FLOORS[: FLOORS.index(floor(module)) + 1]
    assert {floor(used) for used in ours(module)} <= {"", *below}


def test_no_two_modules_import_each_other() -> None:
    needs = {module: ours(module, inner=False) for module in MODULES}
    while free := [module for module, used in needs.items() if not used]:
        needs = {m: used - {*free} for m, used in needs.items() if m not in free}
    assert not needs


@pytest.mark.parametrize("module", sorted(MODULES))
def test_only_the_upper_floors_know_hydra(module: str) -> None:
    used = {i.split(".")[0] for i in imports(MODULES[module])}
    assert floor(module) in HYDRA or not used & {"hydra", "omegaconf"}


@pytest.mark.slow
def test_light_modules_import_without_torch() -> None:
    names = [f"distill.{module}".rstrip(".") for module in sorted(LIGHT)]
    code = (
        "import sys\nfrom importlib import import_module\n"
        f"for name in {names}:\n"
        "    import_module(name)\n"
        "    if {'torch', 'optuna'} & sys.modules.keys(): sys.exit(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


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
