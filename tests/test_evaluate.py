"""`ddpm-evaluate` through its command line, on a run trained here and on folders of real images."""

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.cli import ROOT, Cli, Once
from PIL import Image

from ddpm_train.config.evaluate import EvaluateConfig
from ddpm_train.config.metrics import EXTRACTORS, METRICS, package_mistakes

PROGRAM = ("-m", "ddpm_train.cli.evaluate")
FAST = ("num_images=40", "num_inference_steps=3", "batch_size=20")
NO_RUN = "compare with which images? give dataset=cifar10, dataset=imagefolder, …"
WriteImages = Callable[[Path, int], Path]


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "scores.json").read_text())


def against(folder: str, *more: str, resolution: int = 8) -> tuple[str, ...]:
    """Keys that name a folder of garments, a quarter of them held out, as the real images."""
    return (
        *("dataset=imagefolder", f"dataset.path={folder}", f"dataset.resolution={resolution}", "dataset.channels=1"),
        *("dataset.validation_fraction=0.25", "dataset.num_workers=0", *more),
    )


@pytest.fixture(scope="module")
def evaluated(once: Once, trained: Path, write_images: WriteImages) -> tuple[Cli, str, dict[str, Any]]:
    """A run's copy after its evaluation, and what was said and kept."""

    def evaluate(cli: Cli) -> str:
        shutil.copytree(trained, cli.folder / "run")
        write_images(cli.folder / "garments", 60)
        metrics = "metrics=[kid,precision,recall,isc,copy_rate]"
        return cli.evaluate("pipeline=run", *FAST, metrics, *against("garments"))

    cli, said = once("evaluated", evaluate)
    return cli, said, results(cli.folder / "run" / "evaluation")


def test_scores_say_what_they_depend_on(evaluated: tuple[Cli, str, dict[str, Any]]) -> None:
    cli, said, found = evaluated
    names = [score["name"] for score in found["scores"]]
    metrics = ["kid", "precision", "recall", "isc", "copy_rate"]
    assert names == [f"{metric}_efficientnet_lite0_n40" for metric in metrics]
    for score in found["scores"]:
        assert score["interval"][0] <= score["interval"][1] and score["confidence"] == 0.95
        assert score["lower_is_better"] == (score["metric"] in ("kid", "copy_rate"))
        about = score["depends_on"]
        assert (about["step"], about["weights"], about["seed"], about["num_inference_steps"]) == (6, "ema", 0, 3)
        assert about["sampler"] == {"name": "dpm_solver"} and about["num_images"] == 40
        assert {"torch", "diffusers", "torch-fidelity", "precision", "extractor_weights"} <= set(about["versions"])
        real = about["reference"]
        assert (real["dataset"], real["num_images"], real["resolution"]) == ("garments", 45, [8, 8])
        assert f"  {score['name']}" in said and f"{score['value']:.4g}" in said
    assert found["copying"]["held_out_rate"] <= 0.1
    cautions = [
        "15 held-out images are too few to find how near 1 in 100 of them comes; hold out more",
        "40 samples are too few to measure a rate of 1 in 100; make more",
    ]
    assert found["scores"][-1]["warning"] == "; ".join(cautions) and found["copying"]["cautions"] == cautions
    rests_on = ("step", "held_out_images", "left_out", "training_images")
    assert [found["copying"][key] for key in rests_on] == [6, 15, 0, 45]
    assert found["copying"]["nearest_distance"] > 0 and found["copying"]["threshold"] > 0
    assert found["scores"][-1]["warning"] in said
    report = (cli.folder / "run" / "report.html").read_text()
    assert "kid_efficientnet_lite0_n40" in report and "report     run/report.html" in said
    nearest = Image.open(cli.folder / "run" / "evaluation" / found["copying"]["picture"])
    assert nearest.size == (7 * 66 + 2, 16 * 66 + 2)  # 16 samples, a gap, five training images; 8 px enlarged to 64


@pytest.mark.slow
def test_the_numbers_do_not_depend_on_processes_or_batches(evaluated: tuple[Cli, str, dict[str, Any]]) -> None:
    cli, _, found = evaluated
    command = ["pipeline=run", *FAST[:2], "metrics=[kid,precision,recall,isc,copy_rate]", *against("garments")]
    cli.evaluate(*command, "batch_size=7", "output=sevens", num_processes=2)
    again = results(cli.folder / "sevens")
    assert [score["name"] for score in again["scores"]] == [score["name"] for score in found["scores"]]
    for ours, theirs in zip(again["scores"], found["scores"], strict=True):
        # The network of the model rounds otherwise in other batches, and BLAS where memory lies otherwise.
        assert ours["value"] == pytest.approx(theirs["value"], rel=1e-6), ours["name"]
        assert ours["interval"] == pytest.approx(theirs["interval"], rel=1e-5), ours["name"]


