"""A run that older code wrote, when all modules lay in one folder, resumes and loads as if nothing had been.

`data/run_before_rooms` holds of a run of six steps: its config and records, the checkpoint of step 3, the weights and
the average of step 6, and the pipeline. Nothing here asks the package but through its public surface.
"""

import hashlib
import json
import shutil

import pytest
import torch
from diffusers import DDPMPipeline
from helpers.cli import TESTS, Cli
from helpers.runs import TIMES, relative_difference
from safetensors.torch import load_file

import ddpm_train

OLD = TESTS / "data/run_before_rooms"
START, END = OLD / "checkpoints/step_00000003", OLD / "step_6"
# The command that trained it, with the learning rate schedule that was the default then.
COMMAND = (
    *("name=old", "dataset.resolution=8", "dataset.channels=1", "model.block_out_channels=[4,8]"),
    *("model.layers_per_block=1", "model.down_block_types=[DownBlock2D,AttnDownBlock2D]"),
    *("model.up_block_types=[AttnUpBlock2D,UpBlock2D]", "model.norm_num_groups=4", "model.attention_head_dim=8"),
    *(
        "lr_scheduler=cosine",
        "lr_scheduler.warmup_steps=0",
        "optimizer.lr=1e-3",
        "train.batch_size=16",
        "train.mixed_precision=no",
    ),
    *("train.channels_last=false", "train.attention=fused", "train.compile=false", "train.max_steps=6"),
    *("train.log_every_steps=2", "evaluation.num_images=4", "evaluation.num_inference_steps=2"),
    *("checkpoint.every_steps=3", "loss=min_snr", "tracker=none"),
)
# Before its first update, a run writes down every UNet that it has, and its optimizer's state.
WATCHED = """
import gc
from diffusers import UNet2DModel
from safetensors.torch import save_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

def note(optimizer, arguments, options):
    handle.remove()
    unets = [each for each in gc.get_objects() if isinstance(each, UNet2DModel)]
    for number, unet in enumerate(unets):
        save_file({key: tensor.clone() for key, tensor in unet.state_dict().items()}, f"unet_{number}.safetensors")
    state = optimizer.state_dict()["state"]
    named = {f"{place}.{key}": value for place, values in state.items() for key, value in values.items()}
    save_file(named, "optimizer.safetensors")

handle = register_optimizer_step_pre_hook(note)
from ddpm_train.cli.train import main
main()
"""


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# What records hold besides, since.
SINCE = {"held_out_loss_floor", "learned", "held_out_to_training_loss", "copying_step"}


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cli, str]:
    """The run after the same command as ever, from step 3 on; and what that said."""
    cli = Cli(tmp_path_factory.mktemp("resumed"))
    cli.output("old").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl"):
        shutil.copy(OLD / name, cli.output("old"))
    shutil.copytree(START, cli.output("old") / "checkpoints/step_00000003")
    return cli, cli.python("-c", WATCHED, *COMMAND)


def test_the_checkpoint_is_whole() -> None:
    manifest = json.loads((START / "manifest.json").read_text())
    assert manifest["step"] == 3 and set(manifest["files"]) == {path.name for path in START.iterdir()} - {
        "manifest.json"
    }
    for name, expected in manifest["files"].items():
        data = (START / name).read_bytes()
        assert expected == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_the_same_command_goes_on(resumed: tuple[Cli, str]) -> None:
    """The checkpoint verifies, and its config is this one's, but for a default that is another since."""
    cli, said = resumed
    assert "resumes at step 3" in said and "done: step 6" in said
    told = [line for line in said.splitlines() if "warning" in line or "changed" in line]
    assert told == ["  changed    evaluation.every_steps: None -> auto"]
    state = json.loads((cli.output("old") / "checkpoints/step_00000006/state.json").read_text())
    before = json.loads((START / "state.json").read_text())
    # There may be keys now that there were not then.
    then = before["identity"] | {"evaluation.every_steps": "auto"}
    assert {key: state["identity"][key] for key in then} == then and not state["changes"]
    assert state["environments"][0] == before["environments"][0] and state["compute"] == before["compute"]


def test_it_starts_from_the_stored_tensors(resumed: tuple[Cli, str]) -> None:
    """Weights, average and optimizer: to the bit."""
    folder = resumed[0].folder
    held = [load_file(path) for path in folder.glob("unet_*.safetensors")]
    for name in ("unet", "ema"):
        stored = load_file(START / f"{name}.safetensors")
        assert sum(equal(each, stored) for each in held) == 1, name
    assert equal(load_file(folder / "optimizer.safetensors"), load_file(START / "optimizer.safetensors"))


def test_it_ends_where_it_ended_then(resumed: tuple[Cli, str]) -> None:
    """What does not depend on arithmetic is equal to the bit.

    Other processors round otherwise, and Adam turns the sign of a gradient near 0 into a whole step of a weight: with
    SSE instead of AVX-512, the weights differ by 1.3e-5 of their norm. The three steps move them by 2.7e-3.
    """
    cli, _ = resumed
    run = cli.output("old")
    for name in ("unet", "ema"):
        ours = load_file(run / f"checkpoints/step_00000006/{name}.safetensors")
        assert relative_difference(ours, load_file(END / f"{name}.safetensors")) < 1e-4
    ours, theirs = ((folder / "metrics.jsonl").read_text().splitlines() for folder in (run, OLD))
    assert ours[:3] == theirs[:3] and len(ours) == len(theirs) == 6
    for mine, record in zip(map(json.loads, ours[3:]), map(json.loads, theirs[3:]), strict=True):
        assert mine.keys() - SINCE | set(TIMES) == record.keys() | set(TIMES)
        for key in ("step", "images_seen", "lr"):
            assert mine[key] == record[key]
        for key in record.keys() & {"loss", "grad_norm", "held_out_loss"}:
            assert mine[key] == pytest.approx(record[key], rel=1e-5)


def test_the_pipeline_loads_in_diffusers_and_here() -> None:
    """With the weights that were stored, to the bit."""
    stored = load_file(END / "ema.safetensors")
    plain = DDPMPipeline.from_pretrained(OLD / "pipeline")
    assert equal(plain.unet.state_dict(), stored)
    for place in (OLD / "pipeline", OLD):
        assert equal(ddpm_train.load(place).model.unet.state_dict(), stored)
    early = ddpm_train.load(START).model
    assert equal(early.unet.state_dict(), load_file(START / "ema.safetensors")) and early.step == 3
    assert plain.scheduler.config["prediction_type"] == early.noise_scheduler.config["prediction_type"]
