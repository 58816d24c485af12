"""Which choice trains better: arms that differ in it, and share images, order, noise, timesteps and first weights as
far as it does not change them.

    python benchmarks/ablation.py --bed fashion_tiny --seeds 3 --keys train.max_steps=400
    python benchmarks/ablation.py --bed cifar10 --arm min_snr --arm gamma_1 loss=min_snr loss.gamma=1

Every arm is compared with "off", the keys of the bed alone, for each seed. What both share cancels out of the
difference: the interval over the seeds is that of paired differences (Student's t), and beside it stands that of two
independent samples (Welch's). Every arm is measured alike, whatever it was trained for: the error in noise of the
held-out images, uniformly over the timesteps, at noise that is the seed's; and samples against the held-out images.

Each run has a folder of its own below --output: the same command goes on where it stopped, and does not repeat what is
measured. The board, results/ablations.md and .json, is written after every run from the second seed on. Beds that are
not embedded come from the Hub, or from where --keys dataset.path=FOLDER says. It needs '.[evaluate]'.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import report
import torch
from scipy import stats
from torch import Tensor

import ddpm_train
from ddpm_train.config.losses import Loss, for_error_in_x_0
from ddpm_train.config.metrics import METRICS
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.program import compose_configs
from ddpm_train.config.schema import dotted_values
from ddpm_train.config.train import Config
from ddpm_train.data.loader import open_data
from ddpm_train.diffusion.objective import Objective, to_model_range
from ddpm_train.models.load import load_model
from ddpm_train.runs.folder import read_records
from ddpm_train.seeding import Purpose
from ddpm_train.system.files import write_atomic
from ddpm_train.system.signals import Stopped, StopRequest
from ddpm_train.training.preflight import PROGRAM
from ddpm_train.training.train import train_run

BEDS = {
    "fashion_tiny": ("dataset=fashion_tiny",),
    "fashion_mnist": ("dataset=fashion_mnist", "dataset.resolution=16"),
    "cifar10": ("dataset=cifar10", "dataset.resolution=16"),
}
ARMS = {
    "min_snr": ("loss=min_snr",),
    "p2": ("loss=p2",),
    "edm": ("loss=edm",),
    "sigmoid": ("loss=sigmoid",),
    "lognormal": ("timestep_distribution=lognormal",),
    "logit_normal": ("timestep_distribution=logit_normal",),
    "from_data": ("timestep_distribution=from_data",),
    "from_data_weighted": ("timestep_distribution=from_data", "timestep_distribution.importance_weighted=true"),
    "stratified": ("timestep_distribution.stratified=true",),
    "uncertainty": ("loss.learned_uncertainty=true",),
    "augmentation": ("augmentation=edm",),
    "dropout": ("model.dropout=0.1",),
    "augmentation_dropout": ("augmentation=edm", "model.dropout=0.1"),
    "perturbation": ("noise.perturbation=0.1",),
    "nearest_of_4": ("noise.nearest_of=4",),
    "muon": ("optimizer=muon",),
    "muon_lognormal": ("optimizer=muon", "timestep_distribution=lognormal"),
    "high_rate": ("optimizer.lr=4e-3",),
    "scale_shift": ("model.resnet_time_scale_shift=scale_shift",),
    "no_attention": ("model.add_attention=false",),
}
OFF, ALWAYS = "off", ("evaluation=none", "tracker=none")
# With another of these, runs would not share what they are to share, or not be measured at the same noise.
SHARED = ("seed", "dataset", "noise_scheduler")
CONFIDENCE, BATCH_SIZE = 0.95, 256


class NoiseError(Loss):
    """The mean squared error in noise, whatever is predicted."""

    def weights(self, snr: Tensor, prediction_type: str) -> Tensor:
        return for_error_in_x_0(snr, snr, prediction_type)


@dataclass(frozen=True)
class Asked:
    """What a run is measured by.

    Attributes:
        metrics: of samples, by `ddpm-evaluate`'s names.
        num_images: samples of each run.
        draws: of noise and timestep, for each held-out image.
    """

    metrics: tuple[str, ...]
    num_images: int
    draws: int


@dataclass(frozen=True)
class Comparison:
    """How much better an arm is than another, over the same seeds.

    Attributes:
        gain: the mean of the differences; positive: better.
        paired: the half-length of its interval.
        p: of the paired test that there is no difference.
        unpaired: the half-length of the interval if the seeds had nothing in common.
        unpaired_seeds: how many seeds of each arm that would take for an interval as short as the paired one.
    """

    gain: float
    paired: float
    p: float
    unpaired: float
    unpaired_seeds: int

    def text(self, arm: str, metric: str) -> str:
        verb = "does not differ from" if self.paired >= abs(self.gain) else "beats" if self.gain > 0 else "loses to"
        gain = self.gain if verb.startswith("does") else abs(self.gain)
        return f"{arm} {verb} {OFF} by {gain:.3g} ± {self.paired:.2g} (p = {self.p:.2g}) in {metric}"


def compare(arm: Sequence[float], off: Sequence[float], *, lower_is_better: bool) -> Comparison:
    """Student's paired interval and Welch's; the values of the same seed stand at the same place, two at least."""
    count, sign = len(arm), 1 if lower_is_better else -1
    gains = [sign * (there - here) for here, there in zip(arm, off, strict=True)]
    gain, error = statistics.fmean(gains), statistics.stdev(gains) / math.sqrt(count)
    quantile = (1 + CONFIDENCE) / 2
    paired = float(stats.t.ppf(quantile, count - 1)) * error
    p = float(2 * stats.t.sf(abs(gain) / error, count - 1)) if error else float(gain == 0)
    variances = [statistics.variance(values) for values in (arm, off)]
    both = sum(variances)
    freedom = both**2 / sum(variance**2 / (count - 1) for variance in variances) if both else 1.0

    def unpaired(seeds: int) -> float:
        """Of so many seeds, with degrees of freedom in proportion."""
        return float(stats.t.ppf(quantile, freedom * (seeds - 1) / (count - 1))) * math.sqrt(both / seeds)

    needed = count
    while unpaired(needed) > paired and needed < 10_000:
        needed += max(1, needed // 50)
    return Comparison(gain, paired, p, unpaired(count), needed)


def composed(texts: Sequence[str]) -> tuple[Config, dict[str, Any]]:
    ((config, values),) = compose_configs(PROGRAM, texts)
    return config, values


def together(*groups: Sequence[str]) -> list[str]:
    """Overrides, of which a later one takes the place of an earlier one of the same key."""
    return list({text.split("=", 1)[0]: text for group in groups for text in group}.values())


def check_pairs(arms: Mapping[str, Sequence[str]], keys: Sequence[str]) -> None:
    """Raises `Mistakes`: an arm would not share with "off" what is to cancel out."""
    before = dict(dotted_values(composed(keys)[1]))
    for arm, own in arms.items():
        now = dict(dotted_values(composed(together(keys, own))[1]))
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if wrong := [key for key in changed if key.split(".")[0] in SHARED and not key.endswith("prediction_type")]:
            raise Mistakes(f"--arm {arm}: changes {', '.join(wrong)}, which all arms share; give it to all with --keys")


def train_and_measure(folder: Path, keys: Sequence[str], asked: Asked) -> dict[str, float]:
    """The numbers of one run, from its folder if they are there. An interrupted run goes on."""
    path, question = folder / "ablation.json", {"keys": list(keys), **json.loads(json.dumps(asdict(asked)))}
    if path.exists() and (known := json.loads(path.read_text()))["asked"] == question:
        return dict(known["measured"])
    texts = [*keys, f"name={folder.parent.name}_{folder.name}", f"output_dir='{folder}'"]
    config, values = composed(texts)
    with StopRequest() as stop:
        train_run(config, values, arguments=texts, stop=stop)
    measured = {"held_out_loss": held_out_loss(folder, config, asked.draws)}
    if asked.metrics:
        chosen = {"metrics": list(asked.metrics), "num_images": asked.num_images, "reference": "held_out"}
        scores = ddpm_train.evaluate(folder, **chosen, seed=config.seed)
        measured |= {score.metric: score.value for score in scores.values()}
    rates = [record["images_per_second"] for record in read_records(folder)]
    measured["seconds"] = sum(config.train.batch_size / rate for rate in rates)
    write_atomic(path, json.dumps({"asked": question, "measured": measured}).encode())
    return measured


@torch.inference_mode()
def held_out_loss(folder: Path, config: Config, draws: int) -> float:
    """The mean squared error in noise of the run's sampling weights, of the held-out images, the same for all arms."""
    images = open_data(config.dataset, progress=False).validation
    if images is None:
        raise Mistakes(f"dataset.path={config.dataset.path}: holds no images out, by which arms could be compared")
    model = load_model(str(folder))
    objective = Objective(model.noise_scheduler, NoiseError("noise_error"), config.seed)
    losses = []
    for positions in torch.arange(draws * len(images)).split(BATCH_SIZE):
        x_0 = to_model_range(images.load((positions % len(images)).numpy()))
        purposes = (Purpose.HELD_OUT_NOISE, Purpose.HELD_OUT_TIMESTEP)
        noise, timesteps = objective.draw(tuple(x_0.shape[1:]), positions, purposes)
        losses.append(objective.per_image(model.unet, x_0, noise, timesteps))
    return float(torch.cat(losses).double().mean())