def test_a_second_call_adds_and_the_same_score_replaces_itself(evaluated: tuple[Cli, str, dict[str, Any]]) -> None:
    cli, _, found = evaluated
    shutil.copytree(cli.folder / "run" / "evaluation", cli.folder / "more")
    again = ["pipeline=run", *FAST, "output=more"]
    features = sorted((cli.folder / "cache").rglob("features/*.npy"))
    written = [path.stat().st_mtime_ns for path in features]
    cli.evaluate(*again, "metrics=[kid]", *against("garments"))
    assert written and [path.stat().st_mtime_ns for path in features] == written  # computed once
    cli.evaluate(*again, "metrics=[kid,copy_rate]", *against("garments"), "seed=1")
    kept = results(cli.folder / "more")
    kid = [score for score in kept["scores"] if score["metric"] == "kid"]
    assert [score["depends_on"]["seed"] for score in kid] == [0, 1] and kid[0]["value"] != kid[1]["value"]
    assert len(kept["scores"]) == len(found["scores"]) + 2 and kept["copying"]["num_images"] == 40
    # Against other images, or the same in another size, the numbers mean something else.
    said = cli.evaluate(*again, "metrics=[kid]", *against("garments", "reference=held_out"), expect=2)
    assert said.startswith(
        "error: output=more: its precision_efficientnet_lite0_n40 is against 45 images of garments, train"
    )
    assert "and cannot be compared with scores against 15 images of garments" in said and len(said.splitlines()) == 1


def test_held_out_loss_is_that_of_training(cli: Cli, trained: Path) -> None:
    """With the run's own dataset, which need not be named again; and the bound, its terms adding up."""
    shutil.copytree(trained, cli.folder / "run")
    metrics = "metrics=[bits_per_dim,held_out_loss]"
    cli.evaluate("pipeline=run/checkpoints/step_00000006", metrics, "bound_timesteps=4", "batch_size=64")
    found = results(cli.folder / "run" / "evaluation")
    bits, loss = found["scores"]
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    (measured,) = [line["held_out_loss"] for line in lines if line["step"] == 6 and "held_out_loss" in line]
    assert loss["value"] == pytest.approx(measured, rel=1e-5)
    assert loss["interval"][0] < loss["value"] < loss["interval"][1]
    assert bits["value"] == found["bound"]["bits_per_dim"] and bits["interval"][0] < bits["value"]
    assert found["bound"]["split"] == "validation" and found["bound"]["num_images"] == 500
    assert loss["depends_on"]["reference"]["num_images"] == 500 and loss["depends_on"]["sampler"] is None
    assert (cli.folder / "run/evaluation/loss_by_timestep.png").is_file()


NO_ROOM = """
from ddpm_train.cli.evaluate import main
from ddpm_train.sampling.engine import Engine
def images(self, *arguments, **options):
    raise MemoryError
Engine.images = images
main()
"""


def test_out_of_memory_is_told_in_one_line(evaluated: tuple[Cli, str, dict[str, Any]]) -> None:
    cli, _, _ = evaluated
    command = ("pipeline=run", "metrics=[kid]", *against("garments"), "output=none", *FAST)
    said = cli.python("-c", NO_ROOM, *command, expect=2)
    assert said.endswith(
        "error: batch_size=20: out of memory (this machine has no memory left); use a smaller number\n"
    )
    assert "Traceback" not in said


def test_quality_against_cost(evaluated: tuple[Cli, str, dict[str, Any]]) -> None:
    cli, _, _ = evaluated
    cost = ["metrics=[]", "cost.samplers=[ddim,unipc]", "cost.steps=[1,4]", "num_images=32"]
    said = cli.evaluate("pipeline=run", *cost, *against("garments"), "output=cost", "sampler=ddim", "sampler.eta=0.5")
    found = results(cli.folder / "cost")
    rows = found["cost"]["rows"]
    pairs = [("ddim", 1), ("ddim", 4), ("unipc", 1), ("unipc", 4)]
    assert [(row["sampler"], row["num_inference_steps"]) for row in rows] == pairs
    assert all(row["seconds_per_image"] > 0 for row in rows)
    samplers = [score["depends_on"]["sampler"] for score in found["scores"]]
    assert samplers == [{"name": "ddim", "eta": 0.5}] * 2 + [{"name": "unipc"}] * 2
    assert found["cost"]["metric"] == "kid_efficientnet_lite0_n32" and "fewest steps within 5%" in said
    fewest = found["cost"]["fewest_within_5_percent"]
    assert (fewest["sampler"], fewest["num_inference_steps"]) in pairs
    assert (cli.folder / "cost" / "cost.png").is_file()


