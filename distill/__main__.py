"""The Hydra entry point, `distill` and `python -m distill`, and nothing else."""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from distill import interrupt
from distill.launcher import stackable
from distill.naming import CONF

WHITELIST = ("distill.naming.Summary", "distill.logs.LogFile")


@hydra.main(config_path=str(CONF), config_name="config", execution_whitelist=WHITELIST)
@stackable
def task(config: DictConfig) -> Any:
    """One job: what Hydra calls with a composed config, in a directory that it has made.

    Returns the errors on the validation split, which a sweeper may minimise, or None without one.
    """
    from distill.config import parse
    from distill.job import Job
    from distill.results import line
    from distill.run import execute, failure, kept, unlike
    from distill.store import locked

    hydra = HydraConfig.get()
    directory = Path(hydra.runtime.output_dir)
    job = Job(parse(config))
    with locked(directory):
        before = kept(job, directory)
        if before is not None and (kinds := unlike([(job, before)])):
            logging.getLogger(__name__).warning(kinds)
        [result] = execute([job], [directory]) if before is None else [before]
    if (error := failure(result)) is not None:
        raise error
    print(line(result) + "; finished before" * (before is not None))
    if hydra.mode == RunMode.RUN:
        print(directory)
    return result.get("val_errors")


def _sweeps(error: HydraException) -> bool:
    """Whether an experiment asks for a sweep, which Hydra notices too late and fails by."""
    if "hydra.mode changed" in str(error):
        return True
    experiment = [argument for argument in sys.argv if argument.startswith("experiment=")]
    several = "Ambiguous value" in str(error) or "requires --multirun" in str(error)
    if not several or not experiment:
        return False
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF)):
        config = compose("config", experiment[-1:], return_hydra_config=True)
    return bool(config.hydra.mode == RunMode.MULTIRUN)


def main() -> None:
    """Run Hydra; an error becomes one line on stderr and exit code 1."""
    interrupt.install()
    traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra lets errors through to here
    try:
        try:
            task()
            return
        except HydraException as error:
            if not _sweeps(error):
                raise
        # Not in the handler: what ends the sweep would take this error for its own.
        sys.argv.append("--multirun")
        task()
    except KeyboardInterrupt as stop:
        sys.exit(128 + getattr(stop, "number", signal.SIGINT))
    except Exception as error:
        if traceback:
            raise
        from distill.explain import explain

        print(explain(error), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