def compared(measured: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, Comparison]]:
    """Every arm of two seeds and more with "off", by arm and metric, from the numbers of each arm's first seeds."""

    def of(arm: str, metric: str) -> Comparison:
        here = [numbers[metric] for numbers in measured[arm]]
        there = [numbers[metric] for numbers in measured[OFF][: len(here)]]
        lower = metric not in METRICS or METRICS[metric].lower_is_better
        return compare(here, there, lower_is_better=lower)

    arms = [arm for arm, numbers in measured.items() if arm != OFF and len(numbers) > 1]
    return {arm: {metric: of(arm, metric) for metric in measured[OFF][0]} for arm in arms}


def write_board(name: str, figures: dict[str, Any]) -> None:
    """Put a series into the board, in the place of an earlier one of this name."""
    report.RESULTS.mkdir(parents=True, exist_ok=True)
    path = report.RESULTS / "ablations.json"
    series = json.loads(path.read_text()) if path.exists() else {}
    series[name] = {"circumstances": report.circumstances(), "figures": figures}
    write_atomic(path, (json.dumps(series, indent=1) + "\n").encode())
    pages = [page(name, each["circumstances"], each["figures"]) for name, each in series.items()]
    write_atomic(report.RESULTS / "ablations.md", (HEAD + "".join(pages)).encode())


