"""How training images are changed each time they are seen, so that few of them last longer."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from ddpm_train.config.parts import Real, Section
from ddpm_train.config.registry import Group

if TYPE_CHECKING:
    from torch import Tensor

AUGMENTATIONS: "Group[Augmentation]" = Group("augmentation")
Strength = Annotated[Real, Ge(0)]
Degrees = Annotated[Real, Ge(0), Le(180)]


@dataclass(frozen=True)
class Augmentation(Section):
    """What a step does to its images. Labels tell the network of it; a label of zeros means an image as it is.

    Attributes:
        num_draws: how many random integers an image takes.
        label_size: how many numbers say what was done to an image.
    """

    name: str
    num_draws: ClassVar[int] = 0
    label_size: ClassVar[int] = 0

    def channel_mistakes(self, channels: int) -> Iterator[str]:
        """A line for each key that cannot work for images of so many channels."""
        yield from ()

    def __call__(self, x_0: "Tensor", drawn: "Tensor") -> "tuple[Tensor, Tensor]":
        """Change each image of a batch as its own random integers say.

        Args:
            x_0: float32 [B, C, H, W] in [-1, 1].
            drawn: int64 [B, num_draws] in [0, 2**32).

        Returns:
            The images, float32 [B, C, H, W], which may leave [-1, 1]; and their labels, float32 [B, label_size].
        """
        return x_0, x_0.new_zeros(len(x_0), self.label_size)


@AUGMENTATIONS.choice
@dataclass(frozen=True)
class NoAugmentation(Augmentation):
    name: Literal["none"]


NONE = NoAugmentation("none")


@AUGMENTATIONS.choice
@dataclass(frozen=True)
class EDM(Augmentation):
    """What Karras et al. 2022, appendix F.2, do to some of the images. A part of strength 0 is left out.

    Attributes:
        probability: of each part by itself. Half of all images are mirrored, whatever it is.
        vertical_flip: half of the images that it is drawn for are turned upside down.
        scale: the standard deviation of the base-2 logarithm of the magnification.
        rotation: at most so many degrees, either way.
        stretch: the standard deviation of the base-2 logarithm of the magnification in one direction, which is undone
            across it.
        shift: the standard deviation in each direction, as a share of the image's side.
        brightness: the standard deviation of what is added to all channels.
        contrast: the standard deviation of the base-2 logarithm of a factor.
        hue: at most so many degrees, either way.
        saturation: the standard deviation of the base-2 logarithm of the factor of what is not grey.
    """

    name: Literal["edm"]
    probability: Annotated[Real, Ge(0), Le(1)]
    horizontal_flip: bool
    vertical_flip: bool
    scale: Strength
    rotation: Degrees
    stretch: Strength
    shift: Strength
    brightness: Strength
    contrast: Strength
    hue: Degrees
    saturation: Strength

    num_draws: ClassVar[int] = 20  # for 8 normal numbers, 4 uniform ones and, for each part, whether it is drawn
    label_size: ClassVar[int] = 14

    def channel_mistakes(self, channels: int) -> Iterator[str]:
        for key in ("brightness", "contrast", "hue", "saturation"):
            if (strength := getattr(self, key)) and channels != 3:
                yield (
                    f"augmentation.{key}={strength:g}: changes colours, which images with "
                    f"dataset.channels={channels} do not have; use 0"
                )

    def __call__(self, x_0: "Tensor", drawn: "Tensor") -> "tuple[Tensor, Tensor]":
        """Flips, geometry and colours, in this order. What has no part drawn keeps every bit."""
        labels = self.labels(drawn)
        mirrored, overturned = (labels[:, :2] > 0)[:, :, None, None, None].unbind(1)
        x_0 = x_0.flip(-1).where(mirrored, x_0) if self.horizontal_flip else x_0
        x_0 = x_0.flip(-2).where(overturned, x_0) if self.vertical_flip else x_0
        if self.scale or self.rotation or self.stretch or self.shift:
            x_0 = self._moved(x_0, *labels[:, 2:9, None, None].unbind(1)).where(_any(labels[:, 2:9]), x_0)
        if self.brightness or self.contrast or self.hue or self.saturation:
            x_0 = self._colored(x_0, *labels[:, 9:, None, None, None].unbind(1)).where(_any(labels[:, 9:]), x_0)
        return x_0, labels

    def labels(self, drawn: "Tensor") -> "Tensor":
        """What is done to each image, float32 [B, 14]: no two different things have the same label.

        In the authors' code two stretches share one: by w along an angle r, and by -w along r + 180 degrees. So here
        it is drawn along the axes and along the diagonals, which is w (cos 2r, sin 2r).
        """
        import torch

        from ddpm_train.seeding import to_normal

        scale, axes, diagonals, right, down, brightness, contrast, saturation = to_normal(drawn[:, :8], (8,)).unbind(1)
        mirror, overturn, angle, hue, *gates = (drawn[:, 8:].float() * 2.0**-32).unbind(1)
        geometry = (self.scale, self.rotation, self.stretch, self.shift)
        strengths = (*geometry, self.brightness, self.contrast, self.hue, self.saturation)
        scales, rotates, stretches, shifts, brightens, contrasts, tints, saturates = (
            gate < (self.probability if strength else 0.0) for gate, strength in zip(gates, strengths, strict=True)
        )
        angle = (2 * angle - 1) * math.radians(self.rotation) * rotates
        hue = (2 * hue - 1) * math.radians(self.hue) * tints
        stretches = stretches * math.sqrt(0.5)
        numbers = (
            *(mirror < 0.5 * self.horizontal_flip, overturn < 0.5 * self.vertical_flip * self.probability),
            *(scale * scales, angle.cos() - 1, angle.sin(), axes * stretches, diagonals * stretches),
            *(right * shifts, down * shifts, brightness * brightens, contrast * contrasts),
            *(hue.cos() - 1, hue.sin(), saturation * saturates),
        )
        return torch.stack([number.float() for number in numbers], dim=1)

    def _moved(
        self,
        x_0: "Tensor",
        scale: "Tensor",
        cos: "Tensor",
        sin: "Tensor",
        axes: "Tensor",
        diagonals: "Tensor",
        right: "Tensor",
        down: "Tensor",
    ) -> "Tensor":
        """Magnified, rotated, stretched and shifted, in this order; each pixel is interpolated from where it was.

        The labels are [B, 1, 1]. What lies beyond a border is mirrored there.
        """
        import torch

        height, width = x_0.shape[2:]
        x = torch.arange(0.5 - width / 2, width / 2, device=x_0.device) - right * (self.shift * width)
        y = torch.arange(0.5 - height / 2, height / 2, device=x_0.device)[:, None] - down * (self.shift * height)
        # The inverse of exp(k [[axes, diagonals], [diagonals, -axes]]): cosh(l) - sinh(l) / l k [[…]].
        k = self.stretch * math.log(2)
        length = (k * (axes * axes + diagonals * diagonals).sqrt()).clamp(min=1e-6)
        even, odd = length.cosh(), length.sinh() / length * k
        x, y = even * x - odd * (axes * x + diagonals * y), even * y - odd * (diagonals * x - axes * y)
        smaller = _exp2(-self.scale * scale)
        x, y = smaller * (x + cos * x + sin * y), smaller * (y + cos * y - sin * x)
        grid = torch.stack((x * (2 / width), y * (2 / height)), dim=-1)
        return torch.nn.functional.grid_sample(x_0, grid, "bicubic", "reflection", align_corners=False)

    def _colored(
        self,
        x_0: "Tensor",
        brightness: "Tensor",
        contrast: "Tensor",
        cos: "Tensor",
        sin: "Tensor",
        saturation: "Tensor",
    ) -> "Tensor":
        """Brighter, in contrast, of another hue and saturated, in this order. The labels are [B, 1, 1, 1]."""
        x_0 = (x_0 + self.brightness * brightness) * _exp2(self.contrast * contrast)
        grey = x_0.mean(dim=1, keepdim=True)
        color = x_0 - grey
        # Rotated about the axis of greys, v = (1, 1, 1) / sqrt(3): what is added is sin times the product v x color.
        turned = color + cos * color + sin * (color.roll(1, 1) - color.roll(-1, 1)) / math.sqrt(3)
        return grey + _exp2(self.saturation * saturation) * turned


def _exp2(exponent: "Tensor") -> "Tensor":
    """2 to this power. On a CPU torch's own `exp2` rounds by an image's place in the batch."""
    return (exponent * math.log(2)).exp()


def _any(labels: "Tensor") -> "Tensor":
    """Whether an image has a label that is not 0, [B, 1, 1, 1]."""
    return labels.any(dim=1)[:, None, None, None]
