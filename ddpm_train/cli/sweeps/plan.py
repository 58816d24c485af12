"""Plans a sweep before anything of it starts: its jobs, their folders and names, and what is wrong with them."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from ddpm_train.cli.flags import Arguments
from ddpm_train.cli.sweeps import launchers
from ddpm_train.cli.sweeps.jobs import Job, chosen, conflicts
from ddpm_train.cli.sweeps.mistakes import launcher_mistakes, plugin_mistakes, sweeper_mistakes, variation_mistakes
from ddpm_train.cli.sweeps.sweep import Sweep
from ddpm_train.config.compose import NOT_COMPOSED, blame, compose_job, hydra_compose, open_configs
from ddpm_train.config.elsewhere import unresolved_mistakes
from ddpm_train.config.grammar import parse
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.naming import folder_name
from ddpm_train.config.objective import criterion
from ddpm_train.config.overrides import discrete, is_hydra, read_overrides, swept_text_mistakes
from ddpm_train.config.program import check_jobs, try_out
from ddpm_train.training.preflight import PROGRAM, preflight

# The keys that name a run; a sweep gives them unless the command varies them itself.
_NAMES = ("name", "output_dir")


def sweep(arguments: Arguments) -> None:
    """Plan the sweep that a command line describes, and carry it out.

    Raises:
        Mistakes: a line for each, in the sweep or in any of its jobs.
    """
    launchers.register()
    overrides, lines = read_overrides(_with_defaults(arguments.overrides), arguments.config_dir, multirun=True)
    with open_configs(arguments.config_path, arguments.config_dir):
        settings, further = _read_settings(arguments.config_name, overrides)
        lines += list(plugin_mistakes(overrides)) or further
        layout = _Layout(settings, overrides)
        lines += variation_mistakes(overrides, layout.own, settings.optimised)
        planned = _plan(arguments, layout, lines)
        assert settings.master is not None, "it cannot be composed only if there are mistakes"
        launcher = launchers.choose(planned, settings.master)
        if settings.optimised:
            planned.carry_out(lambda: _search(planned, layout, launcher, arguments.config_name))
        else:
            planned.carry_out(lambda: planned.run_all(launcher.launch))


def _with_defaults(overrides: Sequence[str]) -> list[str]:
    """The overrides of a sweep, with our launcher and sweeper where they choose none: whatever the config's file."""
    defaults = {"hydra/launcher": "processes", "hydra/sweeper": "grid"}
    chosen_groups = [text.split("=")[0] for text in overrides]
    return [f"{group}={name}" for group, name in defaults.items() if group not in chosen_groups] + list(overrides)


@dataclass(frozen=True)
class _Settings:
    """How a sweep is done.

    Attributes:
        master: the config of the sweep itself, Hydra's section included; None: it cannot be composed.
        folder: where the jobs' folders stand.
    """

    master: DictConfig | None = None
    optimised: bool = False
    launcher: Mapping[str, Any] = field(default_factory=dict)
    sweeper: Mapping[str, Any] = field(default_factory=dict)
    folder: str = "sweeps"
    name: str = "sweep"


def _read_settings(config_name: str, overrides: list[Override]) -> tuple[_Settings, list[str]]:
    """How the sweep is done, and a line for each mistake in that."""
    single = [override for override in overrides if not (is_hydra(override) and override.is_sweep_override())]
    # As the first job: which keys there are may depend on a choice that varies.
    texts = [options[0] for override in single if (options := _examples(override))]
    try:
        master, values = hydra_compose(config_name, ["hydra.job.num=0", *texts])
    except NOT_COMPOSED:
        # Composing the jobs tells what is wrong, unless it is the sweep's own.
        groups, keys = ([text for text in texts if text.startswith(f"hydra{sign}")] for sign in "/.")
        return _Settings(), blame(config_name, [], groups) or blame(config_name, groups, keys)
    # References in the sweeper's choices are those of the jobs, which resolve them.
    plain: dict[str, Any] = {
        key: OmegaConf.to_container(master.hydra[key], resolve=key != "sweeper")
        for key in ("launcher", "sweeper", "sweep")
    }
    if lines := list(unresolved_mistakes({**values, "hydra": {"sweep": plain["sweep"]}})):
        return _Settings(), lines
    optimised = master.hydra.runtime.choices["hydra/sweeper"] == "optuna"
    name = values.get("name", "sweep")
    return _Settings(master, optimised, plain["launcher"], plain["sweeper"], plain["sweep"]["dir"], name), []


