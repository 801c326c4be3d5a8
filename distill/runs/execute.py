"""The composition root: from checked jobs to a teacher, a trained stack, and results on disk.

Letters: K jobs, which differ in nothing but the numbers of loss and optimizer, and perhaps in their
teachers, train as one stack.
"""

import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from distill import __version__
from distill.config import Run
from distill.config.strict import places
from distill.runs import results
from distill.runs.columns import Status, measured
from distill.runs.job import Job, by_teacher
from distill.runs.students import students
from distill.runs.teaching import Taught, TeacherError, taught_by
from distill.runs.watch import Watch
from distill.runs.wrong import sure
from distill.system import interrupt, machine, store
from distill.system.bits import packed
from distill.system.pulse import PULSE, pulse
from distill.teachers.cache import Teacher
from distill.teachers.find import logits_on_test, shifted_errors_on_test, wrong_on_test
from distill.teachers.given import Targets
from distill.training import checkpoint
from distill.training.build import multiply_adds, parameters
from distill.training.checkpoint import Checkpoint
from distill.training.evaluate import chosen
from distill.training.evaluator import evaluator
from distill.training.fit import RunError, fit, out_of_memory
from distill.training.inputs import normalisation
from distill.training.loop import History, Training, Values
from distill.training.stack import Stack

log = logging.getLogger(__name__)


def failure(result: dict[str, Any]) -> RunError | None:
    """The error that a result speaks of; None for a run that completed or was stopped."""
    if result["status"] in (Status.COMPLETE, Status.STOPPED):
        return None
    return RunError(f"{result['run']} {result['status']}: {result['reason']}")


def fail(
    jobs: Sequence[Job], directories: Sequence[Path], error: BaseException
) -> list[dict[str, Any]]:
    """Write the result of jobs that an error ended; returns it."""
    status = Status.FAILED if isinstance(error, Exception) else Status.INTERRUPTED
    name = "" if isinstance(error, RunError | interrupt.Interrupt) else f"{type(error).__name__}: "
    text = store.told(error) if isinstance(error, OSError) else None
    reason = text or " ".join(f"{name}{error}".split()).removesuffix(":")
    bodies = [
        {**_head(job), **beside(directories[0], own), "status": status, "reason": reason}
        for job, own in zip(jobs, directories, strict=True)
    ]
    for k, (job, body, directory) in enumerate(zip(jobs, bodies, directories, strict=True)):
        try:
            directory.mkdir(parents=True, exist_ok=True)  # it ended before its stack began
            if job.run.resume and (before := results.finished(directory, job.name)) is not None:
                bodies[k] = before  # it ended before the error came
                continue
            # An error before they trained leaves what an earlier try had made, and one after that
            # weights without a result.
            if not (directory / results.RESULT).exists():
                for weights in results.KEPT.values():
                    (directory / weights).unlink(missing_ok=True)
            results.clear(directory, keep=not job.run.resume)
            results.write(directory, body, [])
        except OSError as problem:
            log.warning(
                "%s: its result could not be written: %s",
                body["run"],
                store.told(problem) or problem,
            )
    return bodies


def beside(first: Path, directory: Path) -> dict[str, str]:
    """Where the log and Hydra's record of a stack lie, which its first job has in its directory."""
    return (
        {} if directory == first else {"stack": Path(os.path.relpath(first, directory)).as_posix()}
    )


def execute(
    jobs: Sequence[Job],
    directories: Sequence[Path],
) -> list[dict[str, Any]]:
    """Train K jobs as one stack, write each one's files into its directory, return its result.

    A member that diverges, is stopped, or whose files cannot be written, has that status in its
    result. An error that ends all of them is written into each one's result, and raised again.
    """
    machine.settle()
    if jobs[0].run.resume:
        checkpoint.members(directories[0])  # one that cannot be read ends it before any change
    try:
        with pulse(directories[0] / PULSE):
            return _execute(jobs, directories)
    except TeacherError as error:
        return _others(error, jobs, directories)


