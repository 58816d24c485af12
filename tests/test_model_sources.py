"""Folders and files that people have of a model, other than a run or a pipeline: they are loaded, or a line helps."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.models import pretrained
from ddpm_train.models.load import load_model
from ddpm_train.models.source import path_mistakes

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 12345\n"
WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture
def unet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UNet2DModel:
    """A small network; the working folder is empty."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks: dict[str, Any] = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    size = {"in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "layers_per_block": 1}
    return UNet2DModel(sample_size=8, norm_num_groups=4, **size, **blocks)


def mistake(pipeline: str) -> str:
    """The one line of `load_model`."""
    with pytest.raises(Mistakes) as raised:
        load_model(pipeline)
    (line,) = raised.value.lines
    return line


def starting_mistakes(source: str) -> list[str]:
    """Those of `model.pretrained`, before anything slow."""
    values = {"model": {"pretrained": source}, "dataset": {"channels": 1}, "output_dir": "new", "resume": "auto"}
    return pretrained.resolve(values, [])[1]


def test_a_checkpoint_of_the_official_script(unet: UNet2DModel, capfd: pytest.CaptureFixture[str]) -> None:
    """It holds the weights, their average and the optimizer; the script saves its pipeline beside it at the end."""
    average = EMAModel(unet.parameters(), use_ema_warmup=True, model_cls=UNet2DModel, model_config=unet.config)
    for step in (500, 1000):
        folder = Path(f"cats/checkpoint-{step}")
        unet.save_pretrained(folder / "unet")
        average.save_pretrained(folder / "unet_ema")
        (folder / "optimizer.bin").write_bytes(b"PK")
    line = "{}={}: no model_index.json in it, but a UNet further down; use {}=cats/checkpoint-{}/{}, {}".format
    for given, step in (("cats/checkpoint-500", 500), ("cats", 1000)):
        for key, found in (("pipeline", path_mistakes(given)), ("model.pretrained", starting_mistakes(given))):
            assert [*found] == [line(key, given, key, step, "unet_ema", "the average of its weights")]
    shutil.rmtree("cats/checkpoint-500/unet_ema")
    assert [*path_mistakes("cats/checkpoint-500")] == [
        line("pipeline", "cats/checkpoint-500", "pipeline", 500, "unet", "its weights")
    ]
    capfd.readouterr()
    chosen = "cats/checkpoint-1000/unet_ema"
    assert [*path_mistakes(chosen)] == starting_mistakes(chosen) == []
    model = load_model(chosen)
    assumed = "assumed: beta_schedule=linear, 1,000 steps, prediction_type=epsilon"
    assert model.label == f"{chosen}, no scheduler beside it ({assumed})"
    assert all(map(torch.equal, model.unet.parameters(), average.shadow_params))
    assert capfd.readouterr().err == ""  # the average's own settings stand in its config
    # Once the script is done, its schedule need not be assumed.
    DDPMPipeline(unet, DDPMScheduler(beta_schedule="squaredcos_cap_v2")).save_pretrained("cats")
    assert load_model(chosen).noise_scheduler.config.beta_schedule == "squaredcos_cap_v2"
    assert [*path_mistakes("cats")] == []


def test_weights_of_one_variant(unet: UNet2DModel) -> None:
    """Such as those of half precision, which are all that many repositories hold."""
    DDPMPipeline(unet.half(), DDPMScheduler()).save_pretrained("half", variant="fp16")
    assert starting_mistakes("half") == []
    model = load_model("half")
    assert model.label == "half, fp16 weights" and model.unet.dtype == torch.float32
    assert all(map(torch.equal, model.unet.half().parameters(), unet.parameters()))
    unet.float().save_pretrained("shards", variant="fp16", max_shard_size="2KB")
    assert len(list(Path("shards").glob("*.safetensors"))) > 2 and load_model("shards").label.startswith(
        "shards, fp16 "
    )
    shutil.copytree("half", "two")
    (file,) = Path("two/unet").glob("*.safetensors")
    shutil.copy(file, file.with_name(f"{WEIGHTS}.ema.safetensors"))
    assert mistake("two") == (
        f"pipeline=two: several kinds of weights (ema, fp16), and no {WEIGHTS}.safetensors; name one so"
    )
    shutil.copy(file, file.with_name(f"{WEIGHTS}.safetensors"))
    assert load_model("two").label == "two"


def test_weights_that_are_not_there(unet: UNet2DModel) -> None:
    for name in ("safetensors", "bin", "none"):
        unet.save_pretrained(name)
        Path(name, f"{WEIGHTS}.safetensors").unlink()
    for ending in ("safetensors", "bin"):
        Path(ending, f"{WEIGHTS}.{ending}").write_text(POINTER)
        line = f"={ending}: 1 of its files is a Git LFS pointer; run `git lfs pull` in the clone"
        assert mistake(ending) == f"pipeline{line}" and starting_mistakes(ending) == [f"model.pretrained{line}"]
    line = f"=none: no weights in none; it must hold {WEIGHTS}.safetensors"
    assert mistake("none") == f"pipeline{line}" and starting_mistakes("none") == [f"model.pretrained{line}"]


def test_single_files(unet: UNet2DModel) -> None:
    torch.save(unet.state_dict(), "model.pt")
    save_file(unet.state_dict(), "model.safetensors")
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained("cats")
    lines = {
        "model.pt": "a pickle, which is not read, for it may run any code; load it with the program that made it, and "
        "give the folder that UNet2DModel.save_pretrained writes",
        "model.safetensors": "a single file, without the config.json that describes its network; give the folder that "
        "UNet2DModel.save_pretrained writes",
        "cats/model_index.json": "a single file; use its folder, {}=cats",
        f"cats/unet/{WEIGHTS}.safetensors": "a single file; use its folder, {}=cats/unet",
    }
    for given, line in lines.items():
        for key, found in (("pipeline", path_mistakes(given)), ("model.pretrained", starting_mistakes(given))):
            assert [*found] == [f"{key}={given}: {line.format(key)}"]
