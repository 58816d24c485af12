"""Every config that comes along composes, checks and means what its header says; so do configs of one's own."""

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DDPMScheduler, UNet2DModel
from helpers.cli import FORK_CHILDREN, ROOT, Cli
from hydra import compose, initialize_config_dir, version
from packaging.version import Version

from ddpm_train.cli.sweeps.jobs import chosen
from ddpm_train.config.grammar import parse
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.naming import folder_name
from ddpm_train.config.overrides import as_overrides, discrete
from ddpm_train.config.program import compose_configs
from ddpm_train.config.samplers import SAMPLERS
from ddpm_train.config.train import Config
from ddpm_train.models.unet import unet_arguments
from ddpm_train.runs.folder import config_yaml
from ddpm_train.training.preflight import PROGRAM

CONF = ROOT / "conf"
TRAIN = str(ROOT / "train.py")
# What a choice needs besides itself.
NEEDS = {
    "dataset=base": ["dataset.source=folder", "dataset.path=images"],
    "dataset=imagefolder": ["dataset.path=images"],
    "experiment=small_data": ["dataset.path=images"],
    "dataset=arrays": ["dataset.path=images"],
    "dataset=hub": ["dataset.path=owner/name"],
}
RESOLUTIONS = {
    "auto": 64,
    "unet_tiny": 16,
    "unet_32": 32,
    "unet_small": 64,
    "unet_64": 64,
    "unet_128": 128,
    "unet_256": 256,
    "unet2d": 64,
}
CHOICES = [
    f"{path.parent.name}={path.stem}"
    for path in sorted(CONF.glob("*/*.yaml"))
    if path.parent.name not in ("hydra", "model")
] + [f"sampler={name}" for name in SAMPLERS]


# On no machine.
UNCHECKED = replace(PROGRAM, preflight=lambda config: iter(()), settle=lambda config, values, overrides: values)


def composed(*overrides: str) -> Config:
    return compose_configs(UNCHECKED, overrides)[0][0]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes(choice: str) -> None:
    composed(choice, *NEEDS.get(choice, []))


@pytest.mark.parametrize("name", [path.stem for path in (CONF / "model").glob("*.yaml")])
def test_every_model_composes_at_its_resolution(name: str) -> None:
    composed(f"model={name}", f"dataset.resolution={RESOLUTIONS[name]}")


def test_several_trackers_at_once() -> None:
    tracker = composed("tracker=[tensorboard,wandb,trackio]", "+tracker.wandb.project=cats").tracker
    assert (tracker.tensorboard, tracker.wandb, tracker.trackio) == ({}, {"project": "cats"}, {})
    tracker = composed("tracker=none").tracker
    assert (tracker.tensorboard, tracker.wandb, tracker.trackio) == (None, None, None)


def test_numbers_are_taken_for_texts_where_texts_are_wanted() -> None:
    config = composed("name=2024", "dataset.revision=1234567", "train.max_steps=1e5")
    assert (config.name, config.dataset.revision, config.train.max_steps) == ("2024", "1234567", 100_000)


WRITTEN = ("1e3", "007", "1_000", "0x10", ".5", "1.", "+3", "TRUE", "NaN", "1e400", "1.10_b", "null_")


def test_a_text_is_what_was_written(tmp_path: Path) -> None:
    """Also where it looks like a number: alone, in a list, in a reference to it, in a mapping, in a run's config."""
    overrides = ["name=2024_11_27", "dataset.revision=1.10", "resume=1e3", f"allow_change=[{','.join(WRITTEN)}]"]
    overrides += ["checkpoint={mirror: 1e3,keep_last:1_0}", *as_overrides({"hub": {"revision": "1e3"}})]
    ((config, values),) = compose_configs(UNCHECKED, overrides)
    assert (config.name, config.output_dir) == ("2024_11_27", "outputs/2024_11_27")
    assert (config.dataset.revision, config.resume, config.allow_change) == ("1.10", "1e3", WRITTEN)
    assert (config.checkpoint.mirror, config.checkpoint.keep_last, config.hub.revision) == ("1e3", 10, "1e3")
    (tmp_path / "config.yaml").write_bytes(config_yaml(values))
    assert compose_configs(UNCHECKED, [], name="config", path=tmp_path) == [(config, values)]


@pytest.mark.parametrize("choices", ["1.10,1.1", "choice(1.10,1.1)", "shuffle(1.10,1.1)"])
def test_a_choice_among_texts_is_what_was_written(choices: str) -> None:
    """A job says of itself what was, too, and is called so."""
    configs = compose_configs(UNCHECKED, [f"name={choices}"], multirun=True)
    assert {config.output_dir for config, _ in configs} == {"outputs/1.10", "outputs/1.1"}
    assert {folder_name(chosen([text], ["name"])) for text in discrete(parse(f"name={choices}"))} == {
        *("name=1.10", "name=1.1")
    }


