"""Averages by power functions of the step: the mathematics against the paper's, and a real run's, afterwards."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from diffusers import DDPMPipeline
from helpers.checkpoints import save_step
from helpers.cli import Cli, Once
from helpers.runs import relative_difference, same_checkpoint, steps_written, wait_for, weights
from PIL import Image
from torch import Tensor

import ddpm_train
from ddpm_train.config.ema import WIDEST, exponent, power_decay
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.program import compose_configs
from ddpm_train.evaluation.refine_preflight import PROGRAM as REFINE
from ddpm_train.evaluation.variants import Variant, candidates_of
from ddpm_train.models.averages import FARTHEST, average_of_width, dot, fit
from ddpm_train.models.load import load_model
from ddpm_train.runs import checkpoint, snapshots
from ddpm_train.runs.checkpoint import BadCheckpoint
from ddpm_train.runs.mirror import Mirror
from ddpm_train.runs.stores import fetch_newest
from ddpm_train.training.state import update_ema

STEPS = 16
RUN = ("ema=power", f"ema.snapshots={STEPS}", f"train.max_steps={STEPS}", "evaluation=none", "lr_scheduler=constant")


# The mathematics ------------------------------------------------------------------------------------------------------


def test_widths_and_exponents() -> None:
    """The paper's pairs (section 3.1); and the width of t ** gamma, by integrals, is the one asked for."""
    assert (exponent(0.05), exponent(0.10)) == pytest.approx((16.97, 6.94), abs=0.005)
    t = np.linspace(0, 1, 100_001)
    for width in (0.02, 0.1, 0.2, 0.28):
        density = t ** exponent(width)
        mean = np.average(t, weights=density)
        assert math.sqrt(np.average((t - mean) ** 2, weights=density)) == pytest.approx(width, rel=1e-3)
    assert exponent(WIDEST) == pytest.approx(0, abs=1e-9)


def test_the_decay_makes_the_power_function() -> None:
    """After t steps, step i has the weight that the function has from i - 1 to i; what was there before has none."""
    gamma, steps = exponent(0.1), 50
    shares = np.zeros(steps + 1)
    shares[0] = 1.0
    for step in range(1, steps + 1):
        shares *= power_decay(gamma, step)
        shares[step] += 1 - power_decay(gamma, step)
    assert shares[0] == 0
    assert shares[1:] == pytest.approx(np.diff((np.arange(steps + 1) / steps) ** (gamma + 1)), abs=1e-12)


def test_the_products_are_integrals() -> None:
    """Algorithm 3's closed form, against a sum over fine steps."""

    def function(end: float, gamma: float) -> np.ndarray:
        return np.where(t <= end, (gamma + 1) * t**gamma / end ** (gamma + 1), 0)

    t = (np.arange(200_000) + 0.5) / 200
    for a, b in (((1000.0, 6.94), (1000.0, 16.97)), ((500.0, 16.97), (1000.0, 6.94)), ((800.0, 3.0), (200.0, 7.0))):
        by_sum = float((function(*a) * function(*b)).sum() / 200)
        assert float(dot(*map(np.float64, (*a, *b)))) == pytest.approx(by_sum, rel=1e-4)


def test_the_fit_is_exact_where_it_can_be_and_knows_what_it_lacks() -> None:
    steps = np.repeat(np.arange(100.0, 3201.0, 100.0), 2)
    gammas = np.tile([exponent(0.05), exponent(0.1)], 32)
    coefficients, lacks = fit(steps, gammas, 3200, exponent(0.1))
    assert coefficients == pytest.approx(np.eye(64)[63], abs=1e-6) and lacks < 1e-6
    t = np.arange(3201.0)

    def share(end: float, gamma: float) -> np.ndarray:
        return np.diff(np.minimum(t / end, 1) ** (gamma + 1))

    for width, at_most in ((0.03, 0.012), (0.06, 0.001), (0.075, 0.001), (0.15, 0.003), (0.2, 0.01)):
        coefficients, lacks = fit(steps, gammas, 3200, exponent(width))
        assert coefficients.sum() == pytest.approx(1)
        made = sum(x * share(*each) for x, *each in zip(coefficients, steps, gammas, strict=True))
        wanted = share(3200, exponent(width))
        assert lacks == pytest.approx(np.linalg.norm(made - wanted) / np.linalg.norm(wanted), rel=0.1)
        assert lacks < at_most < FARTHEST
    assert fit(steps, gammas, 3200, exponent(0.01))[1] > FARTHEST


# A real run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tracked(once: Once) -> tuple[Cli, Path]:
    """A run that keeps the checkpoint of every step."""
    cli, _ = once("power_ema", lambda cli: cli.train(*RUN, "checkpoint.keep_last=null"))
    return cli, cli.output()


