"""Every example in a docstring, and those of the README, do what they say."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch

import distill

PACKAGE = Path(distill.__file__).parent
WITH_EXAMPLES = sorted(
    ".".join(["distill", *path.relative_to(PACKAGE).with_suffix("").parts])
    for path in PACKAGE.rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)
README = PACKAGE.parent / "README.md"


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_hold(name: str) -> None:
    module = importlib.import_module(name)
    done = doctest.testmod(module, extraglobs={"torch": torch, "distill": distill})
    assert done.attempted > 0 and done.failed == 0


@pytest.mark.slow
def test_what_the_readme_does_from_python_works(home: Path) -> None:
    section = README.read_text(encoding="utf-8").partition("\n## From Python\n")[2]
    section = section.partition("\n## ")[0]
    assert 0 < len(section.strip().splitlines()) <= 25
    blocks = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert blocks
    space: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), space)
    assert [path.name for path in (home / "multirun").iterdir() if path.is_dir()]
