"""Plans a sweep before anything of it starts: its jobs, their folders and names, and what is wrong with them."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from hydra import compose
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf

from ddpm_train.cli.sweeps import launchers, naming
from ddpm_train.cli.sweeps.jobs import Job, conflict
from ddpm_train.cli.sweeps.mistakes import (
    is_hydra,
    launcher_mistakes,
    plugin_mistakes,
    sweeper_mistakes,
    variation_mistakes,
)
from ddpm_train.cli.sweeps.sweep import PlannedJob, Space, Sweep
from ddpm_train.config.compose import NOT_COMPOSED, blame, compose_job, opened
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.objective import Criterion
from ddpm_train.config.schema import Schema

C = TypeVar("C")

# The keys that name a run; a sweep gives them unless the command varies them itself.
_NAMES = ("name", "output_dir")
_UNKNOWN: Mapping[str, Any] = {
    "choice": "grid",
    "launcher": {},
    "sweeper": {},
    "sweep": {"dir": "sweeps"},
    "name": "sweep",
}


@dataclass(frozen=True)
class Sweepable(Generic[C]):
    """What a program needs for sweeps whose jobs run in processes of their own.

    Attributes:
        module: the program, as `python -m` takes it.
        preflight: yields a line for each mistake that only a look at the machine shows, for jobs of so many processes.
        criterion: what the jobs are compared by.
        resolve: completes a composed config by what it points to, as `Program.resolve`.
    """

    module: str
    preflight: Callable[[C, int | None], Iterator[str]]
    criterion: Callable[[C], Criterion | None]
    resolve: Callable[[dict[str, Any], Sequence[str]], tuple[dict[str, Any], list[str]]]


@dataclass(frozen=True)
class Layout:
    """The jobs of a sweep.

    Attributes:
        jobs: all of them, or with `space` examples, of each of its values one.
        folder: where their comparison stands; None: where the jobs' folders stand.
        num_processes: of each job.
    """

    mistakes: list[str]
    folder: Path | None
    jobs: list[PlannedJob]
    num_processes: int
    space: Space | None


def with_defaults(overrides: Sequence[str]) -> list[str]:
    """The overrides of a sweep, with our launcher and sweeper where they choose none: whatever the config's file."""
    launchers.register()
    defaults = {"hydra/launcher": "processes", "hydra/sweeper": "grid"}
    chosen = [text.split("=")[0] for text in overrides]
    return [f"{group}={name}" for group, name in defaults.items() if group not in chosen] + list(overrides)


def lay_out(config_name: str, overrides: list[Override]) -> Layout:
    """Name the jobs of a sweep and give each a folder.

    Args:
        overrides: the command line's, parsed.
    """
    lines = list(plugin_mistakes(overrides))
    texts = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
    hydra = _UNKNOWN
    try:
        hydra = _hydra_section(config_name, texts)
    except NOT_COMPOSED:
        # Composing the jobs tells what is wrong, unless it is the sweep's own.
        groups, keys = ([text for text in texts if text.startswith(f"hydra{sign}")] for sign in "/.")
        lines = lines or blame(config_name, groups, keys)
    # Of Hydra's own keys some are the sweep's, and none a job's.
    own = [override for override in _with_params(hydra, overrides) if not is_hydra(override)]
    swept = [override for override in own if override.is_sweep_override()]
    optimised = hydra["choice"] == "optuna"
    lines += variation_mistakes(overrides, own, optimised)
    own_names = any(_names_apart(override) for override in own)

    def job(texts: Sequence[str], number: int = 0) -> PlannedJob:
        choices = naming.chosen(texts, [override.key_or_group for override in swept])
        named = list(texts) if own_names or not choices else _named(texts, choices, hydra)
        numbered = [f"hydra.job.num={number}"] if any("${hydra:job.num}" in text for text in texts) else []
        return PlannedJob(choices, [*named, *numbered])

    options = [options for override in own if (options := _examples(override) if optimised else discrete(override))]
    together = _one_by_one(options) if optimised else list(itertools.product(*options))
    jobs = [job(texts, number) for number, texts in enumerate(dict.fromkeys(together))]
    if further := [*launcher_mistakes(hydra["launcher"]), *sweeper_mistakes(hydra["sweeper"])]:
        return Layout(lines + further, None, jobs, 1, None)
    folder = Path(hydra["sweep"]["dir"]) if swept and not own_names else None
    fixed = [text for override in own if not override.is_sweep_override() for text in discrete(override)]
    space = Space(swept, lambda texts: job([*fixed, *texts])) if optimised else None
    return Layout(lines, folder, jobs, hydra["launcher"].get("num_processes", 1), space)


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


def preflight(sweeps: Sweepable[C], layout: Layout) -> Callable[[C], Iterator[str]]:
    """What is wrong with a job on this machine."""
    return lambda config: sweeps.preflight(config, layout.num_processes)