def test_a_folder_of_images_needs_no_model(
    evaluated: tuple[Cli, str, dict[str, Any]], garments: list[Image.Image]
) -> None:
    """Real images that the reference does not hold score as real; what ddpm-sample made says how it was made."""
    cli, _, _ = evaluated
    (cli.folder / "unseen").mkdir()
    for number, image in enumerate(garments[100:130]):
        image.resize((8, 8), Image.Resampling.LANCZOS).save(cli.folder / "unseen" / f"{number}.png")
    cli.evaluate("pipeline=unseen", "metrics=[kid,copy_rate]", *against("garments"))
    real = results(cli.folder / "evaluation" / "unseen")["scores"]
    assert (cli.folder / "evaluation" / "unseen" / "report.html").is_file()
    assert real[0]["name"] == "kid_efficientnet_lite0_n30" and real[0]["interval"][0] < 0 < real[0]["interval"][1]
    assert real[0]["depends_on"]["sampler"] is None and real[0]["depends_on"]["step"] is None

    sampler = ("sampler=ddim", "sampler.eta=0.5", "num_inference_steps=3", "mixed_precision=no")
    cli.sample("pipeline=run", "num_images=16", "seed=4", *sampler, "output=made")
    cli.evaluate("pipeline=made", "metrics=[kid]", *against("garments"))
    made = results(cli.folder / "evaluation" / "made")["scores"][0]
    assert made["depends_on"]["sampler"] == {"name": "ddim", "eta": 0.5} and made["depends_on"]["seed"] == 4
    assert made["depends_on"]["num_images"] == 16 and made["value"] > real[0]["value"]


def test_mistakes_that_need_no_look_at_the_model(cli: Cli) -> None:
    """All at once, before anything slow is imported."""
    said = cli.run(
        [
            *(sys.executable, "-X", "importtime", *PROGRAM),
            *("pipeline=xyz/", "metrics=[fidd]", "extractor.name=inception", "num_images=3", "num_inference_step=4"),
            *("cost.samplers=[ddim]", "extractor.weights=none.pth", "dataset=cifr10", "sampler.etta=1"),
            "seed=4294967296",
        ],
        expect=2,
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in said.splitlines() if line.startswith("import time:")}
    assert "ddpm_train.config.evaluate" in imported
    assert not imported & {"torch", "torchvision", "diffusers", "datasets", "accelerate", "torch_fidelity"}
    lines = [line.removeprefix("error: ") for line in said.splitlines() if line.startswith("error: ")]
    known = ", ".join(sorted(path.stem for path in (ROOT / "conf/dataset").glob("*.yaml")))
    names = "fid, kid, precision, recall, isc, copy_rate, bits_per_dim, held_out_loss"
    assert "num_inference_step=4: no such key; did you mean 'num_inference_steps'?" in lines
    assert f"dataset=cifr10: no such config; did you mean 'cifar10'? (one of {known})" in lines
    assert f"metrics.0=fidd: not one of {names}; did you mean 'fid'?" in lines
    assert any(
        line.startswith("extractor.name=inception: not one of efficientnet_lite0, inception-v3") for line in lines
    )
    assert "num_images=3: too few for a score; use at least 10" in lines
    assert "seed=4294967296: must be less than 4294967296" in lines
    assert "cost.samplers=[ddim] cost.steps=[]: needs both lists; add cost.steps=[5,10,25,100]" in lines
    assert "sampler.etta=1: no argument of DPMSolverMultistepScheduler; it takes" in said
    assert (
        "extractor.weights=none.pth: no such file; give the extractor's weights, or null for those published" in lines
    )
    assert any(line.startswith("pipeline=xyz/: no such folder;") for line in lines)


