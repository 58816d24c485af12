"""The prepared images in the device's own memory, from where a batch is one gather."""

import torch
from torch import Tensor

from ddpm_train.data.decode import CENTRE, crop_origin
from ddpm_train.data.images import Images

# Of the memory that is free before training starts; the network needs the rest.
_SHARE_OF_FREE = 0.25
_CHUNK_BYTES = 2**28


def fits(images: Images, device: torch.device) -> bool:
    """Whether `dataset.device_cache=auto` puts the images onto this device: a GPU with room for them."""
    if device.type != "cuda" or not images.cached:
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return images.prepared.pixels().nbytes <= _SHARE_OF_FREE * free


class DeviceImages:
    """All images of a set, uint8, on a device: what `Images.load` gives, without the host.

    Args:
        images: from a cache on the disk.
    """

    def __init__(self, images: Images, device: torch.device) -> None:
        pixels = images.prepared.pixels()
        self._pixels = torch.empty(len(pixels), dtype=torch.uint8, device=device)
        for start in range(0, len(pixels), _CHUNK_BYTES):
            chunk = torch.tensor(pixels[start : start + _CHUNK_BYTES])
            self._pixels[start : start + len(chunk)] = chunk.to(device)
        self._offsets = torch.from_numpy(images.offsets[images.rows]).to(device)
        self._sizes = torch.from_numpy(images.prepared.sizes[images.rows]).to(device, torch.int64)
        self._resolution = images.resolution
        self._channels = torch.arange(images.decoder.channels, device=device)
        self._rows = torch.arange(images.resolution[0], device=device)
        self._columns = torch.arange(images.resolution[1], device=device)

    def load(self, numbers: Tensor, crops: Tensor | None = None) -> Tensor:
        """Images by number.

        Args:
            numbers: int64 [B] in [0, len(images)), on the device.
            crops: int64 [B, 2] in [0, 2**32), on the device: where each random crop lies; None takes the centre.

        Returns:
            uint8 [B, C, H, W].
        """
        height, width = self._sizes[numbers].unbind(1)
        vertical, horizontal = (CENTRE, CENTRE) if crops is None else crops.unbind(1)
        top = crop_origin(vertical, height, self._resolution[0])
        left = crop_origin(horizontal, width, self._resolution[1])
        rows = (top[:, None] + self._rows) * width[:, None]
        columns = left[:, None] + self._columns
        planes = self._offsets[numbers][:, None] + self._channels * (height * width)[:, None]
        places = planes[:, :, None, None] + rows[:, None, :, None] + columns[:, None, None, :]
        return self._pixels[places]