def _execute(jobs: Sequence[Job], directories: Sequence[Path]) -> list[dict[str, Any]]:
    """The same of jobs none of whose teachers fails, or all.

    Raises:
        TeacherError: one of several teachers cannot be had.
    """
    first = jobs[0].run
    for job, directory in zip(jobs, directories, strict=True):
        results.clear(directory, keep=not job.run.resume)
    runs = [job.name for job in jobs]
    saved = Checkpoint(directories[0] / checkpoint.FILE, runs, 60 * first.checkpoint.every)
    if not first.resume:
        saved.remove()
    watch = Watch(jobs, directories)
    try:
        training, history, taught = _fit(jobs, directories, saved, watch)
        left = [(jobs[k], taught[k].teacher) for k in history.members]
        details = _details(left, training.stack)
    except TeacherError:
        raise
    except BaseException as error:
        log.info("it ended here:", exc_info=error)
        for k, body in enumerate(fail(jobs, directories, error)):
            watch.end(k, body)
        raise
    bodies = []
    # The first job's result comes last: as long as one is missing, the checkpoint lies in the
    # directory of a job that will be tried again.
    for k in reversed(range(len(jobs))):
        try:
            facts = taught[k].facts | beside(directories[0], directories[k])
            body = _written(jobs[k], directories[k], k, training, history, facts, details)
        except (OSError, SafetensorError) as error:
            [body] = fail([jobs[k]], [directories[k]], error)
        bodies.append(body)
    bodies.reverse()
    saved.remove()
    for k, body in enumerate(bodies):
        watch.end(k, body)
    return bodies


def _others(
    error: TeacherError,
    jobs: Sequence[Job],
    directories: Sequence[Path],
) -> list[dict[str, Any]]:
    """The results of all jobs, of which those of a teacher fail with it; the others are trained."""
    log.info("students of one teacher ended here:", exc_info=error.__cause__)
    bodies: dict[int, dict[str, Any]] = {}
    for lost in (True, False):
        numbers = [k for k in range(len(jobs)) if (k in error.members) is lost]
        own = [jobs[k] for k in numbers], [directories[k] for k in numbers]
        try:
            found = fail(*own, error.__cause__ or error) if lost else execute(*own)
        except Exception as other:  # of their teacher; it is in their results
            if out_of_memory(other):
                raise
            found = [results.read(directory / results.RESULT) for directory in own[1]]
        bodies |= zip(numbers, found, strict=True)
    return [bodies[k] for k in range(len(jobs))]


