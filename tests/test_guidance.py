"""Autoguidance: a run's early checkpoint guides its last one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from helpers.cli import Cli
from PIL import Image

import ddpm_train
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.diffusion.pixels import to_uint8
from ddpm_train.evaluation.image_folder import made_by
from ddpm_train.models.load import load_model
from ddpm_train.report.formatting import circumstances
from ddpm_train.report.stored import Score
from ddpm_train.sampling.loop import image_generators

STEPS, SCALE = 6, 1.7
FAST = ("num_images=3", f"num_inference_steps={STEPS}", "sampler=ddim", "mixed_precision=no")


def early(run: Path) -> str:
    return str(run / "checkpoints/step_00000003")


def sigma(alphas_cumprod: torch.Tensor) -> float:
    return float(((1 - alphas_cumprod) / alphas_cumprod).sqrt())


@torch.no_grad()
def documented_loop(run: Path, interval: tuple[float, float]) -> np.ndarray:
    """Equation 3 of the paper, on the estimates of x_0; the networks predict v. uint8 [3, H, W]."""
    model, guide = load_model(str(run)), load_model(early(run))
    sampler = DDIMScheduler.from_config(model.noise_scheduler.config)
    sampler.set_timesteps(STEPS)
    x_t = torch.cat([torch.randn(1, 1, 8, 8, generator=generator) for generator in image_generators(0, range(3))])
    for timestep in sampler.timesteps:
        alphas_cumprod = sampler.alphas_cumprod[timestep]
        alpha, noise = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
        x_0, worse = (alpha * x_t - noise * each.unet(x_t, timestep).sample for each in (model, guide))
        if interval[0] <= sigma(alphas_cumprod) <= interval[1]:
            x_0 = worse + SCALE * (x_0 - worse)
        x_t = sampler.step((alpha * x_t - x_0) / noise, timestep, x_t).prev_sample
    return to_uint8(x_t)[:, 0].numpy()


@pytest.fixture(scope="module")
def pipeline(trained: Path) -> ddpm_train.Pipeline:
    return ddpm_train.load(trained, mixed_precision="no", device="cpu")


def test_the_paper_s_loop_from_the_command_line(cli: Cli, trained: Path, pipeline: ddpm_train.Pipeline) -> None:
    interval = (0.3, 5.0)
    keys = (f"guidance.pipeline={early(trained)}", f"guidance.scale={SCALE}", "guidance.interval=[0.3,5]")
    said = cli.sample(f"pipeline={trained}", *FAST, *keys, "output=guided")
    assert "guided by" in said and "step 3, EMA weights, scale 1.7 at noise levels 0.3 to 5" in said
    made = np.stack([np.asarray(Image.open(cli.folder / f"guided/images/{index:06}.png")) for index in range(3)])
    expected = documented_loop(trained, interval)
    assert np.abs(made.astype(int) - expected).max() <= 1
    given: dict[str, Any] = {"sampler": "ddim", "num_inference_steps": STEPS, "output": "np"}
    alone = pipeline.sample(3, **given)[..., 0]
    assert np.abs(made.astype(int) - alone).max() > 1
    # What the images are made of stands beside them: nothing else is added to them.
    guidance = json.loads((cli.folder / "guided/sampling.json").read_text())["guidance"]
    assert guidance == {"model": load_model(early(trained)).digest, "scale": SCALE, "interval": [0.3, 5.0]}
    assert made_by(str(cli.folder / "guided"))["guidance"] == guidance
    (cli.folder / "guided/images/000001.png").unlink()
    assert "found      2 of 3 images" in cli.sample(f"pipeline={trained}", *FAST, *keys, "output=guided")
    again = np.asarray(Image.open(cli.folder / "guided/images/000001.png"))
    assert np.abs(again.astype(int) - made[1]).max() <= 1
    said = cli.sample(f"pipeline={trained}", *FAST, "output=guided", expect=2)
    assert "holds images of another kind (guidance=" in said
    choice = {"pipeline": early(trained), "scale": SCALE, "interval": interval}
    assert np.array_equal(pipeline.sample(3, guidance=choice, **given)[..., 0], made)


def test_a_score_says_what_guided(cli: Cli, trained: Path) -> None:
    few = ("num_images=10", "num_inference_steps=2", "reference=held_out", "num_reference_images=10")
    given = (f"pipeline={trained}", "metrics=[kid]", *few, "output=scored")
    said = cli.evaluate(*given, f"guidance.pipeline={early(trained)}", "guidance.scale=3")
    assert "guided by" in said
    (score,) = (Score(**each) for each in json.loads((cli.folder / "scored/scores.json").read_text())["scores"])
    assert score.depends_on["guidance"]["scale"] == 3 and "autoguidance, scale 3" in circumstances(score)


def test_outside_the_interval_only_one_network_is_called(trained: Path, pipeline: ddpm_train.Pipeline) -> None:
    alphas_cumprod = pipeline.model.noise_scheduler.alphas_cumprod
    levels = [sigma(alphas_cumprod[int(timestep)]) for timestep in (1, 500)]
    for interval, calls in ((None, 12), ([levels[0], 1e6], 12), ([0, levels[0] / 10], 6), ([levels[1], 1e6], 9)):
        guidance = {"pipeline": early(trained), "interval": interval}
        _, (result,) = pipeline.compare(["ddim"], [6], num_images=1, guidance=guidance)
        assert result.model_calls == calls, interval
    far = {"pipeline": early(trained), "interval": [1e5, 1e6]}
    images = [pipeline.sample(2, output="np", num_inference_steps=4, **keys) for keys in ({"guidance": far}, {})]
    assert np.array_equal(*images)


def test_it_guides_whatever_samples(trained: Path, pipeline: ddpm_train.Pipeline, garments: list[Image.Image]) -> None:
    guidance = {"pipeline": early(trained), "scale": 4}
    mask = Image.fromarray(np.pad(np.full((8, 4), 255, np.uint8), ((0, 0), (0, 4))))
    inpainting = {"from_image": garments[0], "inpaint": mask, "sampler": "ddpm", "inpaint_repeats": 2}
    for keys in ({"sampler": "euler"}, {"sampler": "unipc"}, inpainting):
        both = ({**keys, **more} for more in ({}, {"guidance": guidance}))
        made = [pipeline.sample(2, output="np", num_inference_steps=6, **given) for given in both]
        assert not np.array_equal(*made)
        if "inpaint" in keys:
            assert np.array_equal(made[0][:, :, 4:], made[1][:, :, 4:])
    plain, guided = (pipeline.trajectory(1, num_inference_steps=5, **more) for more in ({}, {"guidance": guidance}))
    assert len(plain) == len(guided) == 6 and plain[-1].tobytes() != guided[-1].tobytes()


def test_what_cannot_guide(trained: Path, pipeline: ddpm_train.Pipeline, tmp_path: Path) -> None:
    def refused(**guidance: Any) -> str:
        with pytest.raises(Mistakes) as caught:
            pipeline.sample(1, guidance=guidance)
        return str(caught.value)

    assert refused(scale=3) == "guidance.scale=3.0: does nothing without guidance.pipeline=PATH; leave it out"
    assert refused(pipeline="nowhere").startswith("guidance.pipeline=nowhere: no such folder;")
    assert refused(pipeline=str(trained), revision="v1").startswith(
        "guidance.revision=v1: does nothing with guidance.p"
    )
    assert refused(pipeline=str(tmp_path)).startswith(f"guidance.pipeline={tmp_path}: no run, checkpoint or model")
    assert "holds nothing" in refused(pipeline=early(trained), interval=[2, 1])
    assert "must be [lowest,highest] or null" in refused(pipeline=early(trained), interval=[2])
    other, scheduler = tmp_path / "other", pipeline.model.noise_scheduler
    pipeline.model.unet.save_pretrained(other)
    for change, line in (
        ({"prediction_type": "epsilon"}, "has prediction_type=epsilon, and the model v_prediction;"),
        ({"beta_schedule": "linear"}, "was trained with another noise schedule than the model;"),
    ):
        type(scheduler).from_config(scheduler.config, **change).save_pretrained(other)
        pipeline._guides.clear()
        assert f"guidance.pipeline={other}: {line}" in refused(pipeline=str(other))
