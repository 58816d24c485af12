"""Carries out a run: lock, start, train, evaluate, save, end."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.state import AcceleratorState

from ddpm_train.config.mistakes import as_written
from ddpm_train.config.schema import dotted_values
from ddpm_train.config.train import Config
from ddpm_train.models.save import save_pipeline
from ddpm_train.report import try_to_write_report
from ddpm_train.runs.folder import PIPELINE, RECORDS, RESULT, read_origin, read_result
from ddpm_train.runs.lock import RunLock
from ddpm_train.runs.mirror import FINISH_SECONDS, STOP_SECONDS
from ddpm_train.system.console import Console
from ddpm_train.system.files import write_atomic
from ddpm_train.system.ranks import join, on_main, open_channel, require_same
from ddpm_train.system.signals import StopRequest
from ddpm_train.training import messages
from ddpm_train.training.choices import is_chosen
from ddpm_train.training.evaluation import Evaluation, check_sampler, open_extractor
from ddpm_train.training.loop import Trainer
from ddpm_train.training.push import finish_push, push_finished
from ddpm_train.training.records import NonFinite, Records
from ddpm_train.training.resume import describe_run, restore, share
from ddpm_train.training.run import Run, build_run
from ddpm_train.training.saving import Saving
from ddpm_train.training.start import find_start
from ddpm_train.training.trackers import RunTrackers

if TYPE_CHECKING:  # of an extra
    from ddpm_train.evaluation.features import Extractor

# May be another on each machine.
_OF_A_MACHINE = ("output_dir", "resume", "dataset.path", "dataset.cache_dir", "dataset.num_workers")
Listener = Callable[[dict[str, Any]], None]


def train_run(
    config: Config,
    values: dict[str, Any],
    *,
    arguments: Sequence[str],
    stop: StopRequest,
    on_record: Listener = lambda record: None,
) -> None:
    """Train the configured run to its end, from its beginning or from where it stopped.

    Args:
        values: the config as plain values, to be kept with the run.
        arguments: of `ddpm-train`, which this run is the same as.
        on_record: called on the main process with each step's record, see `Records`.

    Raises:
        Mistakes: something about the dataset, the folder or the checkpoint to resume from is wrong.
        Stopped: asked to stop, and saved.
        NonFinite, SavingFailed, OutOfMemory: the text says how to go on.
        TakenOver: another process has taken the run over, and goes on with it.
    """
    lock = RunLock(Path(config.output_dir))
    try:
        console = Console(join().is_main_process)
        require_same("the config", _shared_keys(values), _other_config)
        check_sampler(config)
        on_main(lock.acquire)
        start = on_main(lambda: find_start(config, console.warn))
        run = build_run(config, values, resumed=start.state, stop=stop, console=console)
        changes = restore(run, start)
        share(run)
        if on_main(lambda: _is_complete(run)):
            on_main(lambda: _save_result(run, None))
            messages.say_finished(run)
            push_finished(run, lock, start.path)
        else:
            extractor = open_extractor(run)
            run.environments = on_main(lambda: describe_run(run, arguments))
            messages.announce(run, start.path is not None, changes)
            _train_and_finish(run, lock, extractor, on_record)
    except NonFinite as error:
        raise NonFinite(f"{error}; nothing of it was saved. {messages.non_finite_remedy(config)}") from None
    except (RuntimeError, MemoryError):
        with messages.out_of_memory_ends(messages.memory_remedy(config)):
            raise
    finally:
        lock.release()
        # Another run of this process may compute in another precision.
        AcceleratorState._reset_state()


def _train_and_finish(run: Run, lock: RunLock, extractor: "Extractor | None", on_record: Listener) -> None:
    """Train, leave the pipeline, the result and the report, and say what to do next."""
    console, is_main = run.console, run.accelerator.is_main_process
    trackers = RunTrackers(run.config, run.values, run.state.step, console.warn) if is_main else None

    def log(records: list[dict[str, Any]]) -> None:
        if trackers is not None:
            trackers.log(records)
        for record in records:
            on_record(record)

    path, warn = run.output_dir / RECORDS, console.warn
    records = Records(path, run.accelerator, run.state.step, log=log, warn=warn, check=lock.check, pace=console.pace)
    saving = Saving(run, records, lock)
    run.stop.connect(open_channel())
    evaluation = Evaluation(run, extractor, records, trackers)
    trainer = Trainer(run, records, evaluation, saving)
    started = time.monotonic()
    console.start(
        run.state.step, run.max_steps, batch_size=run.plan.batch_size, seconds_besides=evaluation.seconds_left
    )
    finished = False
    try:
        trainer.train()
        finished = True
    finally:
        # Nothing here may wait for another process: this one may be alone in leaving.
        console.finish()
        saving.close(FINISH_SECONDS if finished else STOP_SECONDS)
        if not finished:
            finish_push(run, saving.push, STOP_SECONDS)
        if trackers is not None:
            trackers.close()
    saving.check()
    on_main(lambda: _save_pipeline(run))
    on_main(lambda: _save_result(run, evaluation.failed.get(run.state.step)))
    on_main(lambda: try_to_write_report(run.output_dir, console.warn))
    messages.say_what_next(run, time.monotonic() - started, evaluation.failed)
    # Here the main process is alone: no other waits for it.
    finish_push(run, saving.push, 60 * run.config.hub.finish_minutes)


def _shared_keys(values: dict[str, Any]) -> dict[str, Any]:
    """What every process must have been told. On what follows from the images `build_run` sees to it, which looks at
    these first."""
    shared = ((key, value) for key, value in dotted_values(values) if key not in _OF_A_MACHINE)
    return {key: value for key, value in shared if not is_chosen(key, values)}


def _other_config(here: dict[str, Any], there: dict[str, Any]) -> str:
    key = next(key for key in [*here, *there] if here.get(key) != there.get(key))
    return f"{key}={as_written(there.get(key))}, not {as_written(here.get(key))}; give every process the same command"


def _is_complete(run: Run) -> bool:
    """Whether nothing is left to do: no step, no pipeline to save, no last evaluation that failed."""
    if not run.is_finished or read_origin(run.output_dir / PIPELINE).get("step") != run.state.step:
        return False
    return not (read_result(run.output_dir) or {}).get("failed_evaluation")


def _save_result(run: Run, failed_evaluation: str | None) -> None:
    """What the run has come to, for programs that compare runs; its pipeline is on the disk.

    Args:
        failed_evaluation: why the last step's evaluation failed, if it did.
    """
    selection = run.selection
    result = {
        "objective": selection.criterion.name if selection.criterion else None,
        "value": selection.value,
        "best_step": selection.best(),
        "step": run.state.step,
        "stopped_early": run.state.step < run.max_steps,
        "stopped_before_copying": run.state.step < run.max_steps and run.begins_to_copy,
        "failed_evaluation": failed_evaluation,
    }
    write_atomic(run.output_dir / RESULT, json.dumps(result).encode())


def _save_pipeline(run: Run) -> None:
    """A plain DDPMPipeline of the sampling weights."""
    state = run.state
    model = (state.sampling_unet, run.objective.noise_scheduler)
    save_pipeline(run.output_dir / PIPELINE, *model, state.step, state.sampling_weights, run.data.values)
