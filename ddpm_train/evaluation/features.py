"""Networks that turn images into features: torch-fidelity's, and one whose weights come in a package."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP, build_model
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from ddpm_train.config.metrics import OF_PIXELS
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.diffusion.objective import to_model_range
from ddpm_train.evaluation.weights import dinov2_network, published_sha256, read_weights, weights_file
from ddpm_train.evaluation.workers import BATCH_IMAGES
from ddpm_train.system.files import sha256_file
from ddpm_train.system.ranks import everywhere

# Of statistics of pixels. Power below that of noise of half a level of 8 bits is nothing. The weight makes both kinds
# of features about as large as KID's kernel, a cube of their product, needs them.
_LEVELS, _LEAST_POWER, _WEIGHT = 32, (1 / 255) ** 2, 0.1


class Extractor:
    """Images -> features.

    Attributes:
        dimension: how many features an image has.
        weights_hash: SHA-256 of the weights file.
        warning: why its numbers compare with nobody else's; None: it has the published weights.
    """

    def __init__(self, name: str, network: nn.Module, classify: nn.Linear | None, weights: Path) -> None:
        self.name = name
        self.weights_hash = sha256_file(weights)
        published = self.weights_hash.startswith(published_sha256(name))
        self.warning = None if published else f"{weights} are not {name}'s published weights"
        self._network = network.requires_grad_(False).eval()
        self._classify = classify
        self.dimension = self(torch.zeros(1, 3, 8, 8, dtype=torch.uint8, device=self.device)).shape[1]

    @property
    def device(self) -> torch.device:
        return next(self._network.parameters()).device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W], C 1 (grey), 3 (RGB) or 4 (RGBA, composed over white) -> float32 [N, dimension]."""
        with _exact_float32():
            batches = to_rgb(images.to(self.device)).split(BATCH_IMAGES)
            return torch.cat([self._network(batch)[0] for batch in batches])

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """float32 [N, dimension] -> [N, classes], as the Inception score takes them; only from a classifier."""
        assert self._classify is not None, "the checks see to it"
        layer = self._classify.cpu()
        # Inception's logits leave out the bias (torch-fidelity's `logits_unbiased`, as in the original).
        return functional.linear(features, layer.weight, layer.bias if self.name == "efficientnet_lite0" else None)


class EfficientNetLite0(nn.Module):
    """The pooled features of EfficientNet-Lite0 (Tan & Le 2019, trained on ImageNet), 1280 of them.

    Images are resized to 224 x 224 (bilinear, antialiased) and scaled to (x - 127) / 128.

    Args:
        weights: the state dict of `efficientnet_lite_pytorch`.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(weights)
        _speed_up(self.network.eval())

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """uint8 [N, 3, H, W] -> float32 [N, 1280]."""
        x = functional.interpolate(
            images.float(), size=(224, 224), mode="bilinear", align_corners=False, antialias=True
        )
        x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)
        return (self.network.extract_features(x).mean(dim=(2, 3)),)


class PixelStatistics(Extractor):
    """Features that need no network, of images of any channels and depth: of each channel how strong each frequency is,
    and how its numbers are distributed.

    The strengths are logarithms of the power spectrum, averaged over rings of equal frequency (radially averaged power
    spectrum); the distribution is the roots of the shares of `_LEVELS` equal parts of the range, whose distance is that
    of Hellinger.

    Args:
        shape: of an image, (C, H, W).
    """

    def __init__(self, shape: tuple[int, int, int], device: torch.device) -> None:
        channels, height, width = shape
        self.name, self.weights_hash, self.warning = OF_PIXELS, f"{_LEVELS} levels", None
        self._classify = None
        frequencies = torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)
        radius = torch.hypot(*torch.broadcast_tensors(*frequencies))
        self._rings = (radius * min(height, width)).round().long().flatten().to(device)
        self._num_rings = int(self._rings.max()) + 1
        self.dimension = channels * (self._num_rings - 1 + _LEVELS)

    @property
    def device(self) -> torch.device:
        return self._rings.device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W], or float32 in [-1, 1] -> float32 [N, dimension]."""
        x = to_model_range(images.to(self.device))
        power = torch.fft.fft2(x, norm="ortho").abs().square().flatten(2)
        sums = torch.zeros(*power.shape[:2], self._num_rings, device=self.device)
        sums = sums.index_add(2, self._rings, power) / torch.bincount(self._rings)
        levels = ((x + 1) * (_LEVELS / 2)).long().clamp(0, _LEVELS - 1).flatten(2)
        counts = torch.zeros(*power.shape[:2], _LEVELS, device=self.device)
        counts = counts.scatter_add(2, levels, torch.ones_like(power)) / power.shape[2]
        # Without the mean, which the distribution holds.
        strengths = _WEIGHT * torch.log1p(sums[..., 1:] / _LEAST_POWER)
        return torch.cat((strengths, counts.sqrt()), dim=2).flatten(1)


