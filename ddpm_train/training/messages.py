"""What a run prints at its start, at its evaluations and at its end."""

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddpm_train._version import __version__
from ddpm_train.config.overrides import as_overrides
from ddpm_train.config.train import Config
from ddpm_train.runs import checkpoint
from ddpm_train.runs.clock import Forecast
from ddpm_train.runs.folder import BEST, CHECKPOINTS, PIPELINE, REPORT, SAMPLES, TENSORBOARD
from ddpm_train.runs.length import longer
from ddpm_train.system.compute import device_name, out_of_memory
from ddpm_train.system.console import counted
from ddpm_train.system.exit_codes import MISTAKE, CannotGoOn
from ddpm_train.system.failures import first_line
from ddpm_train.training import forecast
from ddpm_train.training.auto import Choice
from ddpm_train.training.choices import described
from ddpm_train.training.decisions import read_choice
from ddpm_train.training.run import Run

# What a dataset of each source is built on, and the keys that `ddpm-data` has no use for.
_CHOICES = {"embedded": "fashion_tiny", "folder": "imagefolder", "hub": "hub", "arrays": "arrays"}
_NOT_OF_IMAGES = ("chosen", "random_flip", "device_cache", "num_workers")


def announce(run: Run, resumed: bool, changes: list[str]) -> None:
    """Print what will run, in a few lines."""
    if not run.accelerator.is_main_process:  # whose console is silent
        return
    config, plan, data = run.config, run.plan, run.data
    height, width = config.dataset.resolution
    held_out = f", {len(data.validation):,} held out" if data.validation else ""
    shape = f"{height}x{width}x{config.dataset.channels}"
    epochs = run.max_steps * plan.batch_size / len(data.train)
    where = f"resumes at step {run.state.step:,}" if resumed else "new run"
    doubtful = [*data.warnings(), *(() if resumed else forecast.enlarged(run))]
    equal = data.selection.num_equal
    look = _look_at(run.values["dataset"]) if doubtful or equal else None
    run.console.say(f"ddpm-train {__version__}  {config.name}")
    run.console.table(
        {
            "dataset": f"{config.dataset.path}: {len(data.train):,} images {shape}{held_out}",
            **data.notes,
            **({"equal": f"{equal:,} of these images have the same pixels as another"} if equal else {}),
            **({"look at it": look} if look else {}),
            "model": f"UNet2DModel, {run.state.unet.num_parameters() / 1e6:.2f}M parameters",
            "batch": f"{plan.batch_size} = {plan.micro_batch_size} x {counted(plan.num_processes, 'process', 'es')} "
            f"x {plan.accumulation} accumulated",
            "steps": f"{run.max_steps:,} ({epochs:.1f} epochs)",
            **_evaluated(run),
            "compute": f"{run.choice.compute} on {device_name(run.accelerator.device)}",
            **_measured(run.choice),
            **({"takes": cost} if (cost := forecast.cost(run)) else {}),
            "output": f"{run.output_dir} ({where})",
        }
    )
    run.console.say(*(f"  chosen     {described(key, run.values)}" for key in config.dataset.chosen))
    run.console.say(*(f"  changed    {line}" for line in changes))
    for line in (*doubtful, *(() if resumed else forecast.warnings(run))):
        run.console.warn(line)


def _look_at(dataset: Mapping[str, Any]) -> str | None:
    """The command that shows these images and what is doubtful about them, if this program has a choice for them."""
    choice = _CHOICES.get(dataset["source"])
    if choice is None:
        return None
    keys = {
        f"dataset.{key}": dataset[key]
        for key, value in read_choice("dataset", choice).items()
        if key not in _NOT_OF_IMAGES and dataset.get(key, value) != value
    }
    if read_choice("dataset", choice)["chosen"] == "auto":
        keys["dataset.chosen"] = []  # the run has chosen already
    return shlex.join(["ddpm-data", *as_overrides({"dataset": choice, **keys})])


def _evaluated(run: Run) -> dict[str, str]:
    """At which steps there are pictures and losses, with the key that changes it."""
    if run.config.evaluation.name == "none":
        return {}
    every, first = run.evaluated_every, run.config.evaluation.first_step
    often = f"every {counted(every, 'step')}" if every else "at the end"
    soon = f"at step {first:,} and " if first and first < run.max_steps else ""
    return {"evaluates": f"{soon}{often}  (evaluation.every_steps)"}


def _measured(choice: Choice) -> dict[str, str]:
    times = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in choice.seconds.items())
    return {"measured": f"{times} for {counted(choice.num_images, 'image')} forward and backward"} if times else {}


def say_finished(run: Run) -> None:
    """Print that the run is at its end, when its command is given again."""
    early = run.state.step < run.max_steps
    why = f"stopped early ({_why_early(run)})" if early else "finished"
    remedy = f"; to go on, add {_later(run)}" if early else ""
    run.console.say(f"{run.config.name}: {why} at step {run.state.step:,}; nothing to do{remedy} ({run.output_dir})")


