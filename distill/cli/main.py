"""The Hydra entry point, `distill` and `python -m distill`, and nothing else."""

import logging
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from distill.cli import modules
from distill.cli.rerun import rerun
from distill.cli.untouched import untouched
from distill.sweeps import names
from distill.sweeps.compose import command
from distill.sweeps.launcher import stackable
from distill.system import terminal
from distill.system.conf import CONF

WHITELIST = ("distill.sweeps.summary.Summary", "distill.system.logs.LogFile")


@hydra.main(config_path=str(CONF), config_name="config", execution_whitelist=WHITELIST)
@stackable
def task(config: DictConfig) -> Any:
    """One job: what Hydra calls with a composed config, in a directory that it has made.

    Returns the errors on the validation split, which a sweeper may minimise, or None without one.
    """
    from distill.config import parse
    from distill.runs.execute import execute, failure
    from distill.runs.job import Job
    from distill.runs.kept import kept, unlike
    from distill.runs.results import line
    from distill.system.store import locked

    hydra = HydraConfig.get()
    names.check_names(OmegaConf.create({"hydra": hydra}))  # whoever resolved the directory
    directory = Path(hydra.runtime.output_dir)
    if hydra.mode == RunMode.RUN:
        for given in hydra.overrides.hydra:
            if given.lstrip("+~").startswith("hydra.sweep."):
                logging.getLogger(__name__).warning(
                    "%s is for sweeps (-m); this is one run, which lands in hydra.run.dir", given
                )
    job = Job(parse(config))
    names.check_halving(OmegaConf.create({"hydra": hydra}), job.run.halving.rungs)
    with locked(directory):
        before = kept(job, directory)
        for told in unlike([(job, before)]) if before is not None else ():
            logging.getLogger(__name__).warning(told)
        [result] = execute([job], [directory]) if before is None else [before]
    if (error := failure(result)) is not None:
        raise error
    if hydra.mode == RunMode.RUN:
        names.tell(directory)
    with terminal.outlets():  # a launcher may have started this in another process
        print(f"{line(result)}; finished before" if before is not None else line(result))
        if hydra.mode == RunMode.RUN:
            print(directory)
    return result.get("val_errors")


def _flags() -> Namespace:
    """Hydra's flags among the arguments; wrong ones end the command in a line."""
    parser = get_args_parser()
    parser.error = modules.refuse  # type: ignore[method-assign, assignment]
    flags = parser.parse_intermixed_args()
    given = any(argument.startswith("hydra.searchpath=") for argument in sys.argv)
    folders = _folders(flags)
    if folders and not flags.config_dir:
        flags.config_dir = str(folders[0])
        sys.argv += ["--config-dir", flags.config_dir]
    elif folders[1:] and not given:
        sys.argv.append(modules.searched(folders[1:]))
    return flags


def _folders(flags: Namespace) -> list[Path]:
    """The folders of the user's own yamls."""
    return modules.folders(flags.config_dir, beside=not flags.config_path)


def _check_configs(flags: Namespace) -> None:
    """Refuse a run's record as a config, and say which yamls are not read.

    Raises:
        ConfigError: a run's record is named as if it were a folder of configs.
    """
    for flag in ("config_path", "config_dir"):
        folder = Path(getattr(flags, flag) or "")
        if (
            folder.name
            and (folder / "overrides.yaml").exists()
            and (folder / "config.yaml").exists()
        ):
            from distill.config import ConfigError

            rerun = command("--experimental-rerun", str(folder.parent))
            name = f"--{flag.replace('_', '-')}={folder}"
            raise ConfigError(f"{name}: it is the record of a run, which is run again by: {rerun}")
    _check_searchpath(flags)
    modules.tell_unread(_folders(flags))


def _check_searchpath(flags: Namespace) -> None:
    """Refuse a primary config that lets Hydra import a package to find more configs.

    Raises:
        ConfigError: its hydra.searchpath names one.
    """
    from distill.config import ConfigError

    if not flags.config_name:
        return
    for folder in (flags.config_path or CONF, flags.config_dir or "."):
        path = Path(folder) / f"{str(flags.config_name).removesuffix('.yaml')}.yaml"
        if path.is_file():
            places = OmegaConf.select(OmegaConf.load(path), "hydra.searchpath") or []
            for place in (str(place) for place in places):
                if place.startswith("pkg:"):
                    raise ConfigError(
                        f"hydra.searchpath={place}: in {path} it would import a package; "
                        "name a folder, file://DIR, or give it on the command line"
                    )


def _sweeps(error: HydraException, flags: Namespace) -> bool:
    """Whether an experiment asks for a sweep, which Hydra notices too late and fails by."""
    from distill.cli.explain import LOOKS

    if "hydra.mode changed" in str(error):
        return True
    experiment = [given for given in flags.overrides if given.startswith("experiment=")]
    several = "Ambiguous value" in str(error) or "requires --multirun" in str(error)
    if not several or not experiment or any(LOOKS.match(given) for given in sys.argv[1:]):
        return False
    GlobalHydra.instance().clear()
    with initialize_config_dir(os.path.abspath(flags.config_path or CONF)):  # noqa: PTH100
        config = compose(
            flags.config_name or "config",
            [modules.searched(_folders(flags)), experiment[-1]],
            return_hydra_config=True,
        )
    return bool(config.hydra.mode == RunMode.MULTIRUN)


@terminal.command
def main() -> None:
    """Run Hydra; an error becomes one line on stderr and exit code 1."""
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    with untouched():
        try:
            perform(sys.argv[1:])
        except SystemExit as end:
            if not isinstance(end.code, str):
                raise
            print(end.code, file=sys.stderr)
            sys.exit(1)
        except Exception as error:
            if full:
                raise
            from distill.cli.explain import explain

            print(explain(error), file=sys.stderr)
            sys.exit(1)


def perform(arguments: Sequence[str], *, single: bool = False) -> None:
    """Do what the command does with ``arguments``, and let errors through; within `untouched`.

    Raises:
        ConfigError: with ``single``, an experiment asks for a sweep.
    """
    token = names.typed.set(arguments)
    own, rest = modules.taken(arguments)
    sys.argv = [sys.argv[0], *rerun(rest)]
    try:
        # So that Hydra lets errors through to here.
        with modules.trusting(own), env_override({"HYDRA_FULL_ERROR": "1"}):
            _run(single)
    finally:
        names.typed.reset(token)


def _run(single: bool) -> None:
    flags = _flags()
    try:
        _check_configs(flags)
        task()
        return
    except HydraException as error:
        if not _sweeps(error, flags):
            raise
    if single:
        from distill.config import ConfigError

        experiment = [given for given in flags.overrides if given.startswith("experiment=")][-1]
        raise ConfigError(f"{experiment}: it is a sweep, which distill.sweep runs")
    # Not in the handler: what ends the sweep would take this error for its own.
    sys.argv = [*sys.argv, "--multirun"]
    task()
