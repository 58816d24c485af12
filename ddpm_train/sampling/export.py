"""A model as an ONNX file, with a sampler beside it that needs no torch."""

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.models.load import Model
from ddpm_train.sampling.recipe import resolution_mistakes
from ddpm_train.system.failures import first_line
from ddpm_train.system.files import replace_file, write_atomic

MODEL, SAMPLER = "model.onnx", "sample.py"
TOLERANCE = 1e-4
_OPSET = 18  # the oldest that torch's exporter writes without converting
_NO_LIMIT = 1e9


class _Prediction(nn.Module):
    """The UNet without the variance that it may have learned."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        prediction: Tensor = self.unet(x_t, timesteps).sample[:, : x_t.shape[1]]
        return prediction


@torch.no_grad()
def export_onnx(model: Model, folder: Path, resolution: tuple[int, int] | None = None) -> float:
    """Write model.onnx and sample.py into a folder.

    The network takes `x_t`, float32 [B, C, H, W], and `timesteps`, int64 [B], and gives `prediction` [B, C, H, W], for
    any B. Its metadata `ddpm` is JSON: alphas_cumprod, prediction_type, and to which [-clip, clip] x_0 is clipped.

    Args:
        resolution: (height, width); None: what the model was made for.

    Returns:
        By how much predictions of ONNX Runtime differ from those of the model at most, for several batch sizes.

    Raises:
        Mistakes: the model has no such resolution, torch cannot export it, or they differ by more than `TOLERANCE`.
    """
    if lines := list(resolution_mistakes(model, resolution)):
        raise Mistakes(*lines)
    if model.values is not None:
        raise Mistakes(
            "format=onnx: the sampler beside the network writes pictures of 8 bits, and this model makes arrays"
        )
    shape = (model.unet.config.in_channels, *(resolution or model.sample_size or ()))
    network = _Prediction(model.unet)
    folder.mkdir(parents=True, exist_ok=True)
    with replace_file(folder / MODEL) as staging:
        _write(network, shape, _about(model), staging)
        difference = max(_difference(network, staging, shape, batch) for batch in (1, 3))
        if not difference <= TOLERANCE:
            raise Mistakes(f"format=onnx: ONNX Runtime's predictions differ by {difference:.2g} from the pipeline's")
    write_atomic(folder / SAMPLER, Path(__file__).with_name("onnx_sampler.py").read_bytes())
    return difference


def _about(model: Model) -> dict[str, Any]:
    config = model.noise_scheduler.config
    return {
        "alphas_cumprod": model.noise_scheduler.alphas_cumprod.tolist(),
        "prediction_type": config.prediction_type,
        "clip": config.clip_sample_range if config.clip_sample else _NO_LIMIT,
    }


def _inputs(shape: tuple[int, ...], batch: int, num_train_timesteps: int = 1000) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    timesteps = torch.randint(num_train_timesteps, (batch,), generator=generator)
    return torch.randn(batch, *shape, generator=generator), timesteps


def _write(network: nn.Module, shape: tuple[int, ...], about: dict[str, Any], path: Path) -> None:
    batch = {0: torch.export.Dim("batch")}
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                _inputs(shape, 2),
                dynamo=True,
                dynamic_shapes=(batch, batch),
                input_names=["x_t", "timesteps"],
                output_names=["prediction"],
                opset_version=_OPSET,
            )
            program.model.metadata_props["ddpm"] = json.dumps(about)
            program.save(path)
    except Exception as error:  # torch's exporter refuses by many kinds
        raise Mistakes(f"format=onnx: torch cannot export this network: {first_line(error)}") from None


def _difference(network: nn.Module, path: Path, shape: tuple[int, ...], batch: int) -> float:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it would tell its makers of each use; read at its import
    import onnxruntime  # an extra

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x_t, timesteps = _inputs(shape, batch)
    (theirs,) = session.run(None, {"x_t": x_t.numpy(), "timesteps": timesteps.numpy()})
    return (network(x_t, timesteps) - torch.from_numpy(theirs)).abs().max().item()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter prints and logs of its own passes."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