def say_what_next(run: Run, seconds: float, failed_evaluations: dict[int, str]) -> None:
    """Print what is missing, where the pictures are, and the next commands.

    Args:
        failed_evaluations: their steps, and why they failed.
    """
    output, step = run.output_dir, run.state.step
    pictures = output / SAMPLES / f"{checkpoint.step_name(step)}.png"
    report, tensorboard, pipeline = output / REPORT, output / TENSORBOARD, output / PIPELINE
    overrides, jumps = longer(output, run.values, run.max_steps)
    why, how = "", f"{' '.join(overrides)}{jumps and f'; {jumps}'}"
    if step < run.max_steps:
        why, how = f"; it ended early: {_why_early(run)}", _later(run)
    run.console.say(f"done: step {step:,} after {seconds:.0f} s{why}")
    run.console.table(
        {
            **_failed(run, failed_evaluations),
            **({"report": str(report)} if report.exists() else {}),
            **({"pictures": str(pictures)} if pictures.exists() else {}),
            **_best(run),
            "pipeline": f'{pipeline}   DDPMPipeline.from_pretrained("{pipeline}")',
            **({"curves": shlex.join(["tensorboard", "--logdir", str(tensorboard)])} if tensorboard.exists() else {}),
            "longer": f"the same command with {how}",
        }
    )


def _failed(run: Run, evaluations: dict[int, str]) -> dict[str, str]:
    if not evaluations:
        return {}
    steps, last = ", ".join(f"{step:,}" for step in evaluations), max(evaluations)
    again = "; the same command tries it again" if last == run.state.step else ""
    return {"NOT done": f"the evaluation of step {steps}: {evaluations[last]}{again}"}


def _why_early(run: Run) -> str:
    if run.begins_to_copy:
        return "it may begin to copy training images before it is evaluated again"
    selection = run.selection
    assert selection.criterion is not None  # objective_mistakes sees to it
    return f"{selection.criterion.name} has not improved for {counted(selection.patience or 0, 'evaluation')}"


def _later(run: Run) -> str:
    """The key with which a run goes on that has ended early."""
    if run.begins_to_copy:
        return "train.stop_before_copying=false"
    return f"train.patience={2 * (run.selection.patience or 1)}"


def learned(loss: float, least: float, share: float) -> str:
    """What an evaluation says of the held-out loss, in a line; see `evaluation/floor.py`."""
    known = f"held-out loss {loss:.4g}, of which no model could remove {least:.4g}"
    if share <= 0:
        return f"{known}; a model that knows only the mean and the spread of the images is no worse"
    return f"{known}; at least {100 * share:.0f} % of what can be learned is learned"


def memorisation(ratio: float, forecast: Forecast | None, step: int) -> str:
    """What an evaluation at `step` says of when copying begins, in a line."""
    known = f"where little noise is added, the held-out loss is {ratio:.2f} times the training loss"
    if forecast is None:
        return f"no copying of training images is in sight: {known}"
    when = "may have begun" if forecast.step <= step else "is forecast to begin"
    return f"copying of training images {when} at {forecast}: {known}"


def _best(run: Run) -> dict[str, str]:
    """The best checkpoint, where it is not simply the last."""
    best, criterion = run.selection.best(), run.selection.criterion
    if best is None or criterion is None or best == run.state.step or not run.config.checkpoint.keep_best:
        return {}
    value = f"{criterion.name} {run.selection.values[best]:.4g}"
    return {"best": f"step {best:,} ({value})   ddpm-sample {shlex.quote(f'pipeline={run.checkpoints / BEST}')}"}


def non_finite_remedy(config: Config) -> str:
    """From which checkpoint, and with what change, to go on."""
    change = f"optimizer.lr={config.optimizer.lr / 3:.1e}"
    if saved := checkpoint.published(Path(config.output_dir) / CHECKPOINTS):
        keys = f"{change} 'allow_change=[optimizer.lr]'"
        return f"To go on from {saved[-1].name} with a lower learning rate, give the same command with {keys}"
    return f"Start again with a lower learning rate: the same command with {change}"


class OutOfMemory(CannotGoOn):
    """A training step or an evaluation did not fit into the memory of a device, or of the machine."""

    exit_code = MISTAKE
    everywhere = False


@contextmanager
def out_of_memory_ends(remedy: str) -> Iterator[None]:
    """Raise `OutOfMemory`, with this remedy, where memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        reason = first_line(error) if str(error) else "this machine has no memory left"
        raise OutOfMemory(f"out of memory: {reason}. {remedy}") from None


def evaluation_memory_remedy(config: Config) -> str:
    if (size := config.evaluation.batch_size) == 1:
        return "The same command with evaluation=none continues"
    return f"The same command with evaluation.batch_size={size // 2}, or less, continues"


def memory_remedy(config: Config) -> str:
    if config.train.micro_batch_size == "auto":
        return "Give a number for train.micro_batch_size; the same command then continues"
    return "The same command with train.micro_batch_size=auto continues with the largest that fits"