def test_mistakes_about_the_images(
    evaluated: tuple[Cli, str, dict[str, Any]],
    write_images: WriteImages,
    garments: list[Image.Image],
) -> None:
    cli, _, _ = evaluated

    def mistakes(*arguments: str, **environment: str) -> list[str]:
        lines = cli.evaluate(*arguments, "output=never", expect=2, **environment).splitlines()
        assert all(line.startswith("error: ") for line in lines), lines
        assert not (cli.folder / "never").exists()
        return [line.removeprefix("error: ") for line in lines]

    write_images(cli.folder / "mixed", 12)
    Image.new("L", (9, 8)).save(cli.folder / "mixed" / "odd.png")
    write_images(cli.folder / "few", 4)
    write_images(cli.folder / "large", 12)
    (cli.folder / "broken").mkdir()
    for number, image in enumerate(garments[:12]):
        image.resize((8, 8)).save(cli.folder / "broken" / f"{number:02}.png")
    torn = (cli.folder / "broken" / "00.png").read_bytes()
    (cli.folder / "broken" / "torn.png").write_bytes(torn[: len(torn) // 2])
    scores = "metrics=[kid]"
    assert mistakes("pipeline=mixed", scores, *against("garments")) == [
        "pipeline=mixed: images of 2 sizes (12 of 28x28, 1 of 9x8); scores need one size".replace("9x8", "8x9")
    ]
    assert mistakes("pipeline=few", scores, *against("garments", resolution=28)) == [
        "pipeline=few: 4 images, too few for a score; give at least 10"
    ]
    assert mistakes("pipeline=large", scores, *against("garments")) == [
        "pipeline=large: images of 28x28; use dataset.resolution=28"
    ]
    (unreadable,) = mistakes("pipeline=broken", scores, *against("garments"))
    assert unreadable.startswith("pipeline=broken: 1 images cannot be read (torn.png: ")
    folder = "large is a folder of images"
    assert mistakes("pipeline=large", "metrics=[bits_per_dim,kid]", "cost.samplers=[ddim]", "cost.steps=[4]") == [
        f"metrics=[bits_per_dim,kid]: bits_per_dim need a model, and {folder}; leave them out",
        f"cost.samplers=[ddim]: needs a model to sample, and {folder}; leave it out",
        f"dataset=null: {NO_RUN}",
    ]
    assert mistakes("pipeline=run", scores, *against("garments", resolution=16)) == [
        "dataset.resolution=16: the model makes images of 8x8; use dataset.resolution=8"
    ]
    # Of the model first: images may take long to prepare.
    told = mistakes("pipeline=run", scores, *against("few", "dataset.channels=3"), "sampler.final_sigmas_type=zzz")
    assert told[0] == "dataset.channels=3: the model makes images of 1 channels; use dataset.channels=1"
    assert told[1].startswith("sampler.final_sigmas_type=zzz: ") and len(told) == 2
    assert mistakes("pipeline=run", "metrics=[copy_rate]", *against("few"), "sampler=pndm") == [
        "dataset.validation_fraction=0.25: 1 held-out images for copy_rate; hold out at least 10",
        "dataset.path=few: 3 images, too few to compare with; give at least 10",
    ]
    assert mistakes("pipeline=run", "metrics=[isc]", "extractor.name=clip-vit-b-32", *against("garments")) == [
        "extractor.name=clip-vit-b-32: the Inception score needs classes, which this has not; "
        "use efficientnet_lite0 or inception-v3-compat, or leave isc out"
    ]
    command = ("pipeline=run", scores, "extractor.name=inception-v3-compat", *against("garments"))
    (unreached,) = mistakes(*command, TORCH_HOME=str(cli.folder / "torch"), https_proxy="http://127.0.0.1:9")
    assert unreached.startswith("extractor.name=inception-v3-compat: its weights are not here and cannot be fetched")


def test_the_extra_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch_fidelity" else find(name))
    (line,) = package_mistakes(["kid"], "metrics")
    assert line == "metrics=[kid]: torch_fidelity is not installed; pip install 'ddpm-train[evaluate]'"


def test_help_names_every_choice_and_only_keys_that_exist(cli: Cli) -> None:
    text = cli.python(*PROGRAM, "--help")
    for name in (*EXTRACTORS, *METRICS):
        assert re.search(rf"(^ +|, ){name}[ ,]", text, re.MULTILINE), name
    config = yaml.safe_load((ROOT / "conf/evaluate.yaml").read_text())
    keys = re.findall(r"\b([a-z]+(?:[._][a-z_]+)*)=", text.split("Keys people use:")[1])
    assert {"pipeline", "num_images", "cost.samplers", "extractor.weights"} <= set(keys)
    for key in keys:
        section, _, rest = key.partition(".")
        assert rest in config[section] if rest else section in EvaluateConfig.__dataclass_fields__, key
