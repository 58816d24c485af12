"""What the programs share: finding the configs, finding every mistake, telling it."""

import argparse
import itertools
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import _run_hydra, create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig

from ddpm_train.cli.sweeps import plan
from ddpm_train.cli.sweeps.processes import EXIT_CODE_FILE
from ddpm_train.cli.sweeps.sweep import Sweep
from ddpm_train.config.compose import compose_job, opened, plain
from ddpm_train.config.mistakes import Mistakes, did_you_mean, holds_token, without_tokens
from ddpm_train.config.parts import CONF
from ddpm_train.config.schema import Schema, dotted_values
from ddpm_train.system import exit_codes, launch

C = TypeVar("C")


def _unchanged(values: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    return values, []


@dataclass(frozen=True)
class Program(Generic[C]):
    """What one program makes of a command line.

    Attributes:
        config_name: its config in `conf/`.
        groups: the groups that its config chooses from; None: all.
        output_key: the key that names the folder of a run.
        naming: how to name the runs of a sweep apart, with {} for what varies.
        preflight: yields a line for each mistake that only a look at the machine shows (paths, devices).
        job: takes the config, and the same as plain values to be saved with the run.
        resolve: completes a composed config by what it points to, given the overrides; also yields mistakes.
        sweeps: how its jobs run in processes of their own and are compared; None: a sweep's jobs run in this process.
    """

    config_name: str
    schema: Schema[C]
    groups: tuple[str, ...] | None
    output_key: str
    naming: str
    preflight: Callable[[C], Iterator[str]]
    job: Callable[[C, dict[str, Any]], None]
    resolve: Callable[[dict[str, Any], Sequence[str]], tuple[dict[str, Any], list[str]]] = _unchanged
    sweeps: plan.Sweepable[C] | None = None


def run(program: Program[C]) -> None:
    """Compose the command line's config with Hydra and hand it to the program's job, typed and checked."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        # Until `StopRequest` takes over, after seconds of imports, there is nothing to save.
        signal.signal(number, lambda *_: os._exit(exit_codes.REQUEUE))
    parser = get_args_parser()
    arguments, unknown = parser.parse_known_args()
    # argparse takes no overrides after a flag that stands between them.
    arguments.overrides += [text for text in unknown if not text.startswith("-")]
    # Hydra would look for a relative folder beside this file.
    arguments.config_path = str(Path(arguments.config_path or CONF).resolve())
    arguments.config_name = (arguments.config_name or program.config_name).removesuffix(".yaml")

    def hydra_job(composed: DictConfig) -> None:
        values, _ = program.resolve(plain(composed), HydraConfig.get().overrides.task)
        try:
            program.job(program.schema.parse(values), values)
        except Mistakes as mistakes:
            tell(mistakes)

    version.setbase("1.3")
    if arguments.multirun and program.sweeps:
        arguments.overrides = plan.with_defaults(arguments.overrides)
    try:
        sweep = _check(arguments, unknown, program)
    except Mistakes as mistakes:
        tell(mistakes)
    arguments.overrides = [opened(text) for text in arguments.overrides]
    if sweep is not None and program.sweeps is not None:
        plan.carry_out(sweep, program.sweeps, arguments.config_name, arguments.overrides)
        return
    try:
        # What the decorator `hydra.main` does, which would parse the command line once more.
        _run_hydra(arguments, parser, hydra_job, arguments.config_path, arguments.config_name)
    except SystemExit as left:
        if EXIT_CODE_FILE in os.environ and os.environ.get("RANK", "0") == "0":
            Path(os.environ[EXIT_CODE_FILE]).write_text(str(left.code))
        raise


def output_mistakes(key: str, folder: str) -> Iterator[str]:
    """A line if the folder cannot be made or written in."""
    remedy = "choose another name or output_dir" if key == "output_dir" else f"choose another {key}"
    existing = Path(folder)
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        yield f"{key}={folder}: not a folder; {remedy}"
        return
    try:
        # Tried, not asked: permissions alone do not tell of read-only disks, nor of what root may not do.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        yield f"{key}={folder}: cannot write in {existing} ({error.strerror}); choose another {key}"


def tell(mistakes: Mistakes) -> NoReturn:
    """Print the mistakes once, whatever the number of processes, and leave with code 2."""
    if os.environ.get("RANK", "0") == "0":
        for line in mistakes.lines:
            print(f"error: {without_tokens(line)}", file=sys.stderr)
    sys.exit(exit_codes.MISTAKE)


def _check(arguments: argparse.Namespace, unknown: list[str], program: Program[C]) -> Sweep | None:
    """Find every mistake of a command line at once; Hydra alone would stop at the first.

    Returns:
        The sweep that it asks for, if its jobs are to run in processes of their own.

    Raises:
        Mistakes: a line for each.
    """
    if lines := [*_token_mistakes([*arguments.overrides, *unknown]), *_flag_mistakes(arguments, unknown, program)]:
        raise Mistakes(*dict.fromkeys(lines))
    if arguments.help or arguments.hydra_help or arguments.shell_completion:
        return None
    _open_configs(arguments.config_path, arguments.config_dir)
    lines, overrides = _parsed(arguments.overrides)
    layout = None
    if arguments.multirun and program.sweeps:
        layout = plan.lay_out(arguments.config_name, overrides)
        lines += layout.mistakes
        jobs = [job.overrides for job in layout.jobs]
    else:
        lines += _choice_mistakes(overrides, arguments.multirun)
        several = [override for override in overrides if not override.is_sweep_override() or arguments.multirun]
        jobs = [list(job) for job in itertools.product(*map(plan.discrete, several))]
    preflight = plan.preflight(program.sweeps, layout) if layout and program.sweeps else program.preflight
    compositions = [
        compose_job(arguments.config_name, [f"hydra.job.num={number}"], overrides, program.groups)
        for number, overrides in enumerate(jobs)
    ]
    configs = []
    for composition, job in zip(compositions, jobs, strict=True):
        lines += composition.mistakes
        lines += _token_mistakes(f"{key}={value}" for key, value in dotted_values(composition.values))
        if composition.values and not (arguments.cfg or arguments.info):
            values, mistakes = program.resolve(composition.values, job)
            configs.append(values)
            lines += mistakes
            lines += program.schema.inspect(values, composition.defaults, preflight)
    if arguments.multirun:
        composed = [composition.values for composition in compositions if not composition.mistakes]
        lines += _sweep_mistakes(jobs, composed, program)
    if lines:
        raise Mistakes(*dict.fromkeys(lines))
    if layout is None or program.sweeps is None:
        GlobalHydra.instance().clear()
        return None
    return plan.plan(program.sweeps, program.schema, layout, configs, _given_flags(arguments, program))


def _given_flags(arguments: argparse.Namespace, program: Program[C]) -> list[str]:
    """The flags that say where the configs are, as far as they are not the program's own."""
    flags = {
        "--config-path": arguments.config_path if arguments.config_path != str(CONF) else None,
        "--config-name": arguments.config_name if arguments.config_name != program.config_name else None,
        "--config-dir": arguments.config_dir,
    }
    return [f"{flag}={value}" for flag, value in flags.items() if value is not None]


def _open_configs(config_path: str, config_dir: str | None) -> None:
    """What `hydra.main` does with the two flags, for `compose`."""
    places = create_config_search_path(config_path)
    if config_dir:
        places.prepend("command-line", f"file://{Path(config_dir).resolve()}", SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    Hydra.create_main_hydra2("app", places)


def _token_mistakes(texts: Iterable[str]) -> Iterator[str]:
    """A line for each text "key=value" that holds a token or asks for one; the token is not repeated."""
    for text in texts:
        key, equals, value = text.partition("=")
        if holds_token(text) or (equals and value not in ("", "None") and key.endswith(("token", "api_key"))):
            shown = key if equals and not holds_token(key) else "hf_…"
            yield (
                f"{shown}: a token does not belong in a command or a config, which are saved and pushed; "
                "log in with `hf auth login`, or set HF_TOKEN"
            )


def _flag_mistakes(arguments: argparse.Namespace, unknown: list[str], program: Program[C]) -> Iterator[str]:
    known = [flag for action in get_args_parser()._actions for flag in action.option_strings]
    for flag in (text for text in unknown if text.startswith("-")):
        yield f"{flag}: no such flag;{did_you_mean(flag.split('=')[0], known) or ' see --help'}"
    if arguments.experimental_rerun:
        yield "--experimental-rerun: not for these runs; use --config-path RUN --config-name config"
    folders = {"--config-path": arguments.config_path, "--config-dir": arguments.config_dir}
    missing = [flag for flag, folder in folders.items() if folder and not Path(folder).is_dir()]
    for flag in missing:
        yield f"{flag}={folders[flag]}: no such folder"
    names = [path.stem for folder in folders.values() if folder for path in Path(folder).glob("*.yaml")]
    if not missing and arguments.config_name not in names:
        places = " or ".join(folder for folder in folders.values() if folder)
        yield (
            f"--config-name={arguments.config_name}: no such file in {places};"
            f"{did_you_mean(arguments.config_name, names)}"
        ).rstrip(";")
    for flag in ("cfg", "info", "run"):
        if arguments.multirun and getattr(arguments, flag):
            yield f"--{flag}: not of a whole sweep; leave out --multirun"
    if arguments.multirun and (count := launch.num_processes()) > 1:
        remedy = f" with hydra/launcher=accelerate hydra.launcher.num_processes={count}" if program.sweeps else ""
        yield f"--multirun: each of {count} processes would sweep; start it without a launcher{remedy}"


def _parsed(overrides: list[str]) -> tuple[list[str], list[Override]]:
    """The lines for overrides that cannot be read, and the others."""
    lines, parsed = [], []
    for text in overrides:
        try:
            parsed.append(OverridesParser.create().parse_override(text))
        except HydraException:
            lines.append(f"{text}: not of the form key=value (quote values with special characters)")
    return lines, parsed


def _choice_mistakes(overrides: list[Override], multirun: bool) -> Iterator[str]:
    for override in overrides:
        text = override.input_line
        if override.is_sweep_override() and not override.is_discrete_sweep():
            yield f"{text}: a sweep needs choices; write {override.key_or_group}=A,B or range(A,B)"
        elif override.is_sweep_override() and not multirun:
            yield f"{text}: several values; add --multirun to try each, or quote it if it is one text"


def _sweep_mistakes(jobs: Sequence[Sequence[str]], configs: list[dict[str, Any]], program: Program[C]) -> Iterator[str]:
    """Runs that share a folder would each go on where the one before it stopped."""
    folders = [config.get(program.output_key) for config in configs]
    for folder in {folder: None for folder in folders if folder is not None and folders.count(folder) > 1}:
        swept = [texts[0].split("=")[0].lstrip("+") for texts in zip(*jobs, strict=True) if len(set(texts)) > 1]
        values = (f"hydra:runtime.choices.{key}" if isinstance(configs[0].get(key), dict) else key for key in swept)
        name = "_".join(["run", *(f"${{{value}}}" for value in values)])
        yield (
            f"{program.output_key}={folder}: the same for {folders.count(folder)} runs of the sweep; "
            f"name them apart, such as {program.naming.format(name)}"
        )
