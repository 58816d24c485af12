"""What a training step minimises."""

from collections.abc import Mapping

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from ddpm_train.config.losses import Loss
from ddpm_train.config.noise import PLAIN_NOISE, Noise
from ddpm_train.diffusion.noise import nearest, signal_to_noise
from ddpm_train.diffusion.timesteps import Timesteps
from ddpm_train.seeding import Purpose, bits_for_normal, draw, to_normal


def to_model_range(images: Tensor) -> Tensor:
    """uint8 [B, C, H, W] in [0, 255] -> float32 in [-1, 1]; what is that already stays, see `data.images.Images`."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


class Objective:
    """The denoising loss (Ho et al. 2020, eq. 14, with weights for each timestep).

    Args:
        noise_scheduler: gives x_t and the target of `prediction_type`. Its `alphas_cumprod` lie on the device.
        loss: the error of a prediction, and the weight of each timestep.
        seed: with a sample's position it decides the sample's noise and timestep.
        timesteps: how often each is drawn; None: all alike, as also for a loss that is to be compared with others.
        noise: what becomes of the noise that is drawn; plain for such a loss, too.
    """

    def __init__(
        self,
        noise_scheduler: DDPMScheduler,
        loss: Loss,
        seed: int,
        timesteps: Timesteps | None = None,
        noise: Noise = PLAIN_NOISE,
    ) -> None:
        self.noise_scheduler = noise_scheduler
        self.loss = loss
        self.weights = loss.weights(signal_to_noise(noise_scheduler), noise_scheduler.config.prediction_type)
        self.seed = seed
        self.noise = noise
        self.timesteps = timesteps or Timesteps(noise_scheduler.config.num_train_timesteps)
        if self.timesteps.importance is not None:
            self.weights = self.weights * self.timesteps.importance

    def compile(self) -> None:
        """Fuse the drawing of noise, some 90 small operations, into few."""
        self.draw = torch.compile(self.draw, dynamic=False)  # type: ignore[method-assign]

    def interpret(self) -> None:
        """Undo `compile`."""
        del self.draw  # the method is in its place again

    def draw(
        self,
        shape: tuple[int, ...],
        positions: Tensor,
        purposes: tuple[Purpose, Purpose] = (Purpose.NOISE, Purpose.TIMESTEP),
        also: Mapping[Purpose, int] | None = None,
    ) -> tuple[Tensor, ...]:
        """All random numbers of the images at `positions`, in one pass: a function of seed and position alone.

        Args:
            shape: of an image, (C, H, W).
            positions: int64 [B].
            purposes: of the noise and of the timesteps.
            also: what else to draw, see `seeding.draw`: integers for each purpose.

        Returns:
            Noise, float32 [B, C, H, W]; timesteps, int64 [B] in [0, T); and of each purpose of `also` int64 [B, count].
        """
        counts = {purposes[0]: bits_for_normal(shape), purposes[1]: 1, **(also or {})}
        for_noise, for_timesteps, *others = draw(self.seed, positions, counts)
        return to_normal(for_noise, shape), self.timesteps(for_timesteps[:, 0], positions), *others

    def also(self, shape: tuple[int, ...]) -> dict[Purpose, int]:
        """What `noises` needs drawn besides, for images of this shape, (C, H, W): integers for each purpose."""
        count, others = bits_for_normal(shape), self.noise.nearest_of - 1
        counts = {Purpose.OTHER_NOISE: others * count, Purpose.PERTURBATION: count if self.noise.perturbation else 0}
        return {purpose: count for purpose, count in counts.items() if count}

    def noises(self, images: Tensor, noise: Tensor, drawn: Mapping[Purpose, Tensor]) -> tuple[Tensor, Tensor]:
        """The noise to train these images with, and the noise that their x_t have, float32 [B, C, H, W] both.

        Args:
            images: as they will be seen, uint8 [B, C, H, W], or float32 in [-1, 1].
            noise: drawn for them, float32 [B, C, H, W].
            drawn: what was drawn for the purposes of `also`.
        """
        shape = tuple(noise.shape[1:])
        if (others := drawn.get(Purpose.OTHER_NOISE)) is not None:
            each = others.reshape(-1, bits_for_normal(shape))
            candidates = torch.cat((noise[:, None], to_normal(each, shape).unflatten(0, (len(noise), -1))), dim=1)
            noise = nearest(candidates, images)
        if (xi := drawn.get(Purpose.PERTURBATION)) is None:
            return noise, noise
        return noise, noise + self.noise.perturbation * to_normal(xi, shape)

    def target(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the model should predict, [B, C, H, W]: the noise, v (Salimans & Ho 2022, appendix D), or x_0."""
        prediction_type = self.noise_scheduler.config.prediction_type
        if prediction_type == "epsilon":
            return noise
        return self.noise_scheduler.get_velocity(x_0, noise, timesteps) if prediction_type == "v_prediction" else x_0

    def __call__(self, prediction: Tensor, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The loss of each image, float32 [B], given the model's prediction for it, [B, C, H, W]."""
        error = self.loss.error(prediction.float(), self.target(x_0, noise, timesteps))
        return error * self.weights[timesteps]

    def balanced(self, losses: Tensor, uncertainty: Tensor | None, timesteps: Tensor) -> Tensor:
        """What is minimised of the losses of each image, float32 [B]: loss / exp(u) + u (Karras et al. 2024).

        The best u at a timestep is the logarithm of the mean loss there, so that each timestep counts alike in the end,
        whatever the weights of the loss. Importance weights, which undo how often a timestep is drawn, still count.

        Args:
            uncertainty: u, float32 [B]; None: the losses themselves are minimised.
        """
        if uncertainty is None:
            return losses
        importance = self.timesteps.importance
        return losses / uncertainty.exp() + (uncertainty if importance is None else uncertainty * importance[timesteps])

    def per_image(self, unet: nn.Module, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The same for a model: noise the images, predict, and compare."""
        x_t = self.noise_scheduler.add_noise(x_0, noise, timesteps)
        return self(unet(x_t, timesteps).sample, x_0, noise, timesteps)