def test_numbers_stay_numbers_where_no_text_is_wanted() -> None:
    config = composed("train.max_steps=1e5", "optimizer.betas=[0.9,.99]", "sampler=ddim", "sampler.eta=1e-1")
    assert (config.train.max_steps, config.sampler.arguments) == (100_000, {"eta": 0.1})
    assert composed("dataset.revision=null", "objective=null").dataset.revision is None
    names = [config.name for config, _ in compose_configs(UNCHECKED, ["name=range(1,4)"], multirun=True)]
    assert names == ["1", "2", "3"]


def test_the_files_hold_exactly_diffusers_arguments() -> None:
    """Sizes, channels and timesteps of the UNet follow from the rest; class labels have no place here."""
    derived = {"sample_size", "in_channels", "out_channels", "num_train_timesteps"}
    labels = {"class_embed_type", "num_class_embeds"}
    for cls, file, elsewhere, own in (
        (UNet2DModel, "model/unet2d.yaml", derived | labels, {"pretrained"}),
        (DDPMScheduler, "noise_scheduler/linear.yaml", set(), {"log_snr_shift"}),
    ):
        arguments = set(inspect.signature(cls.__init__).parameters) - {"self"}
        assert set(yaml.safe_load((CONF / file).read_text())) - own == arguments - elsewhere


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("unet_32", 35.75),
        ("unet_small", 13.21),
        ("unet_64", 52.76),
        ("unet_128", 113.67),
        ("unet_256", 113.67),
        ("unet_tiny", None),
    ],
)
def test_parameter_counts(name: str, millions: float | None) -> None:
    config = composed(f"model={name}", f"dataset.resolution={RESOLUTIONS[name]}", "dataset.channels=3")
    with torch.device("meta"):
        unet = UNet2DModel(in_channels=3, out_channels=3, **unet_arguments(config.model))
    count = unet.num_parameters() / 1e6
    if millions is None:
        assert 0.7 <= count <= 1.4  # "about 1M"
    else:
        assert abs(count - millions) < 0.01
        assert f"{count:.1f}M parameters" in (CONF / f"model/{name}.yaml").read_text()


def test_flowers102_64_is_the_recipe_of_diffusers() -> None:
    config = composed("experiment=flowers102_64")
    dataset, optimizer, ema, train = config.dataset, config.optimizer, config.ema, config.train
    assert (dataset.path, dataset.resolution) == ("huggan/flowers-102-categories", (64, 64))
    assert (dataset.crop, dataset.random_flip) == ("center", True)
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adamw", 1e-4, 1e-6)
    assert optimizer.name == "adamw" and (optimizer.betas, optimizer.eps) == ((0.95, 0.999), 1e-8)
    assert (config.lr_scheduler.name, config.lr_scheduler.warmup_steps) == ("cosine", 500)
    assert ema.name == "warmup" and (ema.inv_gamma, ema.power, ema.max_decay) == (1.0, 0.75, 0.9999)
    assert (train.batch_size, train.epochs, train.max_steps) == (16, 100, None)
    assert config.model == composed("model=unet_128", "dataset.resolution=64").model


def test_cifar10_is_the_recipe_of_ho_et_al() -> None:
    config = composed("experiment=cifar10")
    optimizer, ema, train = config.optimizer, config.ema, config.train
    assert (config.dataset.path, config.dataset.resolution, config.dataset.random_flip) == (
        "uoft-cs/cifar10",
        (32, 32),
        True,
    )
    assert (optimizer.name, optimizer.lr) == ("adam", 2e-4)
    assert (config.lr_scheduler.name, config.lr_scheduler.warmup_steps) == ("constant", 5000)
    assert ema.name == "warmup" and ema.min_decay == ema.max_decay == 0.9999
    assert (train.batch_size, train.max_steps, train.max_grad_norm) == (128, 800_000, 1.0)
    assert (config.model.dropout, config.noise_scheduler.variance_type) == (0.1, "fixed_large")


def test_celeba_64_is_as_its_header_says() -> None:
    config = composed("experiment=celeba_64")
    optimizer, ema, train = config.optimizer, config.ema, config.train
    with torch.device("meta"):
        unet = UNet2DModel(in_channels=3, out_channels=3, **unet_arguments(config.model))
    assert unet.num_parameters() == 78_700_803
    assert (optimizer.name, optimizer.lr, train.batch_size) == ("adam", 2e-4, 128)
    assert ema.name == "warmup" and ema.min_decay == ema.max_decay == 0.9999
    assert config.dataset.chosen == () and config.dataset.resolution == (64, 64)


def test_small_data_says_all_itself(tmp_path: Path) -> None:
    """And the images decide nothing, however few they are."""
    config = composed("experiment=small_data", f"dataset.path={tmp_path}")
    assert config.dataset.chosen == () and config.dataset.validation_fraction == 0.1
    assert replace(config.model, dropout=0.0) == composed("model=unet_small").model and config.model.dropout == 0.1
    assert config.augmentation.name == "edm" and not config.dataset.random_flip and config.train.stop_before_copying


@pytest.mark.parametrize("name", ["flowers102_64", "cifar10"])
def test_an_experiment_gives_way_to_the_command_line(cli: Cli, name: str) -> None:
    command = (TRAIN, "--cfg", "job", f"experiment={name}", "optimizer=sgd", "train.batch_size=3")
    values = yaml.safe_load(cli.python(*command))
    assert (values["name"], values["optimizer"]["name"], values["train"]["batch_size"]) == (name, "sgd", 3)


