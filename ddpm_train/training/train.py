"""Carries out a run: lock, start, train, evaluate, save, end."""

import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NoReturn

import diffusers
import torch
from accelerate import PartialState
from diffusers import DDPMPipeline
from torch import Tensor

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.train import Config
from ddpm_train.data.device_cache import fits
from ddpm_train.data.loader import Batches, micro_batches, num_workers
from ddpm_train.report import try_to_write_report
from ddpm_train.runs import checkpoint
from ddpm_train.runs.best import Selection, read_selection
from ddpm_train.runs.folder import (
    CONFIG,
    ORIGIN,
    PIPELINE,
    RECORDS,
    RESULT,
    config_yaml,
    pipeline_step,
    write_result,
)
from ddpm_train.runs.lock import RunLock
from ddpm_train.runs.mirror import FINISH_SECONDS, STOP_SECONDS, MirrorThread
from ddpm_train.system import exit_codes
from ddpm_train.system.compute import out_of_memory
from ddpm_train.system.console import Console
from ddpm_train.system.files import replace_folder, write_atomic
from ddpm_train.system.ranks import on_main
from ddpm_train.system.signals import Stopped, StopRequest
from ddpm_train.training import messages
from ddpm_train.training.evaluation import RunEvaluation
from ddpm_train.training.loop import Trainer, evaluation_due, is_finished
from ddpm_train.training.push import finish_push, open_push, push_finished
from ddpm_train.training.records import Metrics, NonFinite
from ddpm_train.training.resume import record_environment, restore, resumed_state
from ddpm_train.training.run import Run, build_run
from ddpm_train.training.saver import Saver, SavingFailed
from ddpm_train.training.start import Start, find_start, run_mirror
from ddpm_train.training.state import BatchPlan
from ddpm_train.training.trackers import RunTrackers


def train_run(config: Config, values: dict[str, Any]) -> None:
    """Train the configured run; leaves with the exit code that its end means.

    Raises:
        Mistakes: something about the dataset, the folder or the checkpoint to resume from is wrong.
    """
    stop = StopRequest()
    diffusers.logging.set_verbosity_error()
    lock = RunLock(Path(config.output_dir))
    run: Run | None = None
    try:
        console = Console(PartialState(cpu=os.environ.get("ACCELERATE_USE_CPU") == "True").is_main_process)
        start = on_main(lambda: _acquire_and_find(lock, config, console))
        run = build_run(config, values, before=start.state.to_json() if start.state else {}, stop=stop, console=console)
        changes = restore(run, start)
        selection = on_main(lambda: read_selection(run.output_dir, config, run.state.step))
        if is_finished(run.state.step, run.max_steps, selection) and pipeline_step(run.output_dir) == run.state.step:
            on_main(lambda: _save_result(run, selection))
            messages.say_finished(run, selection)
            push_finished(run, start.path)
        else:
            _carry_out(run, start, changes, selection)
    except Stopped:
        messages.say_stopped(stop.signal_name)
        sys.exit(exit_codes.REQUEUE)
    except NonFinite as error:
        assert run is not None
        messages.complain(f"{error}; nothing of it was saved. {messages.non_finite_remedy(run)}")
        sys.exit(exit_codes.NON_FINITE)
    except SavingFailed as error:
        messages.complain(f"{error}. Make room or choose another output_dir; the same command continues")
        sys.exit(exit_codes.NOT_SAVED)
    except Mistakes:
        raise
    except Exception as error:
        if out_of_memory(error):
            reason = (str(error).splitlines() or ["the host has none left"])[0]
            print(f"error: out of memory: {reason}. {messages.memory_remedy(config)}", file=sys.stderr)
            _leave(lock, exit_codes.MISTAKE)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            traceback.print_exc()
            _leave(lock, 1)
        raise
    finally:
        lock.release()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _acquire_and_find(lock: RunLock, config: Config, console: Console) -> Start:
    lock.acquire()
    return find_start(config, console.warn)


