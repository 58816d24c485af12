"""Which diffusers schedulers sample a DDPM, and what each takes: read from diffusers' source, which is not imported.

Left out, because a run with a perfect predictor does not end at x_0 or because they are made for something else:
IPNDM, EDM, Cosine and VE schedulers (a noise schedule of their own), LCM and TCD (distilled models), the flow-matching
ones, and the "parallel" DDPM and DDIM, which compute what DDPM and DDIM do.
"""

import ast
import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ddpm_train.config.mistakes import as_written, did_you_mean
from ddpm_train.config.registry import Registry, resolve


@dataclass(frozen=True)
class SamplerClass:
    """A class that samples as diffusers' schedulers do.

    Attributes:
        target: "package.module:name", so that it is imported only to sample; or the class itself.
        meaning: one line for `ddpm-sample --help`.
        package: what the class asks for besides diffusers; None: nothing.
    """

    target: str | type
    meaning: str
    package: str | None = None

    @property
    def class_name(self) -> str:
        return self.target.rpartition(":")[2] if isinstance(self.target, str) else self.target.__name__

    def load(self) -> Any:
        """The class, imported only now."""
        return resolve(self.target)


_DIFFUSERS = {
    "ddpm": ("ddpm:DDPM", "Ho et al. 2020: draws noise at each step; needs hundreds of steps"),
    "ddim": ("ddim:DDIM", "Song et al. 2021: the same model without noise; sampler.eta=1 adds the noise again"),
    "pndm": ("pndm:PNDM", "Liu et al. 2022: linear multistep on DDIM; 5 steps or more"),
    "dpm_solver": (
        "dpmsolver_multistep:DPMSolverMultistep",
        "DPM-Solver++(2M), Lu et al. 2022: good from 10 to 25 steps (the default)",
    ),
    "dpm_solver_singlestep": (
        "dpmsolver_singlestep:DPMSolverSinglestep",
        "the same solver without memory of earlier steps",
    ),
    "dpm_solver_sde": ("dpmsolver_sde:DPMSolverSDE", "DPM-Solver++ (SDE) of k-diffusion: draws noise; needs torchsde"),
    "unipc": ("unipc_multistep:UniPCMultistep", "Zhao et al. 2023: predictor and corrector; good from 5 to 15 steps"),
    "deis": ("deis_multistep:DEISMultistep", "Zhang & Chen 2023: exponential integrator, multistep"),
    "sa_solver": ("sasolver:SASolver", "Xue et al. 2023: stochastic Adams, predictor and corrector; draws noise"),
    "euler": ("euler_discrete:EulerDiscrete", "Karras et al. 2022, algorithm 2; sampler.s_churn adds noise"),
    "euler_ancestral": (
        "euler_ancestral_discrete:EulerAncestralDiscrete",
        "Euler that draws noise at each step, as in k-diffusion",
    ),
    "heun": (
        "heun_discrete:HeunDiscrete",
        "Karras et al. 2022, algorithm 1: second order, calls the model twice a step",
    ),
    "kdpm2": (
        "k_dpm_2_discrete:KDPM2Discrete",
        "DPM-Solver-2 as in k-diffusion: second order, calls the model twice a step",
    ),
    "kdpm2_ancestral": ("k_dpm_2_ancestral_discrete:KDPM2AncestralDiscrete", "the same, drawing noise at each step"),
    "lms": ("lms_discrete:LMSDiscrete", "linear multistep of k-diffusion; needs scipy"),
}
_PACKAGES = {"dpm_solver_sde": "torchsde", "lms": "scipy"}
SAMPLERS: Registry[SamplerClass] = Registry(
    "sampler",
    {
        name: SamplerClass(f"diffusers.schedulers.scheduling_{target}Scheduler", meaning, _PACKAGES.get(name))
        for name, (target, meaning) in _DIFFUSERS.items()
    },
)
# Made for each model, and for each number of steps.
FITTED = "fitted"
SAMPLERS.add(
    FITTED,
    SamplerClass(
        "ddpm_train.sampling.fitted_sampler:FittedSampler",
        "steps fitted to this model before the first image, and kept; good from 5 steps on",
    ),
)
# The model was trained with these; a sampler takes them over.
OF_THE_MODEL = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type"),
    "rescale_betas_zero_snr",
)
# What the loop hands to `step` itself, or the seed decides.
_OF_THE_LOOP = ("self", "model_output", "timestep", "sample", "generator", "variance_noise", "return_dict")


@cache
def arguments(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the constructor and what `step` of a sampler's class take, as it is installed."""
    target = SAMPLERS[name].target
    if isinstance(target, str):
        constructor, step = _arguments_in_source(target)
    else:
        methods = (getattr(target, name) for name in ("__init__", "step"))
        constructor, step = (list(inspect.signature(method).parameters) for method in methods)
    kept = (argument for argument in constructor if argument not in ("self", "noise_sampler_seed"))
    return tuple(kept), tuple(argument for argument in step if argument not in _OF_THE_LOOP)


def _arguments_in_source(target: str) -> list[list[str]]:
    """The arguments of `__init__` and `step`, without importing what takes seconds."""
    module, _, class_name = target.partition(":")
    package, *parts = module.split(".")
    found = importlib.util.find_spec(package)
    assert found is not None and found.origin is not None
    source = Path(found.origin).parent.joinpath(*parts).with_suffix(".py").read_text("utf-8")
    (definition,) = (
        node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == class_name
    )
    methods = {node.name: node for node in definition.body if isinstance(node, ast.FunctionDef)}
    return [[argument.arg for argument in methods[name].args.args] for name in ("__init__", "step")]


def argument_mistakes(name: str, given: Mapping[str, Any]) -> Iterator[str]:
    """A line for each argument that the sampler of that name does not take."""
    constructor, step = arguments(name)
    free = [key for key in (*constructor, *step) if key not in OF_THE_MODEL]
    for key, value in given.items():
        if key in OF_THE_MODEL:
            yield f"sampler.{key}={as_written(value)}: decided by the model, which was trained with it; leave it out"
        elif key not in free:
            remedy = did_you_mean(key, free) or f" it takes {', '.join(sorted(free)) or 'none'}"
            yield f"sampler.{key}={as_written(value)}: no argument of {SAMPLERS[name].class_name};{remedy}"


def sampler_package_mistakes(*names: str, given: str = "") -> Iterator[str]:
    """A line for each of these samplers that needs a package that is not installed.

    Args:
        given: what the user wrote, if not "sampler=NAME".
    """
    for name in names:
        package = SAMPLERS[name].package
        if package and importlib.util.find_spec(package) is None:
            what = "'ddpm-train[samplers]'" if package in ("scipy", "torchsde") else package
            yield f"{given or f'sampler={name}'}: {name} needs {package}, which is not installed; pip install {what}"
