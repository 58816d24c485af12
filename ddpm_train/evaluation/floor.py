"""What of the held-out loss no model could remove, and how much of the rest is learned.

Of a finite set of images the denoiser with the least loss is known in closed form (Karras et al. 2022, appendix B;
arXiv 2506.13763): its estimate of x_0 is the mean of the images, weighted by how likely each of them gave x_t. It has
learned the images by heart: on those images nothing does better, and its samples are copies of them.

Its loss on its own images bounds the held-out loss of every model from below. The least loss is concave in the
distribution of the images (Wu & Verdú 2012, for the minimum mean squared error), so that a sample of them has, on
average, no more than what they were drawn from. The same holds for fewer images: a bound of some is a bound of all.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_train.config.losses import Loss
from ddpm_train.diffusion.objective import Objective, to_model_range
from ddpm_train.evaluation import bootstrap
from ddpm_train.evaluation.held_out import loss_by_timestep
from ddpm_train.evaluation.measure import ModelInputs, Result
from ddpm_train.evaluation.real_images import RealImages
from ddpm_train.seeding import Purpose, integers

# Noised training images that the bound is a mean over.
NUM_NOISED = 2048
# The most held-out images at whose noise it is measured, and numbers in the images that it knows.
_MOST_HELD_OUT, _MOST_VALUES = 2048, 2**26
_BATCH_VALUES = 2**22  # weights of images that are held at once
_PARTS = 10  # of the schedule, in which the losses are told


@dataclass(frozen=True)
class Floor:
    """Losses at the noise and timesteps of some held-out images; see `held_out_losses`.

    Attributes:
        held_out: the numbers of those images, int64 [S].
        timesteps: of each, int64 [S].
        least: no model's loss there is less, averaged over images: float64 [S].
        fewer: the same of half of the images that it knows, which tells how much more images would raise it.
        copier: the loss, on the held-out images themselves, of the denoiser that has learned the training images by
            heart, float64 [S].
        naive: likewise of one that knows their mean and their spread alone.
        num_images: how many training images were taken.
    """

    held_out: Tensor
    timesteps: Tensor
    least: Tensor
    fewer: Tensor
    copier: Tensor
    naive: Tensor
    num_images: int

    def learned(self, losses: Tensor) -> tuple[float, tuple[float, float]]:
        """The share of what can be learned that a model has learned, from the losses of all held-out images, [N].

        0 is the loss of the naive denoiser, 1 the bound, which no model reaches: the share is at least this. And its
        interval, which covers the choice of held-out images and of their noise.
        """
        gained = self.naive - losses.cpu().double()[self.held_out]
        within_reach = self.naive - self.least
        weights = bootstrap.weights(bootstrap.new_rng(), len(gained)).T
        resampled = (weights @ gained) / (weights @ within_reach)
        share = float(gained.sum() / within_reach.sum())
        return share, bootstrap.ends(share, resampled.numpy())

    def results(self, losses: Tensor, num_train_timesteps: int) -> Iterator[Result]:
        """What a run records of a model with these losses of all held-out images, [N]."""
        share, interval = self.learned(losses)
        own = {"loss": losses[self.held_out.to(losses.device)], "least": self.least, "copier": self.copier}
        means = {name: float(values.double().mean()) for name, values in own.items()}
        yield "held_out_loss_floor", means["least"]
        yield "learned", share
        parts = {
            name: loss_by_timestep(values, self.timesteps, num_train_timesteps, _PARTS) for name, values in own.items()
        }
        yield (
            "floor",
            {
                **means,
                "least_of_half": float(self.fewer.mean()),
                "naive": float(self.naive.mean()),
                "learned": share,
                "interval": list(interval),
                "num_images": self.num_images,
                "by_timestep": {
                    "edges": parts["loss"]["edges"],
                    **{name: part["loss"] for name, part in parts.items()},
                },
            },
        )


def has_floor(objective: Objective) -> bool:
    """Whether the best estimate is a mean: of squared errors alone."""
    return type(objective.loss).error is Loss.error


@torch.no_grad()
def measure_floor(inputs: ModelInputs, training: RealImages) -> Floor:
    """The bound, at the noise of at most 2,048 held-out images. All processes do this together; deterministic.

    Args:
        training: the training images; of many so many are taken that they hold 2^26 numbers. Where training mirrors
            them, their mirror images are known, too.

    Raises:
        Stopped: all processes, when one of them was asked to stop.
    """
    objective, held_out, device = inputs.objective, inputs.held_out.images, inputs.unet.device
    shape = (held_out.decoder.channels, *held_out.resolution)
    known = training.at_most(max(2, _MOST_VALUES // math.prod(shape))).images
    images = to_model_range(known.load(range(len(known))).to(device))
    if training.dataset.random_flip:
        images = torch.stack((images, images.flip(-1)), dim=1).flatten(0, 1)
    # Half of the images must be met by noised images of that half.
    best, half = _Denoiser(objective, images), _Denoiser(objective, images[: (len(images) + 1) // 2])
    chosen = torch.linspace(0, len(held_out) - 1, min(len(held_out), _MOST_HELD_OUT)).long()
    draws = math.ceil(NUM_NOISED / len(chosen))  # training images for each noise

    def measure(items: range, poll: Callable[[], None]) -> Tensor:
        poll()
        positions = chosen[items.start : items.stop].to(device)
        purposes = (Purpose.HELD_OUT_NOISE, Purpose.HELD_OUT_TIMESTEP)
        noise, timesteps = objective.draw(shape, positions, purposes)
        x_0 = to_model_range(held_out.load(positions.tolist()).to(device))
        places = positions[:, None] * draws + torch.arange(draws, device=device)
        drawn = integers(inputs.seed, Purpose.FLOOR_IMAGE, places.flatten(), len(images))
        repeated = (noise.repeat_interleave(draws, 0), timesteps.repeat_interleave(draws, 0))
        least = best.losses(images[drawn], *repeated)
        fewer = half.losses(images[drawn // 2], *repeated)
        columns = [values.unflatten(0, (-1, draws)).mean(dim=1) for values in (least, fewer)]
        columns += [best.losses(x_0, noise, timesteps), best.naive_losses(x_0, noise, timesteps)]
        columns.append(timesteps.float())
        return torch.stack(columns, dim=1)

    batch_size = max(1, _BATCH_VALUES // (draws * len(images)))
    filled = inputs.workers.fill(torch.zeros(len(chosen), 5, device=device), measure, batch_size)
    least, fewer, copier, naive, timesteps = filled.cpu().double().unbind(dim=1)
    return Floor(chosen, timesteps.long(), least, fewer, copier, naive, len(known))


class _Denoiser:
    """The one with the least loss on these images, float32 [N, C, H, W] in [-1, 1]."""

    def __init__(self, objective: Objective, images: Tensor) -> None:
        self._objective = objective
        self.images = images
        # Less their mean, they are smaller numbers, of which less is lost to rounding.
        self._mean = images.mean(dim=0)
        self._centred = (images - self._mean).flatten(1)
        self._squares = self._centred.square().sum(dim=1)

    def losses(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """float32 [B], as of a model; x_0 and noise float32 [B, C, H, W], timesteps int64 [B]."""

        def estimate(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
            # In place, since this is what takes memory.
            logits = (alpha / sigma**2 * x) @ self._centred.T
            logits.addcmul_((alpha / sigma) ** 2, self._squares, value=-0.5)
            return logits.softmax(dim=1) @ self._centred

        return self._losses(estimate, x_0, noise, timesteps)

    def naive_losses(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The same of who takes the images for noise of their own spread around their mean."""
        variance = self._centred.square().mean()

        def estimate(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
            return alpha * variance / (alpha**2 * variance + sigma**2) * x

        return self._losses(estimate, x_0, noise, timesteps)

    def _losses(
        self, estimate: Callable[[Tensor, Tensor, Tensor], Tensor], x_0: Tensor, noise: Tensor, timesteps: Tensor
    ) -> Tensor:
        """Of an estimate of x_0, less the mean, from x_t, less the mean's part in it; both flat, [B, C H W]."""
        x_t = self._objective.noise_scheduler.add_noise(x_0, noise, timesteps)
        alpha_squared = self._objective.noise_scheduler.alphas_cumprod[timesteps][:, None, None, None]
        alpha, sigma = alpha_squared.sqrt(), (1 - alpha_squared).sqrt()
        centred = (x_t - alpha * self._mean).flatten(1)
        found = estimate(centred, alpha.flatten(1), sigma.flatten(1)).unflatten(1, x_0.shape[1:]) + self._mean
        prediction = self._objective.target(found, (x_t - alpha * found) / sigma, timesteps)
        return self._objective(prediction, x_0, noise, timesteps)
