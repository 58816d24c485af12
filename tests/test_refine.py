"""`ddpm-refine`: what is tried, what decides, a stop in the middle, and samples by the recipe that it leaves."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from helpers.cli import Cli, Once, ended
from helpers.runs import REQUEUE, wait_for, weights
from PIL import Image

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.parts import Sampler
from ddpm_train.config.program import compose_configs
from ddpm_train.config.refine import RefineConfig
from ddpm_train.evaluation.preflight import PROGRAM as EVALUATE
from ddpm_train.evaluation.refine_preflight import PROGRAM
from ddpm_train.evaluation.variants import Variant, candidates_of
from ddpm_train.models.load import load_model
from ddpm_train.sampling.output import model_folder
from ddpm_train.sampling.preflight import PROGRAM as SAMPLE

REFINE = ("-m", "ddpm_train.cli.refine")
# Statistics of pixels, and no network: seconds of a processor for each call of the program.
FAST = ("num_inference_steps=4", "num_images=64", "extractor.name=pixels")
STAGES = ("average", "guidance", "sampler")


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "refine.json").read_text())


@pytest.fixture(scope="module")
def refined(once: Once, trained: Path) -> tuple[Cli, str]:
    """A run that was refined without a stop, and what was said."""

    def refine(cli: Cli) -> str:
        shutil.copytree(trained, cli.folder / "outputs/cats")
        return cli.python(*REFINE, "pipeline=outputs/cats", *FAST)

    return once("refined", refine)


def test_what_is_kept_is_better_by_images_that_did_not_choose(refined: tuple[Cli, str]) -> None:
    cli, said = refined
    folder = cli.folder / "outputs/cats/refined"
    found = record(folder)
    assert [stage["name"] for stage in found["stages"]] == list(STAGES)
    tried = [list(stage["tried"]) for stage in found["stages"]]
    assert tried[0] == ["as before", "the mean of 2 checkpoints"]
    assert tried[1] == ["as before", *(f"step_00000003, scale {scale}" for scale in ("1.5", "2", "3"))]
    assert tried[2] == ["as before", "fitted", "unipc"]
    assert {stage["kept"] for stage in found["stages"]} == {True, False}
    for stage in found["stages"]:
        values = {name: each["value"] for name, each in stage["tried"].items()}
        best, compared = min(values, key=values.__getitem__), stage["comparison"]
        assert stage["chosen"] == (None if best == "as before" else best)
        assert stage["kept"] == (compared is not None and compared["difference"]["interval"][1] < 0)
        assert f"{stage['name']}: {stage['why']}" in said
        if compared is not None:
            before, after, difference = (compared[key] for key in ("before", "after", "difference"))
            assert difference["value"] == pytest.approx(after["value"] - before["value"])
            # Of the same noise and the same resampled images: narrower than of two that know nothing of each other.
            widths = [np.ptp(each["interval"]) for each in (before, after, difference)]
            assert widths[2] < np.hypot(*widths[:2])
    assert found["overall"]["after"]["value"] < found["overall"]["before"]["value"]
    assert "250 held-out images to choose by, 250 others to decide by" in said

    card = (folder / "README.md").read_text()
    assert all(stage["why"] in card for stage in found["stages"])
    assert Image.open(folder / "before_after.png").size == (8 * 66 + 2, 2 * 66 + 2)


def test_samples_by_its_recipe(refined: tuple[Cli, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a plain pipeline; what the command names comes first."""
    cli, _ = refined
    folder, found = cli.folder / "outputs/cats/refined", record(cli.folder / "outputs/cats/refined")
    recipe = found["recipe"]
    steps = (3, 6) if found["stages"][0]["kept"] else (6,)
    kept = [weights(cli.output("cats"), "ema", step)["conv_in.weight"] for step in steps]
    plain = DDPMPipeline.from_pretrained(folder / "pipeline").unet.conv_in.weight
    assert torch.allclose(plain, torch.stack(kept).mean(0), atol=1e-7)
    said = cli.sample("pipeline=outputs/cats/refined", "num_images=3", "mixed_precision=no")
    assert "the sampler, steps and guidance of its refine.json" in said
    monkeypatch.chdir(cli.folder)
    assert model_folder("outputs/cats/refined", 6) == Path("cats_refined/step_00000006")
    card = (folder / "README.md").read_text()
    (in_full,) = [line for line in card.splitlines() if line.endswith("# the same, said in full")]
    _, *keys = in_full.partition("#")[0].split()
    cli.sample(*keys, "num_images=3", "mixed_precision=no", f"output={tmp_path}/full")
    (made,) = cli.folder.glob("samples/cats_refined/step_00000006/*/images")
    for path in sorted(made.iterdir()):
        assert path.read_bytes() == (tmp_path / "full/images" / path.name).read_bytes()

    ((config, _),) = compose_configs(SAMPLE, ["pipeline=outputs/cats/refined"])
    assert (config.sampler.name, config.num_inference_steps) == (recipe["sampler"]["name"], 4)
    assert config.guidance.pipeline == (None if recipe["guidance_scale"] is None else "outputs/cats/refined/guide")
    ((config, _),) = compose_configs(
        SAMPLE, ["pipeline=outputs/cats/refined", "sampler=ddim", "guidance.pipeline=null"]
    )
    assert (config.sampler.name, config.num_inference_steps, config.guidance.pipeline) == ("ddim", 4, None)
    ((config, _),) = compose_configs(EVALUATE, ["pipeline=outputs/cats/refined", "dataset=fashion_tiny"])
    assert (config.sampler.name, config.num_inference_steps) == (recipe["sampler"]["name"], 4)