HEAD = f"""# Ablations

Written by `benchmarks/ablation.py`, which says how. An arm differs from "{OFF}" in the keys of its row; whatever these do not change is the same for both: images, order, noise, timesteps, first weights. *Better by* is the mean over the seeds of the paired differences, positive for the better arm, with its {CONFIDENCE:.0%} interval and the p of each comparison alone: of twenty without a difference one has p < 0.05. *Unpaired* is the interval if the seeds had nothing in common, and the seeds of each arm that it would take to be as short as the paired one. `held_out_loss` is the error in noise at uniform timesteps, whatever an arm was trained for; samples are compared with the held-out images. On a busy machine `seconds` says little.
"""  # noqa: E501
TABLE = "| Arm | Metric | Seeds | Off | Arm's | Better by | p | Unpaired | Seeds it takes |\n" + 9 * "|---" + "|"


def page(name: str, where: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """A series as a section."""
    versions = ", ".join(f"{package} {where[package]}" for package in ("python", *report.PACKAGES))
    device = where["gpu"] or where["cpu"]
    lines = [f"\n## {name}\n", f"`{where['command']}` on {where['date']}: {device}; {versions}.\n", TABLE]
    for arm, by_metric in figures["comparisons"].items():
        for metric, found in by_metric.items():
            seeds = len(figures["measured"][arm])
            means = [statistics.fmean(each[metric] for each in figures["measured"][who][:seeds]) for who in (OFF, arm)]
            keys = " ".join(f"`{key}`" for key in figures["arms"][arm])
            cells = [f"{arm}: {keys}", metric, str(seeds), *(f"{mean:.4g}" for mean in means)]
            cells += [f"{found['gain']:.3g} ± {found['paired']:.2g}", f"{found['p']:.2g}", f"± {found['unpaired']:.2g}"]
            lines.append(f"| {' | '.join(cells)} | {found['unpaired_seeds']} |")
    return "\n".join(lines) + "\n"


def series(arguments: argparse.Namespace, arms: Mapping[str, Sequence[str]]) -> None:
    """Train and measure what is not there yet, seed by seed; write the board after each run."""
    asked = Asked(tuple(arguments.metrics), arguments.num_images, arguments.draws)
    keys = together(ALWAYS, BEDS[arguments.bed], arguments.keys)
    check_pairs(arms, keys)
    everything = {OFF: (), **arms}
    measured: dict[str, list[dict[str, float]]] = {arm: [] for arm in everything}
    found: dict[str, dict[str, Comparison]] = {}
    for seed, (arm, own) in itertools.product(range(arguments.seeds), everything.items()):
        folder = arguments.output.resolve() / arguments.bed / arm / f"seed_{seed}"
        measured[arm].append(train_and_measure(folder, together(keys, own, [f"seed={seed}"]), asked))
        if found := compared(measured):
            told = {name: {metric: asdict(one) for metric, one in each.items()} for name, each in found.items()}
            figures = {**asdict(asked), "keys": keys, "arms": arms, "measured": measured, "comparisons": told}
            write_board(", ".join(filter(None, (arguments.bed, " ".join(arguments.keys)))), figures)
    for arm, by_metric in found.items():
        for metric, one in by_metric.items():
            print(f"{one.text(arm, metric)}; unpaired ± {one.unpaired:.2g}, and {one.unpaired_seeds} seeds")


def main(texts: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bed", choices=BEDS, default="fashion_tiny")
    known = f"{', '.join(ARMS)}, or your own with its keys; default: all of these"
    parser.add_argument("--arm", nargs="+", action="append", metavar=("NAME", "KEY=VALUE"), help=known)
    parser.add_argument("--seeds", type=int, default=3, help="at least 2; default: 3")
    parser.add_argument("--keys", nargs="*", default=[], metavar="KEY=VALUE", help="of every arm")
    parser.add_argument("--metrics", nargs="*", default=["fid", "kid", "precision", "recall", "copy_rate"])
    parser.add_argument("--num-images", type=int, default=2048, help="samples of each run")
    parser.add_argument("--draws", type=int, default=8, help="of noise, for each held-out image")
    parser.add_argument("--output", type=Path, default=Path("outputs/ablation"))
    arguments = parser.parse_args(texts)
    if arguments.seeds < 2:
        parser.error("--seeds: one seed has no interval; give at least 2")
    arms = {name: tuple(keys) or ARMS.get(name, ()) for name, *keys in arguments.arm or [[name] for name in ARMS]}
    if unknown := [name for name, keys in arms.items() if not keys or name == OFF]:
        parser.error(f"--arm {unknown[0]}: no arm of this name is known; give its keys")
    try:
        series(arguments, arms)
    except (Mistakes, Stopped) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2 if isinstance(error, Mistakes) else 75) from None


if __name__ == "__main__":
    main()
