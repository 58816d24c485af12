"""The instrument of paired ablations, as people run it: what the arms share, what it repeats, and its arithmetic."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.cli import ROOT, TINY

from ddpm_train.training import run as training


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    import ablation
    import report

    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    return ablation


@pytest.mark.slow
def test_arms_share_what_they_see_and_nothing_is_done_twice(
    ablation: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[str]] = []
    original = training.micro_batches

    def watched(*arguments: Any, **keys: Any) -> Iterator[Any]:
        seen.append([])
        for batch in original(*arguments, **keys):
            seen[-1].append(hashlib.sha256(b"".join(part.numpy().tobytes() for part in batch)).hexdigest())
            yield batch

    monkeypatch.setattr(training, "micro_batches", watched)
    keys = [*TINY, "train.max_steps=2", "checkpoint.every_steps=null"]
    command = ["--arm", "min_snr", "--seeds", "2", "--metrics", "--draws", "1", "--output", str(tmp_path / "runs")]
    ablation.main([*command, "--keys", *keys])
    off, min_snr, off_of_seed_1, min_snr_of_seed_1 = seen
    assert off == min_snr and len(off) == 2  # images, noise and timesteps
    assert off_of_seed_1 == min_snr_of_seed_1 and not set(off) & set(off_of_seed_1)
    assert "min_snr " in (said := capsys.readouterr().out) and "in held_out_loss; unpaired ± " in said
    (series,) = json.loads((tmp_path / "results/ablations.json").read_text()).values()
    figures = series["figures"]
    losses = {arm: [seed["held_out_loss"] for seed in figures["measured"][arm]] for arm in ("off", "min_snr")}
    found = figures["comparisons"]["min_snr"]["held_out_loss"]
    gains = [there - here for there, here in zip(losses["off"], losses["min_snr"], strict=True)]
    assert found["gain"] == pytest.approx(sum(gains) / 2) and all(gains)
    # With one degree of freedom, t(0.975) is 12.7062; the error of the mean of two is half of what they differ by.
    assert found["paired"] == pytest.approx(12.7062 * abs(gains[0] - gains[1]) / 2, rel=1e-4)
    page = (tmp_path / "results/ablations.md").read_text()
    assert (
        "| min_snr: `loss=min_snr` | held_out_loss |" in page and f"{found['gain']:.3g} ± {found['paired']:.2g}" in page
    )

    # The same command again trains nothing; where a measurement is lost, the finished run is measured again.
    (tmp_path / "runs/fashion_tiny/off/seed_1/ablation.json").unlink()
    ablation.main([*command, "--keys", *keys])
    (again,) = json.loads((tmp_path / "results/ablations.json").read_text()).values()
    assert len(seen) == 4 and again["figures"] == figures


def test_the_measure_is_the_error_in_noise_whatever_is_predicted(ablation: ModuleType) -> None:
    snr = torch.tensor([4.0, 1.0, 0.25])
    measure = ablation.NoiseError("noise_error")
    assert measure.weights(snr, "epsilon").tolist() == [1, 1, 1]
    assert measure.weights(snr, "v_prediction").tolist() == pytest.approx([0.8, 0.5, 0.2])
    assert measure.weights(snr, "sample").tolist() == [4, 1, 0.25]


def test_the_intervals_are_those_of_a_table(ablation: ModuleType) -> None:
    """Written out by hand: the differences are 1, 2, 1, and the variances of both arms are 7/3."""
    found = ablation.compare([1.0, 2.0, 4.0], [2.0, 4.0, 5.0], lower_is_better=True)
    assert found.gain == pytest.approx(4 / 3)
    assert found.paired == pytest.approx(4.302653 / 3, rel=1e-6)  # t(0.975) with 2 degrees of freedom
    assert found.p == pytest.approx(1 - 4 / 18**0.5, rel=1e-6)  # of t = 4 with 2, in closed form
    assert found.unpaired == pytest.approx(2.776445 * (2 * 7 / 9) ** 0.5, rel=1e-6)  # with 4
    # (7/3 · 2 / m)^(1/2) times t, which is 2.03 to 2.07 for as many: 10 a bit above 1.434, 11 below it.
    assert found.unpaired_seeds == 11
    assert found.text("arm", "kid") == "arm does not differ from off by 1.33 ± 1.4 (p = 0.057) in kid"
    better = ablation.compare([0.5, 0.7], [0.2, 0.4], lower_is_better=False)
    assert better.gain == pytest.approx(0.3) and better.text("arm", "recall").startswith("arm beats off by 0.3 ± ")
    same = ablation.compare([1.0, 2.0], [1.0, 2.0], lower_is_better=True)
    assert (same.gain, same.paired, same.p) == (0, 0, 1)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--arm", "mine"], "--arm mine: no arm of this name is known; give its keys"),
        (["--arm", "mine", "seed=3"], "--arm mine: changes seed, which all arms share; give it to all with --keys"),
        (["--arm", "mine", "loss=l1"], "loss=l1: no such config"),
        (["--seeds", "1"], "--seeds: one seed has no interval; give at least 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    ablation: ModuleType, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        ablation.main([*arguments, "--output", str(tmp_path)])
    assert ended.value.code == 2 and line in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