def open_extractor(
    name: str,
    weights: str | None,
    device: torch.device,
    *,
    shape: tuple[int, int, int] | None = None,
    key: str = "extractor",
) -> Extractor:
    """An extractor by its name in `EXTRACTORS`. All processes do this together.

    Args:
        weights: a file; None: those published, which are fetched once to where torch.hub keeps weights.
        shape: of an image, (C, H, W); only statistics of pixels depend on it.
        key: how the section of the config is called, for messages.

    Raises:
        Mistakes: the weights are not here and cannot be fetched, or they are not this extractor's.
    """
    if name == OF_PIXELS:
        assert shape is not None
        return PixelStatistics(shape, device)
    return everywhere(lambda: _open_extractor(name, weights, device, key), fetches=True)


def _open_extractor(name: str, weights: str | None, device: torch.device, key: str) -> Extractor:
    path = weights_file(name, weights, key)
    tensors = read_weights(name, path, key)
    try:
        network = _build(name, tensors, key)
    except (RuntimeError, KeyError, ValueError) as error:
        raise Mistakes(f"{key}.weights={path}: not the weights of {name}: {str(error).splitlines()[0]}") from None
    classify = network.network._fc if name == "efficientnet_lite0" else getattr(network, "fc", None)
    return Extractor(name, network.to(device), classify, path)


def to_rgb(images: Tensor) -> Tensor:
    """uint8 [N, 1, 3 or 4, H, W] -> uint8 [N, 3, H, W]; what is transparent is composed over white."""
    if images.shape[1] == 1:
        return images.expand(-1, 3, -1, -1)
    if images.shape[1] == 4:
        colour, alpha = images[:, :3].float(), images[:, 3:].float() / 255
        return (colour * alpha + 255 * (1 - alpha)).round().to(torch.uint8)
    return images


def _build(name: str, weights: dict[str, Tensor], key: str) -> nn.Module:
    if name == "efficientnet_lite0":
        return EfficientNetLite0(weights)
    if name.startswith("clip"):
        clip = build_model(dict(weights), torch.float32)
        return _around(clip, FeatureExtractorCLIP, name, "clip", resolution=clip.visual.input_resolution)
    if name.startswith("dinov2"):
        dinov2 = dinov2_network(name, key)
        dinov2.load_state_dict(weights)
        return _around(dinov2, FeatureExtractorDinoV2, name, "dinov2")
    # torch-fidelity unpickles the file that it is given in full: it gets one of our own making.
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "weights.pth")
        torch.save(weights, copy)
        return FeatureExtractorInceptionV3(name, ["2048"], feature_extractor_weights_path=copy)


def _around(model: nn.Module, kind: Any, name: str, feature: str, **attributes: Any) -> nn.Module:
    """torch-fidelity's extractor class `kind` around a model, without its constructor, which would fetch another."""
    extractor = kind.__new__(kind)
    FeatureExtractorBase.__init__(extractor, name, [feature])
    vars(extractor).update(attributes, feature_extractor_internal_dtype=torch.float32)
    extractor.model = model
    return extractor


def _speed_up(network: EfficientNet) -> None:
    """Batch norms into the convolutions before them, symmetric padding into the convolution: three times as fast."""
    pairs = {"_conv_stem": "_bn0", "_conv_head": "_bn1"}
    pairs_of_blocks = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
    for module, names in [(network, pairs), *((block, pairs_of_blocks) for block in network._blocks)]:
        for convolution_name, norm_name in names.items():
            if not hasattr(module, convolution_name):
                continue  # the first block does not expand
            convolution = fuse_conv_bn_eval(getattr(module, convolution_name), getattr(module, norm_name))
            setattr(module, convolution_name, convolution)
            setattr(module, norm_name, nn.Identity())
            left, right, top, bottom = getattr(convolution.static_padding, "padding", (0, 0, 0, 0))
            if left == right == top == bottom:
                convolution.padding, convolution.static_padding = (top, left), nn.Identity()
    network.to(memory_format=torch.channels_last)


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Products in float32 proper, where a GPU would otherwise round their factors to TF32."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