def _leave(lock: RunLock, code: int) -> NoReturn:
    """End this process now: the others notice at their next exchange, where an orderly end would wait for them."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        lock.release()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _carry_out(run: Run, start: Start, changes: list[str], selection: Selection) -> None:
    """Train, and leave the pipeline and a word on what to do next."""
    config, accelerator, state = run.config, run.accelerator, run.state
    evaluation = RunEvaluation(run)
    on_main(lambda: _begin(run))
    run.environments = on_main(lambda: record_environment(run))
    messages.announce(run, start.path is not None, changes)
    warn = run.console.warn
    trackers = RunTrackers(config, run.values, state.step, warn) if accelerator.is_main_process else None
    metrics = Metrics(
        run.output_dir / RECORDS,
        accelerator,
        state.step,
        log=trackers.log if trackers else lambda records: None,
        warn=warn,
    )
    saving = _Saving(run, metrics, selection)
    run.stop.connect()
    trainer = _trainer(run, metrics, lambda: evaluation(trackers), saving, selection)
    started = time.monotonic()
    run.console.start(state.step, run.max_steps)
    finished = False
    try:
        trainer.train()
        finished = True
    finally:
        # Nothing here may wait for another process: this one may be alone in leaving.
        run.console.finish()
        saving.close(FINISH_SECONDS if finished else STOP_SECONDS)
        if not finished:
            finish_push(run, saving.push, STOP_SECONDS)
        if trackers is not None:
            trackers.close()
    saving.check()
    on_main(lambda: _save_pipeline(run))
    on_main(lambda: _save_result(run, selection))
    on_main(lambda: try_to_write_report(run.output_dir, run.console.warn))
    messages.say_what_next(run, selection, time.monotonic() - started)
    # Here the main process is alone: no other waits for it.
    finish_push(run, saving.push, 60 * config.hub.finish_minutes)


def _trainer(
    run: Run, metrics: Metrics, evaluate: Callable[[], dict[str, float]], saving: "_Saving", selection: Selection
) -> Trainer:
    config, accelerator, state = run.config, run.accelerator, run.state
    model, optimizer = accelerator.prepare(state.unet, state.optimizer)
    return Trainer(
        config=config,
        plan=run.plan,
        max_steps=run.max_steps,
        state=state,
        model=model,
        optimizer=optimizer,
        objective=run.objective,
        compute=run.choice.compute,
        accelerator=accelerator,
        open_data=lambda plan, step: _open_data(run, plan, step),
        metrics=metrics,
        stop=run.stop,
        evaluate=evaluate,
        save=saving.save,
        save_overdue=saving.overdue,
        progress=run.console.progress,
        cut_smaller=lambda plan: _cut_smaller(run, plan),
        evaluated="evaluation_seconds" in metrics.last or not evaluation_due(config, state.step, run.max_steps),
        saved_step=state.step,
        selection=selection,
    )


def _open_data(run: Run, plan: BatchPlan, step: int) -> Generator[tuple[Tensor, Tensor], None, None]:
    """This process's micro-batches from `step` on."""
    config, device = run.config.dataset, run.accelerator.device
    batches = Batches(
        run.data.train, run.config.seed, random_crop=config.crop == "random", random_flip=config.random_flip
    )
    resident = fits(run.data.train, device) if config.device_cache == "auto" else config.device_cache
    # A CPU trains from the disk cache's own memory; for a GPU somebody must read ahead.
    loads_ahead = config.cache == "none" or device.type == "cuda"
    workers = num_workers(config) if loads_ahead else 0
    return micro_batches(batches, plan.positions(step), device=device, resident=resident, num_workers=workers)


def _cut_smaller(run: Run, plan: BatchPlan) -> None:
    run.plan = plan
    print(f"out of memory: goes on with micro-batches of {plan.micro_batch_size}", file=sys.stderr, flush=True)


class _Saving:
    """The run's checkpoints: saved by the main process, with every process knowing how it went."""

    def __init__(self, run: Run, metrics: Metrics, selection: Selection) -> None:
        self._run = run
        self._metrics = metrics
        self._selection = selection
        config = run.config.checkpoint
        mirror = run_mirror(run.config) if run.accelerator.is_main_process else None
        best = selection.best if config.keep_best else lambda steps: None
        retention = checkpoint.Retention(config.keep_last, config.keep_every_steps, best)
        self._mirror = MirrorThread(mirror, retention, run.console.warn) if mirror else None
        self.push = open_push(run)
        self._saver = Saver(
            run.checkpoints,
            retention,
            max_failures=config.max_failures,
            published=self._published,
            warn=run.console.warn,
        )
        self._last = time.monotonic()

    def _published(self, path: Path) -> None:
        if self._mirror is not None:
            self._mirror.submit(path)
        run, step = self._run, checkpoint.step_of(path)
        # Patience may have ended while an older checkpoint was still being written.
        finished = is_finished(step, run.max_steps, self._selection) and step >= max(self._selection.values, default=0)
        if self.push is not None and (finished or run.config.hub.strategy != "end"):
            self.push.submit(path)

    def overdue(self) -> bool:
        minutes = self._run.config.checkpoint.every_minutes
        return minutes is not None and time.monotonic() - self._last > 60 * minutes

    def save(self) -> float:
        self._last = time.monotonic()
        run = self._run
        # A checkpoint whose records are not on the disk would leave a gap in them.
        unwritten = self._metrics.unwritten
        return on_main(
            lambda: self._saver.save(
                run.state.step, run.state.tensors(), resumed_state(run).to_json(), refused=unwritten
            )
        )

    def close(self, mirror_seconds: float) -> None:
        """Wait for what is being written, and that long for what is being copied."""
        self._saver.close()
        if self._mirror is not None:
            self._mirror.finish(mirror_seconds)

    def check(self) -> None:
        """Raise `SavingFailed` on all processes if the run's last checkpoint is not on the disk."""
        on_main(self._saver.check)


def _begin(run: Run) -> None:
    """What a run's folder says of it until it ends: its config, and no result."""
    (run.output_dir / RESULT).unlink(missing_ok=True)
    write_atomic(run.output_dir / CONFIG, config_yaml(run.values))


def _save_result(run: Run, selection: Selection) -> None:
    """What the run has come to, for programs that compare runs; its pipeline is on the disk."""
    value = selection.value
    result = {
        "objective": selection.criterion.name if selection.criterion else None,
        "value": value if value is not None and math.isfinite(value) else None,
        "best_step": selection.best(),
        "step": run.state.step,
        "stopped_early": run.state.step < run.max_steps,
    }
    write_result(run.output_dir, result)


def _save_pipeline(run: Run) -> None:
    """A plain DDPMPipeline of the sampling weights, which diffusers loads without this project."""
    with replace_folder(run.output_dir / PIPELINE) as staging:
        DDPMPipeline(unet=run.state.sampling_unet, scheduler=run.noise_scheduler).save_pretrained(staging)
        origin = {"step": run.state.step, "weights": "unet" if run.state.ema_unet is None else "ema"}
        (staging / ORIGIN).write_text(json.dumps(origin))