class _Layout:
    """The jobs of a sweep, each with a name and a folder of its own.

    Attributes:
        own: the overrides that are the jobs', and not for Hydra.
        swept: those of them that vary.
        naming: those that name the jobs' folders: what varies; or, for a single job, all that is given.
        names_apart: whether they name the jobs by themselves.
    """

    def __init__(self, settings: _Settings, overrides: Sequence[Override]) -> None:
        given = [override.key_or_group for override in overrides]
        params = settings.sweeper.get("params") or {}  # in a config that describes a sweep
        further = [parse(f"{key}={value}") for key, value in params.items() if key not in given]
        self.settings = settings
        self.own = [override for override in [*overrides, *further] if not is_hydra(override)]
        self.swept = [override for override in self.own if override.is_sweep_override()]
        named = any(override.key_or_group == "output_dir" for override in self.own)
        single = [] if settings.optimised or named else [own for own in self.own if own.key_or_group not in _NAMES]
        self.naming = self.swept or single
        self.names_apart = any(
            override.key_or_group in _NAMES and (override.is_sweep_override() or "${" in str(override.input_line))
            for override in self.own
        )

    def jobs(self) -> list[Job]:
        """All of them; for a search examples, of each choice and each end of an interval one."""
        if not self.settings.optimised:
            options = [texts for override in self.own if (texts := discrete(override))]
            together = list(itertools.product(*options))
        else:
            options = [_examples(override) for override in self.own]
            first = [texts[0] for texts in options]
            together = [(*first[:at], text, *first[at + 1 :]) for at, texts in enumerate(options) for text in texts]
        return [self.job(texts, number) for number, texts in enumerate(dict.fromkeys(together))]

    def job(self, texts: Sequence[str], number: int = 0) -> Job:
        """The job of these overrides."""
        choices = chosen(texts, [override.key_or_group for override in self.naming])
        named = list(texts) if self.names_apart or not choices else self._named(texts, choices)
        numbered = [f"hydra.job.num={number}"] if any("${hydra:job.num" in text for text in texts) else []
        return Job(choices, (*named, *numbered))

    def _named(self, texts: Sequence[str], choices: Mapping[str, str]) -> list[str]:
        own_name = folder_name(choices)
        # The mirror and trackers know runs by name alone.
        values = f"{self.settings.name},{own_name}", str(Path(self.settings.folder) / own_name)
        unnamed = [text for text in texts if text.split("=")[0].lstrip("+") not in _NAMES]
        quoted = (QuotedString(text=value, quote=Quote.double).with_quotes() for value in values)
        return [*unnamed, *(f"{key}={text}" for key, text in zip(_NAMES, quoted, strict=True))]


def _examples(override: Override) -> list[str]:
    """One override for each choice, and for the ends of an interval."""
    value = override.value()
    ends = (value.start, value.end) if isinstance(value, IntervalSweep) else ()
    return [f"{override.get_key_element()}={end}" for end in ends] or discrete(override)


def _plan(arguments: Arguments, layout: _Layout, lines: list[str]) -> Sweep:
    """The sweep that the layout describes, with its jobs composed and checked.

    Args:
        lines: the mistakes that are known already.

    Raises:
        Mistakes: a line for each.
    """
    settings = layout.settings
    wrong = [*launcher_mistakes(settings.launcher), *sweeper_mistakes(settings.sweeper)]
    num_processes = 1 if wrong else settings.launcher.get("num_processes", 1)
    jobs = layout.jobs()
    checked, further = check_jobs(
        PROGRAM, arguments.config_name, [job.overrides for job in jobs], lambda config: preflight(config, num_processes)
    )
    if lines := [*lines, *wrong, *further, *swept_text_mistakes(layout.own, further)]:
        raise Mistakes(*dict.fromkeys(lines))
    jobs = [replace(job, values=values) for job, (_, values) in zip(jobs, checked, strict=True)]
    lines = [line for job in jobs for line in conflicts(job)]
    config, _ = checked[0]
    assert config is not None, "there are no mistakes"
    compared_by = criterion(config)
    if settings.optimised and compared_by is None:
        lines.append("hydra/sweeper=optuna: the jobs have no objective; give objective=auto and an evaluation")
    if lines:
        raise Mistakes(*lines)
    try_out(PROGRAM, ((config, values) for config, values in checked if config is not None))
    folder = Path(settings.folder) if layout.naming and not layout.names_apart else jobs[0].folder.parent
    return Sweep(tuple(arguments.flags(PROGRAM.config_name)), folder, tuple(jobs), compared_by)


def _search(planned: Sweep, layout: _Layout, launcher: launchers.Launcher, config_name: str) -> list[Path]:
    """Run the jobs that an optimiser chooses; returns their folders."""
    from ddpm_train.cli.sweeps.search import Search, distribution  # an extra

    fixed = [text for override in layout.own if override not in layout.swept for text in discrete(override)]

    def draw(choices: Mapping[str, str]) -> Job:
        job = layout.job([*fixed, *(f"{key}={value}" for key, value in choices.items())])
        values, _ = PROGRAM.resolve(compose_job(config_name, job.overrides).values, job.overrides)
        return replace(job, values=values)

    assert planned.criterion is not None, "the plan sees to it"
    space = {override.get_key_element(): distribution(override) for override in layout.swept}
    options = {key: value for key, value in layout.settings.sweeper.items() if key != "params"}
    search = Search(planned.folder, space, planned.criterion, draw, launcher, **options)
    planned.progress.expect(search.num_remaining)
    return search.run()