def test_a_stop_in_the_middle(refined: tuple[Cli, str], cli: Cli, trained: Path) -> None:
    """The stages that are done are not done again; in the end there is what an unstopped call leaves."""
    shutil.copytree(trained, cli.folder / "outputs/cats")
    command = (*REFINE, "pipeline=outputs/cats", *FAST)
    process, folder = cli.fork(*command), cli.folder / "outputs/cats/refined"
    wait_for(lambda: (folder / "refine.json").exists() and bool(record(folder)["stages"]), process)
    process.send_signal(signal.SIGTERM)
    assert "stopped (SIGTERM); the same command goes on" in ended(process, REQUEUE)
    stopped = record(folder)
    done = [stage["name"] for stage in stopped["stages"]]
    assert done and len(done) < len(STAGES) and not (folder / "README.md").exists()
    with pytest.raises(Mistakes, match="ddpm-refine has not come to its end; give its command again"):
        compose_configs(SAMPLE, [f"pipeline={folder}"])
    assert "output=outputs/cats/refined: was begun with seed=0; give that" in cli.python(*command, "seed=1", expect=2)
    said = cli.python(*command)
    assert not any(f"  {name}: " in said for name in done) and "  sampler: as before" in said
    assert not any(f"  {STAGES[len(done)]}: {tried}\n" in said for tried in stopped["under_way"])
    theirs, _ = refined
    for name in ("refine.json", "README.md", "before_after.png"):
        assert (folder / name).read_bytes() == (theirs.folder / "outputs/cats/refined" / name).read_bytes()


def config_of(*overrides: str) -> RefineConfig:
    ((config, _),) = compose_configs(PROGRAM, [*overrides])
    return config


def test_a_model_that_is_no_run(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "pipeline", tmp_path / "model")
    config = config_of(f"pipeline={tmp_path / 'model'}", "dataset=fashion_tiny")
    current = Variant(load_model(config.pipeline), Sampler("dpm_solver"))
    for stage in ("average", "guidance"):
        candidates, why = candidates_of(stage, config, current)
        assert not candidates and why == "this is no run with checkpoints, from which it could be made"
    assert list(candidates_of("sampler", config, current)[0]) == ["fitted", "unipc"]


def test_mistakes(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*overrides: str, pipeline: Path = trained) -> str:
        with pytest.raises(Mistakes) as caught:
            config_of(f"pipeline={pipeline}", *overrides)
        (line,) = caught.value.lines
        return line

    garments = ("dataset=imagefolder", f"dataset.path={trained / 'samples'}", "dataset.validation_fraction=0")
    assert "0 held-out images, too few to choose by; give images that this model was not trained" in told(*garments)
    assert told("stages=[]") == "stages=[]: nothing to try; give some of average, guidance, sampler"
    assert told("stages=[sampler]", "scales=[2]").endswith("does nothing without guidance among stages; leave it out")
    assert "holds files that are not ddpm-refine's" in told(f"output={trained / 'samples'}")
    assert "compare with which images?" in told(pipeline=trained / "pipeline/unet")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "works in one process" in told()
