"""Plans a sweep before anything of it starts: its jobs, their folders and names, and what is wrong with them."""

import importlib.util
import itertools
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from hydra import compose
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf

from ddpm_train.cli.composing import NOT_COMPOSED, opened
from ddpm_train.mistakes import Mistakes, did_you_mean
from ddpm_train.selection import Criterion
from ddpm_train.sweeps import launchers, naming
from ddpm_train.sweeps.devices import visible_gpus
from ddpm_train.sweeps.jobs import Job, conflict
from ddpm_train.sweeps.sweep import Sweep
from ddpm_train.validation import Schema

C = TypeVar("C")

# The keys that name a run; a sweep gives them unless the command varies them itself.
_NAMES = ("name", "output_dir")
# Jobs that differ in these could not be compared.
_SAME_FOR_ALL = ("objective", "allow_change")
_EXTRAS = {
    "hydra/launcher=submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "hydra-submitit-launcher", "slurm"),
    "hydra/launcher=submitit_local": ("hydra_plugins.hydra_submitit_launcher", "hydra-submitit-launcher", "slurm"),
}


@dataclass(frozen=True)
class Sweepable(Generic[C]):
    """What a program needs for sweeps whose jobs run in processes of their own.

    Attributes:
        module: the program, as `python -m` takes it.
        preflight: yields a line for each mistake that only a look at the machine shows, for jobs of so many processes.
        criterion: what the jobs are compared by.
    """

    module: str
    preflight: Callable[[C, int | None], Iterator[str]]
    criterion: Callable[[C], Criterion | None]


@dataclass(frozen=True)
class PlannedJob:
    """Its choices, and its overrides, as far as the command line tells them."""

    choices: dict[str, str]
    overrides: list[str]


@dataclass(frozen=True)
class Layout:
    """The jobs of a sweep.

    Attributes:
        folder: where their comparison stands; None: where the jobs' folders stand.
        num_processes: of each job.
    """

    mistakes: list[str]
    folder: Path | None
    jobs: list[PlannedJob]
    num_processes: int


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
    lines = list(_plugin_mistakes(overrides))
    texts = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
    hydra: Mapping[str, Any] = {}
    if not lines:
        with suppress(*NOT_COMPOSED):  # whatever it is, each job has it, and composing it tells
            hydra = _hydra_section(config_name, texts)
    overrides = _with_params(hydra, overrides)
    lines += _variation_mistakes(overrides)
    varied = [override.key_or_group for override in overrides if override.is_sweep_override()]
    own_names = any(_names_apart(override) for override in overrides)
    # Of Hydra's own keys some are the sweep's, and none a job's, save its number if it asks for that.
    own = [override for override in overrides if not is_hydra(override)]
    jobs = []
    for number, job in enumerate(dict.fromkeys(itertools.product(*filter(None, map(discrete, own))))):
        choices = naming.chosen(job, varied)
        named = list(job) if own_names or not hydra or not choices else _named(job, choices, hydra)
        numbered = [f"hydra.job.num={number}"] if any("${hydra:job.num}" in text for text in job) else []
        jobs.append(PlannedJob(choices, [*named, *numbered]))
    if hydra:
        lines += _launcher_mistakes(hydra["launcher"])
    folder = Path(hydra["sweep"]["dir"]) if hydra and not own_names and varied else None
    return Layout(lines, folder, jobs, int(hydra.get("launcher", {}).get("num_processes") or 1))


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
    if lines := [line for job in jobs if (line := conflict(job))]:
        raise Mistakes(*lines)
    folder = layout.folder or jobs[0].folder.parent
    return Sweep(sweeps.module, tuple(flags), folder, tuple(jobs), sweeps.criterion(schema.parse(configs[0])))


def carry_out(sweep: Sweep, config_name: str, overrides: list[str]) -> None:
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
    sweep.carry_out(launcher.launch)


def _hydra_section(config_name: str, overrides: list[str]) -> Mapping[str, Any]:
    composed = compose(config_name, [opened(text) for text in overrides], return_hydra_config=True)
    parts = {"launcher": composed.hydra.launcher, "sweeper": composed.hydra.sweeper, "sweep": composed.hydra.sweep}
    section: dict[str, Any] = {key: OmegaConf.to_container(part, resolve=True) for key, part in parts.items()}
    section["name"] = composed.get("name", "sweep")
    return section


def _with_params(hydra: Mapping[str, Any], overrides: list[Override]) -> list[Override]:
    """The overrides, with those of a config's `hydra.sweeper.params` that the command line does not give."""
    params = hydra.get("sweeper", {}).get("params") or {}
    given = [override.key_or_group for override in overrides]
    further = [f"{key}={value}" for key, value in params.items() if key not in given]
    return [*overrides, *OverridesParser.create().parse_overrides(further)]


def is_hydra(override: Override) -> bool:
    return str(override.key_or_group).startswith(("hydra.", "hydra/"))


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


def _plugin_mistakes(overrides: list[Override]) -> Iterator[str]:
    loader = GlobalHydra.instance().config_loader()
    for override in overrides:
        group, choice = override.key_or_group, str(override.value())
        if group not in ("hydra/launcher", "hydra/sweeper") or override.is_sweep_override():
            continue
        options = [name for name in loader.get_group_options(group) if name != "basic"]
        extra = _EXTRAS.get(f"{group}={choice}")
        if extra is not None and importlib.util.find_spec(extra[0].split(".")[0]) is None:
            yield f"{group}={choice}: {extra[1]} is not installed; pip install 'ddpm-train[{extra[2]}]'"
        elif choice not in options:
            yield f"{group}={choice}: no such {group[6:]};{did_you_mean(choice, options)} (one of {', '.join(options)})"


def _variation_mistakes(overrides: list[Override]) -> Iterator[str]:
    """A line for each key that cannot vary, or not so."""
    for override in overrides:
        key, text = override.key_or_group, override.input_line
        if not override.is_sweep_override():
            continue
        if is_hydra(override):
            yield f"{text}: how a sweep is done cannot vary within it; give one value"
        elif key in _SAME_FOR_ALL:
            yield f"{text}: must be the same for all jobs, which could not be compared; give one value"
        elif not override.is_discrete_sweep():
            yield (
                f"{text}: only an optimiser can choose from an interval; add hydra/sweeper=optuna, "
                f"or write {key}=A,B or range(A,B)"
            )


def _launcher_mistakes(launcher: Mapping[str, Any]) -> Iterator[str]:
    """What the machine cannot give the jobs."""
    parallel, count, port = (launcher.get(key) for key in ("max_parallel", "num_processes", "main_process_port"))
    for key, value in (("max_parallel", parallel), ("num_processes", count)):
        if value is not None and not (type(value) is int and value > 0):
            yield f"hydra.launcher.{key}={value}: must be a whole number above 0"
            return
    gpus = visible_gpus() if count else []
    if gpus and count and count > len(gpus):
        yield f"hydra.launcher.num_processes={count}: more than the {len(gpus)} GPUs here; use at most {len(gpus)}"
    if port is not None:
        if parallel != 1 and (gpus or parallel):
            yield f"hydra.launcher.main_process_port={port}: one port for several jobs at a time; leave it out"
        elif _is_taken(port):
            yield f"hydra.launcher.main_process_port={port}: taken by another process; leave it out for a free one"


def _is_taken(port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", port))
        except OSError:
            return True
    return False
