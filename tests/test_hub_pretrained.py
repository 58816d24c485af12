"""`model.pretrained`: a new run starts from the weights of an existing UNet2DModel, and takes its layout."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers.cli import TINY
from helpers.hub.client import HubCli
from safetensors.torch import load_file

RUN = ("evaluation=none", "lr_scheduler=constant", "ema=none", "train.max_steps=1")
# The tiny layout, which a run that starts from one must not say again.
REST = tuple(text for text in TINY if not text.startswith("model."))


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A UNet2DModel as diffusers saves one alone."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "cats"
    UNet2DModel(
        sample_size=32,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 24),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
        dropout=0.3,
    ).save_pretrained(folder)
    return folder


def tuned(cli: HubCli, *overrides: str, expect: int = 0) -> str:
    return cli.run_main("train", *REST, *RUN, *overrides, expect=expect)


def start_weights(cli: HubCli, name: str = "default") -> dict[str, torch.Tensor]:
    """What a run started from: its weights after one step of a vanishing rate."""
    return load_file(cli.output(name) / "checkpoints/step_00000001/unet.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.allclose(left[key], right[key], atol=1e-8) for key in left)


def test_weights_and_layout_are_taken(hub_cli: HubCli, unet: Path) -> None:
    """From a folder and from the Hub; what the run began with is not needed again."""
    weights = load_file(unet / "diffusion_pytorch_model.safetensors")
    moved = shutil.copytree(unet, hub_cli.folder / "models/cats")
    slow = ("optimizer.lr=1e-12", "optimizer.weight_decay=0")
    said = tuned(hub_cli, f"model.pretrained={moved}", *slow)
    assert same(start_weights(hub_cli), weights)
    assert (
        f"warning: model.pretrained={moved} was trained with noise_scheduler.beta_schedule=linear, and this run goes "
        "on with squaredcos_cap_v2"
    ) in said
    recorded = yaml.safe_load((hub_cli.output() / "config.yaml").read_text())["model"]
    assert recorded["block_out_channels"] == [8, 24] and recorded["dropout"] == 0.0
    # The same weights in a pipeline on the Hub.
    place = hub_cli.hub.root / "models/someone/cats/unet"
    shutil.copytree(unet, place)
    (place.parent / "model_index.json").write_text(
        json.dumps({"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]})
    )
    tuned(hub_cli, "model.pretrained=someone/cats", "name=hub", *slow)
    assert same(start_weights(hub_cli, "hub"), weights)
    # Resumed where neither is any more; shared, and resumed on another machine.
    shutil.rmtree(moved)
    hub_cli.hub.__exit__()
    for name, source in (("default", str(moved)), ("hub", "someone/cats")):
        said = tuned(hub_cli, f"model.pretrained={source}", f"name={name}", *slow, "train.max_steps=2")
        assert "resumes at step 1" in said


def test_a_shared_run_resumes_without_what_it_began_with(hub_cli: HubCli, unet: Path) -> None:
    moved = shutil.copytree(unet, hub_cli.folder / "models/cats")
    push = ("hub.push=true", "hub.repo_id=tester/tuned", "hub.strategy=checkpoint")
    tuned(hub_cli, f"model.pretrained={moved}", *push)
    folder = hub_cli.hub.head("tester/tuned").folder
    assert str(hub_cli.folder) not in (folder / "config.yaml").read_text() + (folder / "README.md").read_text()
    shutil.rmtree(moved)
    shutil.rmtree(hub_cli.output())
    again = (f"model.pretrained={moved}", "resume=hf://tester/tuned", "train.max_steps=2")
    assert "resumes at step 1" in tuned(hub_cli, *again)
    # To begin with something else is another run.
    said = tuned(hub_cli, "model.pretrained=/elsewhere/dogs", "train.max_steps=3", expect=2)
    assert said.startswith("error: model.pretrained=/elsewhere/dogs: no such folder;")
    shutil.copytree(unet, hub_cli.folder / "models/dogs")
    said = tuned(hub_cli, "model.pretrained=models/dogs/", "train.max_steps=3", expect=2)
    assert "this config would make another run" in said and "model.pretrained  cats" in said


def test_what_disagrees_is_told_side_by_side(hub_cli: HubCli, unet: Path) -> None:
    def told(*overrides: str) -> list[str]:
        said = tuned(hub_cli, *overrides, expect=2)
        assert not hub_cli.output().exists()
        return said.splitlines()

    given = f"model.pretrained={unet}"
    assert told(given, "model.block_out_channels=[8,16]", "model.layers_per_block=2", "model.norm_num_groups=8") == [
        f"error: {given}: its network is another than the one you describe; leave these keys out:",
        "  key                       pretrained  yours",
        "  model.block_out_channels  [8,24]      [8,16]",
        "  model.norm_num_groups     4           8",
    ]
    (first, _, *rows) = told(given, "model=unet_tiny", "dataset.channels=3")
    assert first == f"error: dataset.channels=3: {given} is of 1 channels; use dataset.channels=1"
    assert any(row.split() == ["model.block_out_channels", "[8,24]", "[32,64,64]"] for row in rows)
    # Of other kinds.
    for name, values, reason in (
        ("labels", {"num_class_embeds": 10}, "wants class labels; give an unconditional model"),
        ("text", {"_class_name": "UNet2DConditionModel"}, "a UNet2DConditionModel; give a UNet2DModel or a pipeline"),
        ("fourier", {"time_embedding_type": "fourier"}, "its time_embedding_type=fourier takes the logarithm of the"),
        ("list", {"_class_name": ["UNet2DModel"]}, "list/config.json: _class_name: Input should be a valid string"),
        ("deep", {"layers_per_block": 10**6}, "deep/config.json: layers_per_block: Input should be less than or equal"),
        ("padded", {"downsample_padding": 2}, "model.downsample_padding=2: no network of this layout works (Sizes of"),
        ("variance", {"in_channels": 3, "out_channels": 6}, "3 channels in and 6 out, a learned variance, for which"),
    ):
        shutil.copytree(unet, hub_cli.folder / name)
        config = json.loads((unet / "config.json").read_text()) | values
        (hub_cli.folder / name / "config.json").write_text(json.dumps(config))
        assert told(f"model.pretrained={name}")[0].startswith(f"error: model.pretrained={name}: {reason}")
    (hub_cli.folder / "empty").mkdir()
    assert told("model.pretrained=empty") == [
        "error: model.pretrained=empty: no UNet in it (looked for unet/config.json, config.json, "
        "pipeline/unet/config.json)"
    ]
    assert told("model.pretrained=someone/nothing") == [
        "error: model.pretrained=someone/nothing: no such model on the Hub with this HF_TOKEN"
    ]
    # Half of a model: its weights are missed before the first step.
    shutil.copytree(unet, hub_cli.folder / "half")
    (hub_cli.folder / "half/diffusion_pytorch_model.safetensors").unlink()
    (line,) = [line for line in tuned(hub_cli, "model.pretrained=half", expect=2).splitlines() if "error" in line]
    assert line == "error: model.pretrained=half: no weights in half; it must hold diffusion_pytorch_model.safetensors"


def test_gated_renamed_and_missing(hub_cli: HubCli, unet: Path) -> None:
    """A name of old leads to the new one; whom the owner has not let in is told so; a commit may lose its files."""
    hub = hub_cli.hub
    for name in ("owner/new", "owner/gated"):
        shutil.copytree(unet, hub.root / "models" / name)
    hub.renamed["owner/old"] = "owner/new"
    hub.gated.add("owner/gated")
    sampled = ("num_images=1", "num_inference_steps=1", "mixed_precision=no")
    hub_cli.run_main("sample", "pipeline=owner/old", *sampled)
    gated = (
        "owner/gated: gated, and its owner has not let in the owner of this HF_TOKEN; ask for access on its page at the"
    )
    assert gated in hub_cli.run_main("sample", "pipeline=owner/gated", *sampled, expect=2)
    assert gated in tuned(hub_cli, "model.pretrained=owner/gated", expect=2)
    shutil.rmtree(hub_cli.folder / "hf")
    hub.fault("GET /owner/new/resolve", 404, times=100, **{"X-Error-Code": "EntryNotFound"})
    hub.fault("HEAD /owner/new/resolve", 404, times=100, **{"X-Error-Code": "EntryNotFound"})
    said = hub_cli.run_main("sample", "pipeline=owner/new", *sampled, expect=2)
    assert said.startswith("error: pipeline=owner/new: the Hub answers 404: ") and said.count("\n") == 1
    assert "owner/new: no UNet in it (looked for unet/config.json and config.json)" in tuned(
        hub_cli, "model.pretrained=owner/new", expect=2
    )