def _written(
    job: Job,
    directory: Path,
    k: int,
    training: Training,
    history: History,
    facts: dict[str, Any],
    details: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """The result of the member that began as number ``k``, written with all that belongs to it.

    Raises:
        OSError, SafetensorError: a file cannot be written.
    """
    rows = history.rows[k]
    last = {n: v for n, v in rows[-1].items() if measured(n) and n != "lr"}
    body = _head(job) | facts | last
    if "test_errors" in last:
        body["best_epoch_test_errors"] = min(row["test_errors"] for row in rows)
    body["rungs"] = list(job.run.halving.at(job.run.train.epochs))
    body["seconds"] = round(history.seconds * len(rows) / sum(map(len, history.rows)), 3)
    if k in history.diverged:
        body |= {"status": Status.DIVERGED, "reason": history.diverged[k]}
    elif k in history.stopped:
        body |= {"status": Status.STOPPED, "reason": history.stopped[k]}
        body |= {"epochs": len(rows), "halving": job.run.halving.model_dump()}
    else:
        place = history.members.index(k)
        body = sure(body | details[place])
        for name, stack in training.stacks.items():
            state = stack.state(place)
            store.write(directory / results.KEPT[name], partial(save_file, state))
    results.write(directory, body, rows)
    return body


def _details(
    left: Sequence[tuple[Job, Teacher | Targets | None]], stack: Stack
) -> list[dict[str, Any]]:
    """What is found of each of K members once it is trained, also against its own teacher."""
    found: list[dict[str, Any]] = [{} for _ in left]
    if left and left[0][0].run.test:  # of all at once, as the errors of each epoch are
        wrong = evaluator(left[0][0].setting, True).wrong(stack).cpu().numpy()
        for own, (job, teacher), row in zip(found, left, wrong, strict=True):
            own["test_wrong"] = packed(row)
            said = None if teacher is None else wrong_on_test(job.setting, teacher)
            if said is not None:
                own["teacher_test_wrong"] = said
    for members in by_teacher([job for job, _ in left]).values():
        alike = stack
        if len(members) < len(left):
            alike = stack.holding({n: v.detach()[members] for n, v in stack.tensors.items()})
        for name, value in _detail(*left[members[0]], alike).items():
            for place, own in zip(members, value.tolist(), strict=True):
                found[place][name] = own
    return found


def _detail(job: Job, found: Teacher | Targets | None, stack: Stack) -> Values:
    """The same of members of one teacher, (K, ...): figures; and, where their transfer set lacks
    some classes, what a shift of biases mends; and errors on the shifted test set, if asked for."""
    run, measure = job.run, evaluator(job.setting, job.run.test)
    teacher = logits_on_test(job.setting, found) if found is not None and run.test else None
    given = run.transfer.options.get("classes")
    classes = set(given) if isinstance(given, list) else set()
    some = 0 < len(classes) < job.data.classes
    shifts = measure.bias_shifts(stack, [*classes]) if some else {}
    moved: Values = {}
    if run.test and run.data.test_jitter:
        moved["test_shifted_errors"] = measure.shifted_errors(partial(chosen, stack))
        if isinstance(found, Teacher):
            own = shifted_errors_on_test(job.setting, found)
            moved["teacher_test_shifted_errors"] = own.expand(stack.members)
    return measure.figures(stack, teacher) | shifts | moved


def _fit(
    jobs: Sequence[Job], directories: Sequence[Path], saved: Checkpoint, watch: Watch
) -> tuple[Training, History, list[Taught]]:
    """The trained students of K jobs, and what each was taught by."""
    run, setting = jobs[0].run, jobs[0].setting
    teachers, own, taught = taught_by(jobs, directories)
    training = students(jobs, teachers, own)
    what = jobs[0].name if len(jobs) == 1 else f"stack of {len(jobs)}"
    watch.heads = [_head(job) | of.facts for job, of in zip(jobs, taught, strict=True)]
    history = fit(what, training, evaluator(setting, run.test), saved, watch)
    return training, history, taught


def _head(job: Job) -> dict[str, Any]:
    """What was composed, under the summary's names, and what it comes to with its data."""
    run = job.run
    return {
        "run": job.name,
        "status": Status.COMPLETE,
        "reason": None,
        **composed(run),
        "parameters": parameters(run.model, run.data, "model"),
        "multiply_adds": multiply_adds(run.model, run.data),
        "transfer_examples": len(job.index),
        **job.setting.kind,
        "code": run.code,
        "sources": run.sources or None,
        "version": __version__,
        "shape": list(job.data.shape),
        "classes": job.data.classes,
        "class_names": list(job.data.names) or None,
        "normalisation": list(normalisation(run.data)),
        "config": run.model_dump(by_alias=True, exclude=run.unsaid),
        "places": places(run) or None,
    }


def composed(run: Run) -> dict[str, Any]:
    """The settings of a run under the summary's names."""
    loss, subset = run.loss.options, run.transfer.options
    width = run.model.options.get("width")
    return {
        "data": run.data.name,
        "model": run.model.name,
        "width": int(width) if isinstance(width, float) and width.is_integer() else width,
        "teacher": run.teacher.name if run.distils else "none",
        "loss": run.loss.name,
        "temperature": loss.get("temperature"),
        "alpha": loss.get("alpha"),
        "transfer": run.transfer.name,
        "transfer_classes": " ".join(map(str, subset["classes"])) if "classes" in subset else None,
        "transfer_fraction": subset.get("fraction"),
        "seed": run.seed,
        "epochs": run.train.epochs,
        "batch_size": run.train.batch_size,
        "optimizer": run.optim.name,
        "lr": run.optim.lr,
        "weight_decay": run.optim.weight_decay,
    }
