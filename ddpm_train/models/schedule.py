"""The noise schedule that a stored network was trained with."""

from pathlib import Path

from diffusers import DDPMScheduler, UNet2DModel

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.samplers import SAMPLERS
from ddpm_train.models.source import script_checkpoint
from ddpm_train.models.stored import SCHEDULE, SCHEDULER, read

# What a noise schedule like DDPM's is saved as. The "Parallel" ones are the same schedule.
_SCHEDULES = {*(entry.class_name for entry in SAMPLERS.values()), "DDPMParallelScheduler", "DDIMParallelScheduler"}


def stored_scheduler(pipeline: str, folder: Path, unet: UNet2DModel) -> tuple[DDPMScheduler, str]:
    """The noise schedule beside a UNet, and what had to be assumed about it."""
    places = [folder / "scheduler", folder, folder.parent / "scheduler"]
    if script_checkpoint(folder.parent):  # that script saves its pipeline beside its checkpoints
        places.append(folder.parent.parent / "scheduler")
    path = next((place / SCHEDULER for place in places if (place / SCHEDULER).exists()), None)
    if path is None:
        steps = unet.config.num_train_timesteps or 1000
        assumed = f"no scheduler beside it (assumed: beta_schedule=linear, {steps:,} steps, prediction_type=epsilon)"
        return DDPMScheduler(num_train_timesteps=steps), assumed
    config = read(f"pipeline={pipeline}", path, SCHEDULE)
    name = config.get("_class_name", "DDPMScheduler")
    if name not in _SCHEDULES:
        raise Mistakes(
            f"pipeline={pipeline}: its scheduler is a {name}, which has no noise schedule like DDPM's; "
            "use diffusers' own pipeline for it"
        )
    if config.pop("predict_epsilon", True) is False:  # until diffusers 0.3 this said what the model predicts
        config.setdefault("prediction_type", "sample")
    scheduler = DDPMScheduler.from_config(config)
    if len(scheduler.betas) != scheduler.config.num_train_timesteps:
        given = f"{len(scheduler.betas)} trained_betas for num_train_timesteps={scheduler.config.num_train_timesteps}"
        raise Mistakes(f"pipeline={pipeline}: its scheduler has {given}")
    return scheduler, ""
