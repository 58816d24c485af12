"""Plans a sweep before anything of it starts: its jobs, their folders and names, and what is wrong with them."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from ddpm_train.cli.command import Command, Sweeps
from ddpm_train.cli.flags import Arguments
from ddpm_train.cli.sweeps import launchers, naming
from ddpm_train.cli.sweeps.jobs import Job, conflict
from ddpm_train.cli.sweeps.mistakes import (
    launcher_mistakes,
    plugin_mistakes,
    same_folder_mistakes,
    sweeper_mistakes,
    variation_mistakes,
)
from ddpm_train.cli.sweeps.sweep import PlannedJob, Space, Sweep
from ddpm_train.config.compose import NOT_COMPOSED, blame, compose_job, hydra_compose, open_configs
from ddpm_train.config.extensions import import_extensions
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.overrides import discrete, is_hydra, opened, parse, parse_overrides
from ddpm_train.config.program import Checked, Program, check_jobs

C = TypeVar("C")

# The keys that name a run; a sweep gives them unless the command varies them itself.
_NAMES = ("name", "output_dir")


def sweep(command: Command[C], sweeps: Sweeps[C], arguments: Arguments) -> None:
    """Plan the sweep that a command line describes, and carry it out.

    Raises:
        Mistakes: a line for each, in the sweep or in any of its jobs.
    """
    launchers.register()
    overrides, lines = parse_overrides(_with_defaults(arguments.overrides))
    import_extensions(overrides, arguments.config_dir)
    program, config_name = command.program, arguments.config_name
    with open_configs(arguments.config_path, arguments.config_dir):
        layout = _lay_out(config_name, overrides)
        texts = [job.overrides for job in layout.jobs]
        checked, further = check_jobs(
            program, config_name, texts, lambda config: sweeps.preflight(config, layout.num_processes)
        )
        lines += [*layout.mistakes, *further, *same_folder_mistakes(command, texts, [job.values for job in checked])]
        if lines or layout.master is None:
            raise Mistakes(*dict.fromkeys(lines))
        planned = _plan(sweeps, layout, checked, arguments.flags(program.config_name))
        _carry_out(planned, layout.master, lambda job: _make_job(program, config_name, job))


def _with_defaults(overrides: Sequence[str]) -> list[str]:
    """The overrides of a sweep, with our launcher and sweeper where they choose none: whatever the config's file."""
    defaults = {"hydra/launcher": "processes", "hydra/sweeper": "grid"}
    chosen = [text.split("=")[0] for text in overrides]
    return [f"{group}={name}" for group, name in defaults.items() if group not in chosen] + list(overrides)


@dataclass(frozen=True)
class _Layout:
    """The jobs of a sweep.

    Attributes:
        master: the config of the sweep itself, Hydra's section included; None: it cannot be composed.
        jobs: all of them, or with `space` examples, of each of its values one.
        folder: where their comparison stands; None: where the jobs' folders stand.
        num_processes: of each job.
    """

    mistakes: list[str]
    master: DictConfig | None
    folder: Path | None
    jobs: list[PlannedJob]
    num_processes: int
    space: Space | None


@dataclass(frozen=True)
class _Settings:
    """How a sweep is done."""

    sweeper_name: str = "grid"
    launcher: Mapping[str, Any] = field(default_factory=dict)
    sweeper: Mapping[str, Any] = field(default_factory=dict)
    folder: str = "sweeps"
    name: str = "sweep"


def _lay_out(config_name: str, overrides: list[Override]) -> _Layout:
    """Name the jobs of a sweep and give each a folder."""
    lines = list(plugin_mistakes(overrides))
    master, settings, further = _compose_master(config_name, overrides)
    lines = lines or further
    # Of Hydra's own keys some are the sweep's, and none a job's.
    own = [override for override in _with_params(settings, overrides) if not is_hydra(override)]
    swept = [override for override in own if override.is_sweep_override()]
    optimised = settings.sweeper_name == "optuna"
    lines += variation_mistakes(overrides, own, optimised)
    own_names = any(_names_apart(override) for override in own)

    def job(texts: Sequence[str], number: int = 0) -> PlannedJob:
        choices = naming.chosen(texts, [override.key_or_group for override in swept])
        named = list(texts) if own_names or not choices else _named(texts, choices, settings)
        numbered = [f"hydra.job.num={number}"] if any("${hydra:job.num}" in text for text in texts) else []
        return PlannedJob(choices, [*named, *numbered])

    options = [options for override in own if (options := _examples(override) if optimised else discrete(override))]
    together = _one_by_one(options) if optimised else list(itertools.product(*options))
    jobs = [job(texts, number) for number, texts in enumerate(dict.fromkeys(together))]
    if further := [*launcher_mistakes(settings.launcher), *sweeper_mistakes(settings.sweeper)]:
        return _Layout(lines + further, master, None, jobs, 1, None)
    folder = Path(settings.folder) if swept and not own_names else None
    fixed = [text for override in own if not override.is_sweep_override() for text in discrete(override)]
    space = Space(swept, lambda texts: job([*fixed, *texts])) if optimised else None
    return _Layout(lines, master, folder, jobs, settings.launcher.get("num_processes", 1), space)