def plan(
    sweeps: Sweepable[C], schema: Schema[C], layout: Layout, configs: Sequence[Mapping[str, Any]], flags: Sequence[str]
) -> Sweep:
    """The sweep that the layout describes.

    Args:
        configs: the jobs', composed and found right.
        flags: of the program, for each job.

    Raises:
        Mistakes: a job's folder holds another run.
    """
    jobs = [Job(job.choices, tuple(job.overrides), values) for job, values in zip(layout.jobs, configs, strict=True)]
    lines = [line for job in jobs if (line := conflict(job))]
    criterion = sweeps.criterion(schema.parse(configs[0]))
    if layout.space is not None and criterion is None:
        lines.append("hydra/sweeper=optuna: the jobs have no objective; give objective=auto and an evaluation")
    if lines:
        raise Mistakes(*lines)
    folder = layout.folder or jobs[0].folder.parent
    return Sweep(sweeps.module, tuple(flags), folder, tuple(jobs), layout.space, criterion)


def carry_out(sweep: Sweep, sweeps: Sweepable[C], config_name: str, overrides: list[str]) -> None:
    """Run the sweep with the launcher and the sweeper that it chooses.

    Args:
        overrides: the command line's.
    """
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None, "the plan was made with its configs"
    master = hydra.compose_config(config_name, overrides, run_mode=RunMode.MULTIRUN)
    choice = master.hydra.runtime.choices["hydra/launcher"]
    if choice in launchers.OURS:
        arguments: dict[str, Any] = OmegaConf.to_container(master.hydra.launcher)  # type: ignore[assignment]
        launcher: launchers.Launcher = launchers.OURS[choice](sweep, **arguments)
    else:
        context = HydraContext(hydra.config_loader, Callbacks(master))
        launcher = launchers.FromHydra(Plugins.instance().instantiate_launcher(context, sweep, master))
    space = sweep.space
    if space is None:
        sweep.carry_out(lambda: sweep.run_all(launcher.launch))
    else:

        def make_job(choices: Mapping[str, str]) -> Job:
            planned = space.job([f"{key}={value}" for key, value in choices.items()])
            composition = compose_job(config_name, [], planned.overrides, None)
            values, _ = sweeps.resolve(composition.values, planned.overrides)
            return Job(planned.choices, tuple(planned.overrides), values)

        settings: dict[str, Any] = OmegaConf.to_container(master.hydra.sweeper)  # type: ignore[assignment]
        del settings["params"]
        sweep.carry_out(lambda: _search(sweep, space, launcher, make_job, settings))


def _search(
    sweep: Sweep,
    space: Space,
    launcher: launchers.Launcher,
    make_job: Callable[[Mapping[str, str]], Job],
    settings: Mapping[str, Any],
) -> list[Path]:
    from ddpm_train.cli.sweeps.search import Search, distribution  # an extra

    assert sweep.criterion is not None, "the plan sees to it"
    distributions = {override.get_key_element(): distribution(override) for override in space.overrides}
    return Search(sweep.folder, distributions, sweep.criterion, make_job, launcher, **settings).run()


def _hydra_section(config_name: str, overrides: list[str]) -> Mapping[str, Any]:
    composed = compose(config_name, [opened(text) for text in overrides], return_hydra_config=True)
    parts = {"launcher": composed.hydra.launcher, "sweeper": composed.hydra.sweeper, "sweep": composed.hydra.sweep}
    section: dict[str, Any] = {key: OmegaConf.to_container(part, resolve=True) for key, part in parts.items()}
    section["name"] = composed.get("name", "sweep")
    section["choice"] = composed.hydra.runtime.choices["hydra/sweeper"]
    return section


def _with_params(hydra: Mapping[str, Any], overrides: list[Override]) -> list[Override]:
    """The overrides, with those of a config's `hydra.sweeper.params` that the command line does not give."""
    params = hydra["sweeper"].get("params") or {}
    given = [override.key_or_group for override in overrides]
    further = [f"{key}={value}" for key, value in params.items() if key not in given]
    return [*overrides, *OverridesParser.create().parse_overrides(further)]


def discrete(override: Override) -> list[str]:
    """One override for each value of a discrete choice, none for an interval."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        return []
    return [f"{override.get_key_element()}={choice}" for choice in override.sweep_string_iterator()]


def _names_apart(override: Override) -> bool:
    """Whether it names the jobs by itself."""
    return override.key_or_group in _NAMES and (override.is_sweep_override() or "${" in str(override.input_line))


def _named(job: Sequence[str], choices: dict[str, str], hydra: Mapping[str, Any]) -> list[str]:
    """A job's overrides with a name and a folder of its own."""
    folder_name = naming.folder_name(choices)
    # The mirror and trackers know runs by name alone.
    name, output_dir = f"{hydra['name']},{folder_name}", str(Path(hydra["sweep"]["dir"]) / folder_name)
    unnamed = [text for text in job if text.split("=")[0].lstrip("+") not in _NAMES]
    return [*unnamed, f"name={_quoted(name)}", f"output_dir={_quoted(output_dir)}"]


def _quoted(text: str) -> str:
    return QuotedString(text=text, quote=Quote.double).with_quotes()
