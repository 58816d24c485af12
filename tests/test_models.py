"""A run's model is loaded by the parts of its config that describe it, whatever else stands there; and what is no model
is refused in a line."""

import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cli import Cli
from safetensors.torch import load_file, save_file

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.models.load import load_model
from ddpm_train.runs.folder import CONFIG, config_yaml, read_config


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run without `pipeline/`, so that its checkpoints are what there is."""
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("pipeline"))
    return tmp_path / "run"


def test_of_a_loss_and_a_tracker_that_are_not_known_here(run: Path, trained: Path) -> None:
    elsewhere = {"loss": {"name": "somebodys_own", "power": 2}, "tracker": {"theirs": {}}, "new_section": {"key": 1}}
    (run / CONFIG).write_bytes(config_yaml({**read_config(run / CONFIG), **elsewhere}))
    model = load_model(str(run))
    assert model.digest == load_model(str(trained)).digest and model.step == 6
    assert load_model(str(run / "checkpoints/best")).step in (3, 6)


def test_what_describes_the_model_is_checked(run: Path) -> None:
    values = read_config(run / CONFIG)
    values["model"]["layers_per_block"] = 0
    values["dataset"]["resolution"] = "large"
    (run / CONFIG).write_bytes(config_yaml(values))
    with pytest.raises(Mistakes) as mistakes:
        load_model(str(run))
    assert list(mistakes.value.lines) == [
        "dataset.resolution=large: must be a whole number or [height,width]",
        "model.layers_per_block=0: must be greater than 0",
    ]


def test_weights_that_are_no_numbers_are_refused(cli: Cli, trained: Path) -> None:
    """By all that loads a model, in a line that names the first tensor and how many there are."""
    shutil.copytree(trained / "pipeline", cli.folder / "nan")
    file = cli.folder / "nan/unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.weight"][0, 0, 0, 0] = math.nan
    tensors["conv_out.bias"][0] = math.inf
    save_file(tensors, file, metadata={"format": "pt"})
    reason = f"its weights are no numbers: 2 of {len(tensors)} tensors hold NaN or infinity, conv_in.weight first; "
    with pytest.raises(Mistakes) as mistakes:
        load_model(str(cli.folder / "nan"))
    assert mistakes.value.lines == (f"pipeline={cli.folder}/nan: {reason}give an earlier checkpoint or another model",)
    assert f"error: pipeline=nan: {reason}" in cli.sample("pipeline=nan", expect=2)
    assert f"error: model.pretrained=nan: {reason}" in cli.train("model.pretrained=nan", expect=2)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        ({"model": [1]}, "model=[1]: must be a section of keys"),
        ({"model": {"layers_per_block": 10**6}}, "model.layers_per_block=1000000: must be at most 32"),
        (
            {"model": {"downsample_padding": 2}},
            "pipeline={}: no network of the layout in {}/config.yaml works: ",
        ),
        (
            {"model": {"block_out_channels": [8, 24]}},
            "pipeline={}: it cannot be loaded: ",
        ),
        ({"noise_scheduler": {"trained_betas": [0.1]}}, "noise_scheduler.trained_betas: 1 values for num_train_"),
    ],
)
def test_of_a_config_that_was_damaged(run: Path, damage: dict[str, Any], line: str) -> None:
    values = read_config(run / CONFIG)
    for section, keys in damage.items():
        values[section] = {**values[section], **keys} if isinstance(keys, dict) else keys
    (run / CONFIG).write_bytes(config_yaml(values))
    assert refused(run).startswith(line.replace("{}", str(run)))


INDEX, UNET, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SHARDS = f"{WEIGHTS}.index.json"
# File -> what stands in it, and what is said of it. A mapping changes these keys of what was there.
FROM_ELSEWHERE: list[tuple[str, Any, str]] = [
    (INDEX, [], "model_index.json: Input should be an object"),
    (INDEX, None, "model_index.json: is no regular file"),
    (
        INDEX,
        {"_class_name": ["DDPMPipeline"]},
        "model_index.json: _class_name: Input should be a valid str",
    ),
    (UNET, None, "config.json: is no regular file"),
    (
        UNET,
        {"norm_num_groups": "4"},
        "config.json: norm_num_groups: Input should be a valid integer",
    ),
    (UNET, {"norm_eps": float("nan")}, "config.json: norm_eps: Input should be a finite number"),
    (UNET, {"layers_per_block": 10**9}, "config.json: layers_per_block: Input should be less than"),
    (UNET, {"freq_shift": 4}, "no network of the layout in {}/unet/config.json works: the frequencies"),
    (
        UNET,
        {"out_channels": 5},
        "no network of the layout in {}/unet/config.json works: of an image (1, ",
    ),
    (
        UNET,
        {"quantization_config": {"x": 1}},
        "config.json: quantization_config: must be a number of",
    ),
    (SCHEDULER, None, "scheduler_config.json: is no regular file"),
    (
        SCHEDULER,
        {"num_train_timesteps": 10**12},
        "scheduler_config.json: num_train_t",
    ),
    (
        SCHEDULER,
        {"trained_betas": "x"},
        "scheduler_config.json: trained_betas: Input",
    ),
    (SCHEDULER, {"trained_betas": [0.5]}, "its scheduler has 1 trained_betas for num_train_t"),
    (
        WEIGHTS,
        None,
        "{}/unet/diffusion_pytorch_model.safetensors is no regular file",
    ),
    (SHARDS, [], "safetensors.index.json: Input should be an object"),
    (
        SHARDS,
        {"metadata": {}, "weight_map": {"conv_in.weight": "../../../secret.safetensors"}},
        "safetensors.index.json names ../../../secret.safetensors, which is no file beside it",
    ),
    (
        SHARDS,
        {"metadata": {}, "weight_map": {"conv_in.lost": "diffusion_pytorch_model.safetensors"}},
        "its weights lack ",
    ),
]


@pytest.mark.parametrize(("name", "content", "line"), FROM_ELSEWHERE)
def test_of_a_file_from_elsewhere(trained: Path, tmp_path: Path, name: str, content: Any, line: str) -> None:
    folder = shutil.copytree(trained / "pipeline", tmp_path / "pipeline")
    path = folder / name
    if isinstance(content, dict) and path.exists():
        content = json.loads(path.read_text()) | content
    path.unlink(missing_ok=True)
    if content is None:
        os.mkfifo(path)
    else:
        path.write_text(json.dumps(content))
    assert line.replace("{}", str(folder)) in refused(folder)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_no_numbers_of_a_network(trained: Path, tmp_path: Path, kind: torch.dtype) -> None:
    folder = shutil.copytree(trained / "pipeline", tmp_path / "pipeline")
    path = folder / WEIGHTS
    save_file({name: weight.to(kind) for name, weight in load_file(path).items()}, path)
    assert re.search(r" holds \S+ as (I64|BOOL|C64), which is no weight$", refused(folder))


def test_a_note_of_somebody_else_says_nothing_of_the_weights(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained / "pipeline", tmp_path / "pipeline")
    for note in ("[]", '{"step": "many", "weights": "ema"}', "{"):
        (folder / "training.json").write_text(note)
        assert load_model(str(folder)).step is None


def refused(folder: Path) -> str:
    with pytest.raises(Mistakes) as mistakes:
        load_model(str(folder))
    (line,) = mistakes.value.lines
    assert line.isprintable()
    return line


def test_the_memory_of_a_control_group(cli: Cli) -> None:
    """Of a group around that of the process, as a job of Slurm has its limit."""
    groups = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    kind = "memory" if "memory" in groups else ""
    around = Path("/sys/fs/cgroup", kind, groups[kind].lstrip("/"), f"ddpm_train_{os.getpid()}")
    try:
        (around / "own").mkdir(parents=True)
        (around / ("memory.limit_in_bytes" if kind else "memory.max")).write_text(str(3 << 30))
        print_it = "from ddpm_train.models.trial import memory_bytes; print(memory_bytes())"
        said = cli.python("-c", f"print(0, file=open({str(around / 'own/cgroup.procs')!r}, 'w')); {print_it}")
    except OSError:
        pytest.skip("no control groups may be made here")
    finally:
        for group in (around / "own", around):
            if group.exists():
                group.rmdir()
    assert said == f"{3 << 30}\n"