def _compose_master(config_name: str, overrides: list[Override]) -> tuple[DictConfig | None, _Settings, list[str]]:
    """The sweep's own config, what it says of how the sweep is done, and a line for each mistake in that."""
    texts = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
    try:
        master, values = hydra_compose(config_name, ["hydra.job.num=0", *map(opened, texts)])
    except NOT_COMPOSED:
        # Composing the jobs tells what is wrong, unless it is the sweep's own.
        groups, keys = ([text for text in texts if text.startswith(f"hydra{sign}")] for sign in "/.")
        return None, _Settings(), blame(config_name, groups, keys)
    plain: dict[str, Any] = {
        key: OmegaConf.to_container(master.hydra[key], resolve=True) for key in ("launcher", "sweeper", "sweep")
    }
    sweeper_name = master.hydra.runtime.choices["hydra/sweeper"]
    name = values.get("name", "sweep")
    return master, _Settings(sweeper_name, plain["launcher"], plain["sweeper"], plain["sweep"]["dir"], name), []


def _plan(sweeps: Sweeps[C], layout: _Layout, checked: Sequence[Checked[C]], flags: Sequence[str]) -> Sweep:
    """The sweep that the layout describes.

    Args:
        checked: its jobs, found right.
        flags: of the program, for each job.

    Raises:
        Mistakes: a job's folder holds another run.
    """
    jobs = [
        Job(job.choices, tuple(job.overrides), found.values) for job, found in zip(layout.jobs, checked, strict=True)
    ]
    lines = [line for job in jobs if (line := conflict(job))]
    assert checked[0].config is not None
    criterion = sweeps.criterion(checked[0].config)
    if layout.space is not None and criterion is None:
        lines.append("hydra/sweeper=optuna: the jobs have no objective; give objective=auto and an evaluation")
    if lines:
        raise Mistakes(*lines)
    folder = layout.folder or jobs[0].folder.parent
    return Sweep(sweeps.module, tuple(flags), folder, tuple(jobs), layout.space, criterion)


def _make_job(program: Program[Any], config_name: str, planned: PlannedJob) -> Job:
    """A job that a search has drawn."""
    composition = compose_job(config_name, planned.overrides)
    values, _ = program.resolve(composition.values, planned.overrides)
    return Job(planned.choices, tuple(planned.overrides), values)


def _carry_out(planned: Sweep, master: DictConfig, make_job: Callable[[PlannedJob], Job]) -> None:
    """Run a sweep with the launcher and the sweeper that it chooses."""
    launcher = launchers.choose(planned, master)
    space = planned.space
    if space is None:
        planned.carry_out(lambda: planned.run_all(launcher.launch))
        return
    from ddpm_train.cli.sweeps.search import Search, distribution  # an extra

    def draw(choices: Mapping[str, str]) -> Job:
        return make_job(space.job([f"{key}={value}" for key, value in choices.items()]))

    assert planned.criterion is not None, "the plan sees to it"
    distributions = {override.get_key_element(): distribution(override) for override in space.overrides}
    settings: dict[str, Any] = OmegaConf.to_container(master.hydra.sweeper)  # type: ignore[assignment]
    del settings["params"]
    search = partial(Search, planned.folder, distributions, planned.criterion, draw, launcher, **settings)
    planned.carry_out(lambda: search().run())


def _examples(override: Override) -> list[str]:
    """One override for each choice, and for the ends of an interval."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [f"{override.get_key_element()}={end}" for end in (value.start, value.end)]
    return discrete(override)


def _one_by_one(options: list[list[str]]) -> list[tuple[str, ...]]:
    """Each option with the first ones of the others."""
    first = [texts[0] for texts in options]
    return [(*first[:at], text, *first[at + 1 :]) for at, texts in enumerate(options) for text in texts]


def _with_params(settings: _Settings, overrides: list[Override]) -> list[Override]:
    """The overrides, with those of a config's `hydra.sweeper.params` that the command line does not give."""
    params = settings.sweeper.get("params") or {}
    given = [override.key_or_group for override in overrides]
    further = [f"{key}={value}" for key, value in params.items() if key not in given]
    return [*overrides, *map(parse, further)]


def _names_apart(override: Override) -> bool:
    """Whether it names the jobs by itself."""
    return override.key_or_group in _NAMES and (override.is_sweep_override() or "${" in str(override.input_line))


def _named(job: Sequence[str], choices: dict[str, str], settings: _Settings) -> list[str]:
    """A job's overrides with a name and a folder of its own."""
    folder_name = naming.folder_name(choices)
    # The mirror and trackers know runs by name alone.
    name, output_dir = f"{settings.name},{folder_name}", str(Path(settings.folder) / folder_name)
    unnamed = [text for text in job if text.split("=")[0].lstrip("+") not in _NAMES]
    return [*unnamed, f"name={_quoted(name)}", f"output_dir={_quoted(output_dir)}"]


def _quoted(text: str) -> str:
    return QuotedString(text=text, quote=Quote.double).with_quotes()
