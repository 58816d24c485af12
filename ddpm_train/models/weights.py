"""What a loaded network holds: finite numbers, and the hash of them and of what they mean."""

import hashlib
import json

import torch
from diffusers import DDPMScheduler, UNet2DModel

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.pixels import PixelValues


def refuse_non_finite(pipeline: str, unet: UNet2DModel) -> None:
    """Of a training that diverged, or a damaged file: images of it would be black, and scores not numbers."""
    bad = [name for name, tensor in unet.state_dict().items() if not bool(tensor.isfinite().all())]
    if bad:
        raise Mistakes(
            f"pipeline={pipeline}: its weights are no numbers: {len(bad)} of {len(unet.state_dict())} tensors hold NaN "
            f"or infinity, {bad[0]} first; give an earlier checkpoint or another model"
        )


def digest_of(unet: UNet2DModel, noise_scheduler: DDPMScheduler, values: PixelValues | None) -> str:
    digest = hashlib.sha256(repr(values).encode() if values else b"")
    for part in (unet, noise_scheduler):
        kept = {key: value for key, value in sorted(part.config.items()) if not key.startswith("_")}
        digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
    for name, tensor in sorted(unet.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]
