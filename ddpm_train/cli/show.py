"""What a program says of itself instead of running: its help, its composed config, how that is composed."""

import textwrap
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.completion_plugin import CompletionPlugin
from hydra.types import RunMode
from omegaconf import OmegaConf

from ddpm_train.cli.command import Command
from ddpm_train.cli.flags import Arguments
from ddpm_train.config.compose import compose_job, open_configs, options
from ddpm_train.config.extensions import import_extensions
from ddpm_train.config.metrics import METRICS
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.overrides import choice_mistakes, parse_overrides, token_mistakes
from ddpm_train.config.parts import CONF
from ddpm_train.config.samplers import SAMPLERS
from ddpm_train.config.schema import dotted_values


def show(command: Command[Any], arguments: Arguments) -> None:
    """Print what the flags ask for.

    Raises:
        Mistakes: there is no such config.
    """
    parsed, lines = parse_overrides(arguments.overrides)
    import_extensions(parsed, arguments.config_dir)
    with open_configs(arguments.config_path, arguments.config_dir):
        if arguments.help:
            print(_help(command.name))
        elif arguments.shell_completion:
            _complete(arguments)
        elif arguments.info:
            _show_info(arguments)
        else:
            _show_config(arguments, parsed, lines)


def _help(name: str) -> str:
    text = yaml.safe_load((CONF / "hydra/help" / f"{name.replace('-', '_')}.yaml").read_text())["template"]
    groups = [group for group in options("", ObjectType.GROUP) if group != "hydra"]
    return Template(text).substitute(
        GROUPS="".join(f"{group}: {', '.join(options(group))}\n" for group in groups),
        SAMPLERS=_table({key: sampler.meaning for key, sampler in SAMPLERS.items()}),
        METRICS=_table({key: metric.meaning for key, metric in METRICS.items()}),
    )


def _table(meanings: Mapping[str, str]) -> str:
    width = max(map(len, meanings)) + 2
    lines = [textwrap.wrap(meaning, 118 - width) for meaning in meanings.values()]
    texts = [f"\n{'':{width + 2}}".join(line) for line in lines]
    return "".join(f"  {key:<{width}}{text}\n" for key, text in zip(meanings, texts, strict=True))


def _show_config(arguments: Arguments, overrides: Sequence[Override], lines: list[str]) -> None:
    lines += choice_mistakes(overrides, multirun=False)
    single = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
    composition = compose_job(arguments.config_name, single)
    lines += composition.mistakes
    lines += token_mistakes(f"{key}={value}" for key, value in dotted_values(composition.values))
    if lines or composition.composed is None:
        raise Mistakes(*dict.fromkeys(lines))
    composed = composition.composed
    OmegaConf.set_readonly(composed.hydra, None)
    keys = {"all": list(composed), "hydra": ["hydra"]}.get(str(arguments.cfg), [*composition.values])
    shown = OmegaConf.masked_copy(composed, keys)
    if arguments.resolve:
        OmegaConf.resolve(shown)
    if arguments.package not in (None, "_global_"):
        shown = OmegaConf.select(shown, arguments.package)
        if shown is None:
            raise Mistakes(f"--package={arguments.package}: no such section; see --cfg {arguments.cfg}")
        print(f"# @package {arguments.package}")
    print(OmegaConf.to_yaml(shown) if OmegaConf.is_config(shown) else shown, end="")


def _show_info(arguments: Arguments) -> None:
    loader = GlobalHydra.instance().config_loader()
    if arguments.info == "searchpath":
        rows = [(source.provider, source.full_path()) for source in loader.get_sources()]
    else:
        found = loader.compute_defaults_list(arguments.config_name, arguments.overrides, RunMode.RUN)
        rows = [(default.config_path, default.package or "_global_") for default in found.defaults]
    for left, right in rows:
        print(f"{left:<32} {right}")


def _complete(arguments: Arguments) -> None:
    """`--shell-completion install=bash` and the like, by Hydra's plugins for shells."""
    loader = GlobalHydra.instance().config_loader()
    found: list[Any] = [*Plugins.instance().discover(CompletionPlugin)]
    plugins = {kind.provides(): kind for kind in found}
    what, _, shell = "".join(arguments.overrides).partition("=")
    if what not in ("install", "uninstall", "query") or shell not in plugins:
        raise Mistakes(f"--shell-completion: give install=SHELL or uninstall=SHELL, of {', '.join(sorted(plugins))}")
    plugin = plugins[shell](loader)
    if what == "query":
        plugin.query(config_name=arguments.config_name)
    else:
        getattr(plugin, what)()
