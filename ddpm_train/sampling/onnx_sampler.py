"""Writes images of model.onnx beside this file: python sample.py [COUNT] [STEPS] [SEED]; needs numpy, onnxruntime."""

import argparse
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at its import
import onnxruntime


def sample(session: onnxruntime.InferenceSession, x: np.ndarray, steps: int) -> np.ndarray:
    """DDIM (Song et al. 2021) from noise x, float32 [B, C, H, W]; uint8 of the same shape."""
    about = json.loads(session.get_modelmeta().custom_metadata_map["ddpm"])
    signal = np.array([*about["alphas_cumprod"], 1.0], np.float32)  # the last, number -1: without noise
    steps = min(steps, len(signal) - 1)  # there are no more timesteps
    times = np.arange(len(signal) - 1, 0, -(len(signal) - 1) / steps).round().astype(int) - 1
    for now, then in zip(times, [*times[1:], -1], strict=True):
        alpha, sigma = np.sqrt(signal[now]), np.sqrt(1 - signal[now])
        x_0 = session.run(None, {"x_t": x, "timesteps": np.full(len(x), now)})[0]
        if about["prediction_type"] == "epsilon":
            x_0 = (x - sigma * x_0) / alpha
        elif about["prediction_type"] == "v_prediction":
            x_0 = alpha * x - sigma * x_0
        noise = (x - alpha * x_0) / sigma
        x = np.sqrt(signal[then]) * x_0.clip(-about["clip"], about["clip"]) + np.sqrt(1 - signal[then]) * noise
    return ((x / 2 + 0.5).clip(0, 1) * 255).round().astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    """Of uint8 [C, H, W], C 1, 3 or 4."""
    channels, height, width = image.shape
    rows = np.pad(image.transpose(1, 2, 0).reshape(height, -1), ((0, 0), (1, 0)))
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = [b"IHDR" + header, b"IDAT" + zlib.compress(rows.tobytes()), b"IEND"]
    framed = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name, least, default in (("count", 1, 16), ("steps", 1, 50), ("seed", 0, 0)):
        parser.add_argument(name, nargs="?", type=int, default=default, help=f"{least} or more; {default} by default")
    given = parser.parse_args()
    count, steps, seed = given.count, given.steps, given.seed
    if count < 1 or steps < 1 or seed < 0:
        parser.error("count and steps must be above 0, and seed not below 0")
    here = Path(__file__).resolve().parent
    network = onnxruntime.InferenceSession(here / "model.onnx", providers=onnxruntime.get_available_providers())
    shape = (count, *network.get_inputs()[0].shape[1:])
    made = sample(network, np.random.default_rng(seed).standard_normal(shape, np.float32), steps)
    for index, image in enumerate(made):
        Path(f"{index:06}.png").write_bytes(png(image))