TEXTS = (
    "a b",
    "null",
    "1e5",
    "it's",
    'a "b"',
    "a,b",
    "[1]",
    "{a: 1}",
    "a=b",
    "~/x",
    "é\\n",
    "a\\\\",
    "",
    "/x-y/z",
    "$x",
)


@pytest.mark.parametrize("text", TEXTS)
def test_a_keyword_means_what_it_says(text: str) -> None:
    assert composed(*as_overrides({"dataset.path": text, "allow_change": [text]})).dataset.path == text
    assert composed(*as_overrides({"allow_change": [text, "x"]})).allow_change == (text, "x")


def test_keywords_are_nested_as_configs_are() -> None:
    """What a config holds is as good as the overrides that made it."""
    overrides = ["sampler=ddim", "sampler.eta=0.5", "loss=min_snr", "optimizer=sgd", "train.max_grad_norm=null"]
    overrides += ["tracker=[tensorboard,wandb]", "+tracker.wandb.project=my cats", "evaluation=full", "name=2024"]
    ((config, values),) = compose_configs(UNCHECKED, overrides)
    assert compose_configs(UNCHECKED, as_overrides(values)) == [(config, values)]
    few = {"train": {"max_steps": 3, "max_grad_norm": None}, "dataset.resolution": (16, 24), "model": "unet_32"}
    config = composed(*as_overrides(few))
    assert (config.train.max_steps, config.train.max_grad_norm) == (3, None)
    assert config.dataset.resolution == (16, 24) and len(config.model.block_out_channels) == 4


def test_all_mistakes_of_keywords_are_raised_at_once() -> None:
    keys = {"train": {"max_stepss": 3, "batch_size": "many"}, "model": "unet_x", "seed": -1}
    with pytest.raises(Mistakes) as raised:
        composed(*as_overrides(keys))
    assert [line.split(":")[0] for line in raised.value.lines] == [
        *("model=unet_x", "train.max_stepss=3", "seed=-1", "train.batch_size=many")
    ]


def test_whoever_uses_hydra_besides_finds_it_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "own.yaml", "key: 1\n")
    write(tmp_path / "group/one.yaml", "x: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.2"):
        composed("train.max_steps=3")
        assert compose("own", ["key=2", "+group=one"]) == {"key": 2, "group": {"x": 1}}
        assert version.getbase() == Version("1.2")


def test_configs_of_ones_own(cli: Cli) -> None:
    """A folder elsewhere holds further choices, chosen like those that come along."""
    write(cli.folder / "mine/model/mine.yaml", "defaults: [unet_32, _self_]\ndropout: 0.3\n")
    write(
        cli.folder / "mine/experiment/mine.yaml",
        "# @package _global_\ndefaults: [override /model: mine]\ntrain: {batch_size: 5}\n",
    )
    run = (TRAIN, "--config-dir", "mine", "--cfg", "job")
    assert yaml.safe_load(cli.python(*run, "model=mine"))["model"]["dropout"] == 0.3
    values = yaml.safe_load(cli.python(*run, "experiment=mine"))
    assert (values["model"]["dropout"], values["train"]["batch_size"]) == (0.3, 5)
    assert "experiment: celeba_64, cifar10, flowers102_64, mine, small_data" in cli.python(*run[:-2], "--help")
    # Checked like the others: 10 does not divide by the four levels of `mine`.
    wrong = cli.python(*run[:-2], "model=mine", "dataset.resolution=10", expect=2)
    assert (
        wrong
        == "error: dataset.resolution=10: 4 levels need multiples of 8; use dataset.resolution=8 or fewer levels\n"
    )


def test_a_saved_config_runs_again(cli: Cli) -> None:
    """A run's folder holds all it takes to repeat it: from there it goes on, elsewhere it repeats itself exactly."""
    cli.train("name=1e3", "dataset.resolution=[8,12]")  # a text, which YAML has to quote
    again = (TRAIN, "--config-path", "outputs/1e3", "--config-name", "config")
    assert "nothing to do" in cli.python(*again)
    cli.python(*again, "name=again", "output_dir=outputs/again")
    losses = [[line["loss"] for line in cli.metrics(name)] for name in ("1e3", "again")]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    wrong = cli.python(*again, "model.dropoutt=0.1", "optimizer=3", expect=2)
    assert wrong.splitlines() == [
        "error: model.dropoutt=0.1: no such key; did you mean 'model.dropout'?",
        "error: optimizer=3: must be a section of keys",
    ]


def test_a_sweep_gives_each_choice_its_run(cli: Cli) -> None:
    sweep = ("--multirun", "seed=choice(7)", "name=run_${seed}_${hydra:job.num}")
    cli.train(*sweep, "train.max_steps=1", "evaluation=none", **FORK_CHILDREN)
    assert {path.name for path in cli.output("").iterdir()} == {"run_7_0", "sweep.csv", "sweep.png", "tensorboard"}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
