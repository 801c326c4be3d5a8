"""A stack as a task: plain values for any process, which makes the folders and trains.

Letters: K members.
"""

import logging
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from hydra.core.utils import configure_log, env_override
from omegaconf import OmegaConf

from distill.config import Checker
from distill.runs.execute import execute
from distill.runs.job import Checked, Job
from distill.runs.results import clear
from distill.system import store
from distill.system.memo import Memo
from distill.teachers.find import taught
from distill.training.fit import RunError
from distill.training.inputs import Machine, trained_on

Results = list[dict[str, Any]]
PLAIN = re.compile(r"[A-Za-z_][\w./]{0,40}=[A-Za-z0-9_.+-]{1,24}", re.ASCII)  # in a yaml as it is


class Planned(NamedTuple):
    """A member of a stack that is to be trained. Of what is equal, all members hold the same."""

    name: str
    directory: Path
    config: dict[str, Any]  # the task's, with nothing to be looked up
    composed: dict[str, Any]  # the same as it was composed
    overrides: Sequence[str]
    hydra: dict[str, Any]  # Hydra's part of the config, as it was composed for the first of a kind
    number: int
    subdir: str


@dataclass
class Task:
    """A stack to be trained, in this process or in another.

    ``log`` is how it logs, in the directory of its first member.
    """

    members: Sequence[Planned]
    log: dict[str, Any] | None
    verbose: bool | str | Sequence[str]
    whitelist: Sequence[str] | None
    environment: Mapping[str, str]
    machine: Machine | None = None  # what "auto" means, where several machines train the sweep

    @property
    def directories(self) -> list[Path]:
        """Where the members' files are to lie."""
        return [member.directory for member in self.members]

    def part(self, numbers: Sequence[int]) -> Self:
        """The members of these numbers, from 0 to K - 1, as a stack of their own."""
        own = [self.members[n] for n in numbers]
        before, after = (str(members[0].directory) for members in (self.members, own))
        return replace(self, members=own, log=_moved(self.log, before, after))

    def jobs(self) -> list[Job]:
        """The members, checked anew.

        Raises:
            ConfigError: one of them cannot be trained here.
            RunError: it would be another than was planned.
        """
        check, checked = Checker(), Checked()
        with trained_on(self.machine):
            jobs = [Job(check(member.config), checked) for member in self.members]
        checked.finish()
        for job, member in zip(jobs, self.members, strict=True):
            if job.name != member.name:
                changed = "what decides it changed after the sweep began"
                raise RunError(f"{member.name} would be trained as {job.name}: {changed}")
        return jobs

    def run(self, jobs: Sequence[Job] | None = None) -> Results:
        """Make the folders and train the stack; returns the result of each of its ``jobs``."""
        with env_override(dict(self.environment)):
            self.make()
            with self._logged():
                return execute(jobs or self.jobs(), self.directories)

    def teach(self, job: Job) -> None:
        """Let the teacher of ``job`` and its soft targets be in the cache, made if they are not."""
        with env_override(dict(self.environment)):
            self._make(self.members[0], Memo())
            with self._logged():
                if job.way is not None:
                    taught(job.setting, job.run.teacher, job.run.checkpoint.every, job.way)

    def make(self) -> None:
        """Make the directories, without what an earlier try left there, with the configs in them.

        Hydra's part of these, which hardly differs, lies in that of the first alone; and with each
        trial of a study, which may have to be made again from its runs.
        """
        memo = Memo()
        for number, member in enumerate(self.members):
            self._make(member, memo, hydra=number == 0 or not _lists(member.hydra))

    def _make(self, member: Planned, memo: Memo, *, hydra: bool = True) -> None:
        name = member.hydra["output_subdir"]
        try:
            member.directory.mkdir(parents=True)
        except FileExistsError:
            member.directory.mkdir(exist_ok=True)  # or it is no directory
            clear(member.directory, keep=not member.config.get("resume", True), config=name)
        if name is None:
            return
        folder = member.directory / name
        folder.mkdir(exist_ok=True)
        texts = {
            "config": "".join(memo(_section, *item) for item in member.composed.items()),
            "overrides": "".join(memo(_item, text) for text in member.overrides) or "[]\n",
        }
        if hydra:
            texts["hydra"] = _hydra(member)
        else:
            (folder / "hydra.yaml").unlink(missing_ok=True)  # of another stack
        for file, text in texts.items():
            store.write_text(folder / f"{file}.yaml", text, sync=False)

    @contextmanager
    def _logged(self) -> Iterator[None]:
        if self.log is None:
            yield
            return
        whitelist = None if self.whitelist is None else list(self.whitelist)
        configure_log(OmegaConf.create(self.log), self.verbose, execution_whitelist=whitelist)
        try:
            yield
        finally:
            for handler in logging.getLogger().handlers:
                if isinstance(handler, logging.FileHandler):
                    handler.close()


def _lists(hydra: Mapping[str, Any]) -> bool:
    """Whether the jobs of a sweep are those that its command lists, and no trials of a study."""
    return str(hydra["sweeper"]["_target_"]).endswith(".BasicSweeper")


_known: dict[str, str] = {}
MOST = 4096  # texts that are kept


def _yaml(values: dict[str, Any] | list[str]) -> str:
    """Plain values as their yaml has them; most are those of the stacks before."""
    content = repr(values)
    if content not in _known:
        if len(_known) >= MOST:
            _known.clear()
        _known[content] = OmegaConf.to_yaml(OmegaConf.create(values))
    return _known[content]


def _section(key: str, value: Any) -> str:
    """A key of a config as its yaml has it."""
    return _yaml({key: value})


def _item(text: str) -> str:
    """A text of a list as its yaml has it."""
    return f"- {text}\n" if PLAIN.fullmatch(text) else _yaml([text])


def _hydra(member: Planned) -> str:
    """Hydra's part of the config of a member, as its yaml has it."""
    parts: dict[str, dict[str, Any]] = {
        "overrides": {"task": list(member.overrides)},
        "job": {"id": str(member.number), "num": member.number},
        "sweep": {"subdir": member.subdir},
        "runtime": {"output_dir": str(member.directory)},
    }
    own = {key: {**member.hydra[key], **changes} for key, changes in parts.items()}
    text = "".join(_section(*item) for item in {**member.hydra, **own}.items())
    return "hydra:\n" + textwrap.indent(text, "  ")


def _moved(value: Any, before: str, after: str) -> Any:
    """What names a directory in a value, or a place in it, names another instead."""
    if isinstance(value, str):
        return value.replace(before, after)
    if isinstance(value, Mapping):
        return {key: _moved(item, before, after) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, before, after) for item in value]
    return value
