"""Which diffusers schedulers sample a DDPM, and what each takes: read from diffusers' source, which is not imported.

Left out, because a run with a perfect predictor does not end at x_0 or because they are made for something else:
IPNDM, EDM, Cosine and VE schedulers (a noise schedule of their own), LCM and TCD (distilled models), the flow-matching
ones, and the "parallel" DDPM and DDIM, which compute what DDPM and DDIM do.
"""

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ddpm_train.config.mistakes import as_written, did_you_mean
from ddpm_train.config.parts import Sampler

# name -> diffusers' module and class
CLASSES = {
    "ddpm": ("scheduling_ddpm", "DDPMScheduler"),
    "ddim": ("scheduling_ddim", "DDIMScheduler"),
    "pndm": ("scheduling_pndm", "PNDMScheduler"),
    "dpm_solver": ("scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler"),
    "dpm_solver_singlestep": ("scheduling_dpmsolver_singlestep", "DPMSolverSinglestepScheduler"),
    "dpm_solver_sde": ("scheduling_dpmsolver_sde", "DPMSolverSDEScheduler"),
    "unipc": ("scheduling_unipc_multistep", "UniPCMultistepScheduler"),
    "deis": ("scheduling_deis_multistep", "DEISMultistepScheduler"),
    "sa_solver": ("scheduling_sasolver", "SASolverScheduler"),
    "euler": ("scheduling_euler_discrete", "EulerDiscreteScheduler"),
    "euler_ancestral": ("scheduling_euler_ancestral_discrete", "EulerAncestralDiscreteScheduler"),
    "heun": ("scheduling_heun_discrete", "HeunDiscreteScheduler"),
    "kdpm2": ("scheduling_k_dpm_2_discrete", "KDPM2DiscreteScheduler"),
    "kdpm2_ancestral": ("scheduling_k_dpm_2_ancestral_discrete", "KDPM2AncestralDiscreteScheduler"),
    "lms": ("scheduling_lms_discrete", "LMSDiscreteScheduler"),
}
# Packages that diffusers asks for besides itself.
NEEDS = {"lms": "scipy", "dpm_solver_sde": "torchsde"}
# The model was trained with these; a sampler takes them over.
OF_THE_MODEL = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type"),
    "rescale_betas_zero_snr",
)
# What the loop hands to `step` itself, or the seed decides.
_OF_THE_LOOP = ("self", "model_output", "timestep", "sample", "generator", "variance_noise", "return_dict")


@cache
def arguments(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the constructor and what `step` of a sampler's class take, in the installed diffusers."""
    module, class_name = CLASSES[name]
    package = importlib.util.find_spec("diffusers")
    assert package is not None and package.origin is not None
    source = (Path(package.origin).parent / "schedulers" / f"{module}.py").read_text()
    (definition,) = (
        node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == class_name
    )
    methods = {node.name: node for node in definition.body if isinstance(node, ast.FunctionDef)}
    constructor, step = ([argument.arg for argument in methods[name].args.args] for name in ("__init__", "step"))
    kept = (argument for argument in constructor if argument not in ("self", "noise_sampler_seed"))
    return tuple(kept), tuple(argument for argument in step if argument not in _OF_THE_LOOP)


def argument_mistakes(sampler: Sampler) -> Iterator[str]:
    """A line for each argument that the sampler does not take."""
    constructor, step = arguments(sampler.name)
    free = [key for key in (*constructor, *step) if key not in OF_THE_MODEL]
    for key, value in sampler.arguments.items():
        if key in OF_THE_MODEL:
            yield f"sampler.{key}={as_written(value)}: decided by the model, which was trained with it; leave it out"
        elif key not in free:
            remedy = did_you_mean(key, free) or f" it takes {', '.join(sorted(free))}"
            yield f"sampler.{key}={as_written(value)}: no argument of {CLASSES[sampler.name][1]};{remedy}"


def package_mistakes(name: str, given: str) -> Iterator[str]:
    """A line if the sampler needs a package that is not installed; `given` is what the user wrote."""
    package = NEEDS.get(name)
    if package and importlib.util.find_spec(package) is None:
        yield f"{given}: {name} needs {package}, which is not installed; pip install 'ddpm-train[samplers]'"