def directly(run: Path, width: float, steps: int = STEPS) -> dict[str, Tensor]:
    """The average of this width, kept step by step from the weights that trained."""
    average = {key: tensor.clone() for key, tensor in weights(run, "unet", 1).items()}
    for step in range(1, steps + 1):
        now = weights(run, "unet", step)
        update_ema([average[key] for key in now], list(now.values()), power_decay(exponent(width), step))
    return average


def test_any_width_is_made_afterwards(tracked: tuple[Cli, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It differs from what would have been kept by less than a 500th of what it differs from a kept one by."""
    _, run = tracked
    last = run / f"checkpoints/step_{STEPS:08d}"
    assert list(snapshots.until(run, STEPS)) == list(range(1, STEPS + 1))
    for name, width in (("ema", 0.05), ("ema_2", 0.1)):
        assert relative_difference(directly(run, width), weights(run, name, STEPS)) == 0
    wanted = {width: directly(run, width) for width in (0.04, 0.075, 0.15)}
    far = {width: relative_difference(average, weights(run, "ema", STEPS)) for width, average in wanted.items()}
    for width, average in wanted.items():
        assert relative_difference(average, average_of_width(last, width)) < far[width] / 500
    # In the midst of the run, of what was there then.
    before = average_of_width(run / "checkpoints/step_00000012", 0.075)
    assert relative_difference(directly(run, 0.075, 12), before) < far[0.075] / 500

    # Why snapshots are not rounded to 16 bits: at a width of 0.04 it would be better to take that of 0.05.
    def rounded(path: Path) -> dict[str, dict[str, Tensor]]:
        sets = load(path).items()
        return {name: {key: tensor.bfloat16().float() for key, tensor in named.items()} for name, named in sets}

    load = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", rounded)
    assert relative_difference(wanted[0.04], average_of_width(last, 0.04)) > 3 * far[0.04]


def test_weights_are_chosen_by_their_width(tracked: tuple[Cli, Path], trained: Path) -> None:
    """From Python and on the command line; what cannot be made is told in a line."""
    cli, run = tracked
    average, same = (load_model(str(run), weights=weights) for weights in ("ema", "ema@0.05"))
    assert same.digest == average.digest and same.label.endswith(f"step {STEPS}, EMA weights, ema@0.05")
    keys = {"num_images": 2, "num_inference_steps": 2}
    wide = ddpm_train.sample(run, weights="ema@0.10", output="np", **keys)
    said = cli.sample(f"pipeline={run}", "weights=ema@.1", "output=wide", *(f"{key}={keys[key]}" for key in keys))
    assert "EMA weights, ema@0.1" in said
    assert np.array_equal(wide[0].squeeze(), np.array(Image.open(cli.folder / "wide/images/000000.png")))
    guide = {"pipeline": str(run), "weights": "ema@0.1"}
    alone = ddpm_train.sample(run, weights="unet", guidance={**guide, "scale": 0.0}, output="np", **keys)
    assert np.array_equal(alone, wide)  # at scale 0 the guide alone
    told = [
        (run, "ema@0.01", "the 32 averages that are there up to step 16 come no nearer to it than "),
        (run, "ema@0.3", "must be ema@WIDTH, of a width above 0 and below 0.2887, such as ema@0.1"),
        (trained, "ema@0.1", "the run was trained with ema=warmup; a width can be chosen after ema=power"),
        (run / "pipeline", "ema@0.1", f"{run}/pipeline holds the average (weights=ema); use that, or give a run"),
    ]
    for pipeline, chosen, problem in told:
        with pytest.raises(Mistakes) as mistakes:
            ddpm_train.load(pipeline, weights=chosen)
        assert mistakes.value.lines[0].startswith(f"weights={chosen}: {problem}") and len(mistakes.value.lines) == 1


def test_evaluate_finds_the_best_width(tracked: tuple[Cli, Path]) -> None:
    cli, run = tracked
    widths = "ema.widths=[0.05,0.1,0.2]"
    said = cli.evaluate(f"pipeline={run}", "metrics=[]", widths, f"ema.pipeline={cli.folder}/best")
    found = json.loads((run / "evaluation/scores.json").read_text())
    table = {row["width"]: row["value"] for row in found["widths"]["rows"]}
    assert list(table) == [0.05, 0.1, 0.2] and len(set(table.values())) == 3 and not found["scores"]
    best = min(table, key=lambda width: table[width])
    assert found["widths"]["best"] == best and found["widths"]["depends_on"]["weights"] == f"ema@{best:g}"
    assert f"* the best by held_out_loss of the held-out images: weights=ema@{best:g}" in said
    written = load_model(f"{cli.folder}/best")
    assert written.digest == load_model(str(run), weights=f"ema@{best:g}").digest and written.step == STEPS
    assert DDPMPipeline.from_pretrained(cli.folder / "best").unet.config.in_channels == 1
    said = cli.evaluate(f"pipeline={run}", "metrics=[]", widths, "ema.metric=kid", f"ema.pipeline={run}", expect=2)
    assert "error: ema.metric=kid: would choose by the training images; add reference=held_out" in said
    assert f"error: ema.pipeline={run}: holds something else than a pipeline; give a new folder" in said


def test_refine_tries_widths(tracked: tuple[Cli, Path]) -> None:
    _, run = tracked
    ((config, _),) = compose_configs(REFINE, [f"pipeline={run}", "widths=[0.1,0.2]"])
    candidates, _ = candidates_of("average", config, Variant(load_model(str(run)), config.sampler))
    assert list(candidates) == ["ema@0.1", "ema@0.2"]
    assert candidates["ema@0.2"]().model.digest == load_model(str(run), weights="ema@0.2").digest


def test_killed_and_resumed(cli: Cli, tracked: tuple[Cli, Path]) -> None:
    """Equal to the bit, checkpoint and snapshots; those of a future that was given up are not used."""
    whole, run = tracked[1], cli.output()
    process = cli.start_training(*RUN)
    wait_for(lambda: steps_written(run) >= 9, process)
    process.kill()
    process.communicate()
    newest = max((run / "checkpoints").glob("step_*"))
    (newest / "unet.safetensors").write_bytes(b"torn")  # so that it goes back to the one before
    for name in (newest.name, "step_00000099"):
        shutil.rmtree(run / "snapshots" / name, ignore_errors=True)
        shutil.copytree(run / "snapshots/step_00000001", run / "snapshots" / name)
    said = cli.train(*RUN)
    assert f"resumes at step {int(newest.name[5:]) - 1})" in said
    same_checkpoint(run, whole, STEPS)
    assert sorted(path.name for path in (run / "snapshots").iterdir()) == sorted(snapshot_names(whole))
    for name in snapshot_names(whole):
        for file in ("ema.safetensors", "ema_2.safetensors"):
            assert (run / "snapshots" / name / file).read_bytes() == (whole / "snapshots" / name / file).read_bytes()
    assert len(list((run / "checkpoints").glob("step_????????"))) == 2  # the others went, and their snapshots stayed


def snapshot_names(run: Path) -> list[str]:
    return [path.name for path in snapshots.until(run, STEPS).values()]


# Where snapshots go ---------------------------------------------------------------------------------------------------


def save(run: Path, step: int) -> Path:
    path = save_step(run / "checkpoints", step)
    snapshots.keep(path, every_steps=2)
    return path


def content(run: Path) -> dict[str, bytes]:
    files = (path for path in (run / "snapshots").rglob("*") if path.is_file())
    return {str(path.relative_to(run / "snapshots")): path.read_bytes() for path in files}


def test_a_mirror_brings_those_that_lead_to_the_checkpoint(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    mirror = Mirror(str(tmp_path / "mirror/run"))
    for step in (2, 3, 4):
        mirror.upload(save(here, step), here / "metrics.jsonl")
    assert list(snapshots.until(here, 9)) == [2, 4]
    # Another machine was on its way to another step 4, and beyond.
    for step in (4, 6):
        save(there, step)
    stray = there / "snapshots/step_00000004/ema.safetensors"
    stray.unlink()
    stray.write_bytes(b"another")
    manifest = stray.with_name("manifest.json")
    manifest.write_text(manifest.read_text().replace(" ", "  "))
    shutil.rmtree(there / "checkpoints")
    path = fetch_newest(mirror, there / "checkpoints", None, pytest.fail)
    assert path is not None
    snapshots.go_on_from(path, 4, there)
    assert content(there) == content(here)
    # Of a future that the run has given up, the mirror keeps nothing that it has come by.
    (there / "snapshots/step_00000002").rename(there / "snapshots/step_00000005")
    Mirror(mirror.url).upload(save(there, 6), there / "metrics.jsonl")
    assert sorted(path.name for path in (tmp_path / "mirror/run/snapshots").iterdir()) == [
        *("step_00000004", "step_00000005", "step_00000006")
    ]


def test_a_run_that_branches_elsewhere_takes_them_along(tmp_path: Path) -> None:
    for step in (2, 4):
        save(tmp_path / "run", step)
    snapshots.go_on_from(tmp_path / "run/checkpoints/step_00000002", 2, tmp_path / "longer")
    assert list(snapshots.until(tmp_path / "longer", 9)) == [2]
    damaged = tmp_path / "longer/snapshots/step_00000002/ema.safetensors"
    damaged.unlink()
    damaged.write_bytes(b"")
    with pytest.raises(BadCheckpoint, match=r"ema.safetensors has 0 bytes"):
        snapshots.verify(damaged.parent, 2)
