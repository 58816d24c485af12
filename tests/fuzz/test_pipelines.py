"""A pipeline from elsewhere samples, or is refused in one line, whatever stands in its files."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

import ddpm_train
from ddpm_train.config.mistakes import Mistakes

JSON = (
    *("model_index.json", "training.json", "unet/config.json", "scheduler/scheduler_config.json"),
    "unet/diffusion_pytorch_model.safetensors.index.json",
)
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
VALUES: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 3, 1.5, 1e-300, 1e300, 10**5, 10**12, 10**400, float("nan"), float("-inf")),
    *("", "x", "8", "../../x", "\x1b[2Jerror: x\n", "x" * 10**6, [], [0], [[]], ["x"], [None, None], [1, "x"]),
    *([0.5], [0.1] * 1000, [1] * 10**5, [8, 16], [10**9, 10**9], {}, {"x": {}}, {"_class_name": "UNet2DModel"}),
    *("UNet2DConditionModel", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "ScoreSdeVePipeline"),
]
FILES = (
    *(b"", b"null", b"5", b'"x"', b"[]", b"{}", b"{", b"[" * 10**5, b'{"a":' * 10**5, b"\xff\xfe", b"\0" * 100),
    *(b'{"_class_name": "UNet2DModel", "_class_name": []}', b'{"weight_map": [], "metadata": {}}', b"\x80\x04N."),
)
NEW_KEYS = (
    *("quantization_config", "auto_map", "_use_default_values", "_name_or_path", "num_class_embeds", "vae"),
    *("trained_betas", "num_train_timesteps", "solver_order", "steps_offset", "variance_type", "unknown"),
)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same small model as diffusers stores it with several schedules; the last in shards."""
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    )
    folder = tmp_path_factory.mktemp("pipelines")
    for name, kind in (("ddpm", DDPMScheduler), ("ddim", DDIMScheduler), ("dpm", DPMSolverMultistepScheduler)):
        DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder / name)
        kind().save_pretrained(folder / name / "scheduler")
        (folder / name / "training.json").write_text(json.dumps({"step": 7, "weights": "ema"}))
    shutil.copytree(folder / "ddpm", folder / "shards")
    (folder / "shards" / WEIGHTS).unlink()
    unet.save_pretrained(folder / "shards/unet", max_shard_size="60KB")
    return sorted(folder.iterdir())


def change_value(random: Random, folder: Path) -> None:
    path = random.choice([folder / name for name in JSON if (folder / name).is_file()])
    values = json.loads(path.read_text())
    within = values.get("weight_map", values)
    key = random.choice([*within, *NEW_KEYS])
    if random.random() < 0.1:
        within.pop(key, None)
    else:
        within[key] = random.choice(VALUES)
    path.write_text(json.dumps(values))


def change_file(random: Random, folder: Path) -> None:
    path = random.choice([path for path in sorted(folder.rglob("*")) if path.is_file()])
    data = bytearray(path.read_bytes())
    path.unlink()
    kind = random.choice(["gone", "pipe", "folder", "link", "device", "sparse", "cut", "bits", "other", "other"])
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("link", "device"):
        path.symlink_to("/dev/zero" if kind == "device" else "nowhere")
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 2**40)
    elif kind == "cut":
        path.write_bytes(data[: random.randrange(len(data))])
    elif kind == "bits":
        for _ in range(3):
            data[random.randrange(min(len(data), 5000))] ^= 1 << random.randrange(8)
        path.write_bytes(data)
    elif kind == "other":
        path.write_bytes(random.choice(FILES))


def change_tensor(random: Random, folder: Path) -> None:
    path = random.choice(sorted((folder / "unet").glob("*.safetensors")))
    tensors = load_file(path)
    name = random.choice(sorted(tensors))
    tensor = tensors.pop(name)
    changes: list[Callable[[], torch.Tensor]] = [
        lambda: tensor[..., :-1].contiguous(),
        lambda: tensor[None],
        lambda: torch.zeros(0),
        lambda: tensor.to(random.choice([torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])),
        lambda: tensor.half(),
    ]
    if random.random() < 0.8:
        tensors[name] = random.choice(changes)()
    if random.random() < 0.2:
        tensors["more"] = torch.ones(2)
    save_file(tensors, path, metadata={"format": "pt"})


def pickled(random: Random, folder: Path) -> None:
    """Weights as they were stored of old, and what else a pickle can be."""
    path = folder / WEIGHTS
    tensors = load_file(path) if path.is_file() else {}
    path.unlink(missing_ok=True)
    what = random.choice([tensors, list(tensors), 5, {1: 2}, dict.fromkeys(tensors, 3), {"state_dict": tensors}])
    torch.save(what, path.with_suffix(".bin"))


@pytest.mark.fuzz(small=40, large=300)
def test_a_pipeline(random: Random, pipelines: list[Path], tmp_path: Path) -> None:
    folder = shutil.copytree(random.choice(pipelines), tmp_path / "pipeline")
    damages = [change_value, change_value, change_value, change_file, change_tensor, pickled]
    for damage in random.choices(damages, k=random.choice([1, 1, 1, 2, 5])):
        try:
            damage(random, folder)
        except Exception:
            continue  # what it would damage is damaged already
    try:
        images = ddpm_train.load(folder).sample(2, num_inference_steps=2, sampler="ddim", output="np")
    except Mistakes as mistakes:
        assert mistakes.lines and all(line.isprintable() and len(line) < 2000 for line in mistakes.lines)
    else:
        assert images.shape == (2, 8, 8, 3) and images.std() > 0
