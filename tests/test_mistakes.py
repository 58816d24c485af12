"""Whatever a user gets wrong is told before anything slow starts: all of it at once, one line each, exit code 2."""

import importlib.util
import re
import socket
import sys
from pathlib import Path

import pytest
import yaml
from helpers.cli import ROOT, Cli, Process
from helpers.forked import free_port

from ddpm_train.config.metrics import EXTRACTORS
from ddpm_train.config.mistakes import Mistakes, not_installed
from ddpm_train.config.program import compose_configs
from ddpm_train.system import launch
from ddpm_train.training.preflight import PROGRAM

BLOCKS = "DownBlock2D, AttnDownBlock2D, ResnetDownsampleBlock2D, SkipDownBlock2D, AttnSkipDownBlock2D"


def options(group: str) -> str:
    return ", ".join(sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml")))


def mistakes(cli: Cli, *arguments: str, **environment: str) -> list[str]:
    """What `python train.py ARGUMENTS` finds wrong; it must find something, say nothing else and leave nothing."""
    err = cli.python("-m", "ddpm_train.cli.train", *arguments, expect=2, **environment)
    return told(cli, err)


def mistakes_of_several(cli: Cli, count: int, *arguments: str) -> list[str]:
    """The same, started as so many processes, of which one speaks."""
    return told(cli, cli.python_together("-m", "ddpm_train.cli.train", *arguments, count=count, expect=2))


def told(cli: Cli, err: str) -> list[str]:
    lines = err.splitlines()
    assert all(line.startswith("error: ") for line in lines), err
    assert not (cli.folder / "outputs").exists()
    return [line.removeprefix("error: ") for line in lines]


# Command line -> the lines. Where keys are independent of each other, one command holds several mistakes.
TABLE = {
    # Names.
    "trainn.max_steps=3 max_steps=8 train.batchsize=8 modle=unet_32 xyz=3 ~xyz ++xyz.a=1": [
        "trainn.max_steps=3: no such key; did you mean 'train.max_steps'?",
        "max_steps=8: no such key; did you mean 'train.max_steps'?",
        "train.batchsize=8: no such key; did you mean 'train.batch_size'?",
        "modle=unet_32: no such key; did you mean 'model'?",
        "xyz=3: no such key; see --cfg job",
        "~xyz: no such key; see --cfg job",
        "++xyz.a=1: no such key; see --cfg job",
    ],
    "+train.max_step=3 +xyz=3": [
        "train.max_step=3: no such key; did you mean 'train.max_steps'?",
        "xyz=3: no such key; see --cfg job",
    ],
    "model=unet_x loss=xyz model=null tracker=[tensorboard,wandbb] dataset=[cifar10,flowers102] optimizer.name=sgd": [
        f"model=unet_x: no such config; did you mean 'unet_64'? (one of {options('model')})",
        f"loss=xyz: no such config; (one of {options('loss')})",
        f"model=null: no such config; (one of {options('model')})",
        f"tracker=wandbb: no such config; did you mean 'wandb'? (one of {options('tracker')})",
        "dataset=[cifar10,flowers102]: takes one choice, not a list; write dataset=cifar10",
        "optimizer.name=sgd: chosen with its group; write optimizer=sgd",
    ],
    "+model=unet_32": ["+model=unet_32: chosen already; leave out the +"],
    "~model ~train.epochs": [
        "~model: every run needs one; choose another with model=…",
        "~train.epochs: every run needs this key; give it a value",
    ],
    # Form.
    "train.max_steps =3": [
        "train.max_steps: not of the form key=value",
        "=3: no such key; see --cfg job",
    ],
    "dataset=imagefolder dataset.path=my cats 2 train.max_steps=5": [
        "cats 2: not of the form key=value; a value with blanks needs quotes: 'dataset.path=my cats 2'",
        "dataset.path=my: no such folder",
    ],
    # What cannot be read is a text, which the key refuses, as a wrong key does.
    "model.block_out_channels=[8,16 train.batch_size=8(2) trainn.x=~a model=a(b": [
        f"model=a(b: no such config; (one of {options('model')})",
        "trainn.x=~a: no such key; did you mean 'train'?",
        "train.batch_size=8(2): must be a whole number",
    ],
    "model.block_out_channels=[8,16": ["model.block_out_channels=[8,16: must be a list"],
    "dataset=imagefolder dataset.path=~nosuch/x": ["dataset.path=~nosuch/x: no such folder"],
    "train.batch_size=${xyz}": [
        "train.batch_size=${xyz}: Interpolation key 'xyz' not found; in a value, ${name} stands for the value of the "
        "key of that name"
    ],
    "hydra.xyz=3": ["hydra.xyz=3: Could not override 'hydra.xyz'."],
    "hydra.run.dir=mine hydra.output_subdir=.hydra hydra.job.chdir=true": [
        "hydra.run.dir=mine: does nothing here; another key says where files are written (see --help)",
        "hydra.output_subdir=.hydra: does nothing here; the config stands beside what was made; leave it out",
        "hydra.job.chdir=true: does nothing here; paths count from the folder in which the command is given; write "
        "absolute ones",
    ],
    "--xyz --multirunn": [
        "--xyz: no such flag; see --help",
        "--multirunn: no such flag; did you mean '--multirun'?",
    ],
    "--experimental-rerun x": ["--experimental-rerun: not for these runs; use --config-path RUN --config-name config"],
    "--config-dir /nowhere/a --config-path /nowhere/b": [
        "--config-path=/nowhere/b: no such folder",
        "--config-dir=/nowhere/a: no such folder",
    ],
    "--config-name confg": [f"--config-name=confg: no such file in {ROOT / 'conf'}; did you mean 'config'?"],
    "--config-name xyz": [f"--config-name=xyz: no such file in {ROOT / 'conf'}"],
    "--cfg job trainn.max_steps=3": ["trainn.max_steps=3: no such key; did you mean 'train.max_steps'?"],
    # Types and ranges.
    "seed=-1 train.batch_size=abc train.max_steps=-1 train.log_every_steps=1.5 train.micro_batch_size=[1]": [
        "seed=-1: must be at least 0",
        "train.batch_size=abc: must be a whole number",
        "train.micro_batch_size=[1]: must be a whole number above 0, auto or null",
        "train.max_steps=-1: must be greater than 0",
        "train.log_every_steps=1.5: must be a whole number",
    ],
    (
        "train.compile=maybe train.channels_last=2 train.attention=flash train.micro_batch_size=0 "
        "dataset.device_cache=gpu train.allow_tf32=abc"
    ): [
        "dataset.device_cache=gpu: must be auto, true or false",
        "train.micro_batch_size=0: must be a whole number above 0, auto or null",
        "train.channels_last=2: must be auto, true or false",
        "train.attention=flash: not one of auto, fused, math",
        "train.compile=maybe: must be auto, true, false or max-autotune-no-cudagraphs",
        "train.allow_tf32=abc: must be true or false",
    ],
    "dataset.cache=none dataset.device_cache=true": [
        "dataset.device_cache=true: needs prepared images, and dataset.cache=none keeps none; use "
        "dataset.cache=disk or dataset.device_cache=auto"
    ],
    (
        "optimizer=adamw ema=warmup optimizer.lr=abc optimizer.eps=null optimizer.betas=[0.9,1] "
        "ema.power=inf dataset.max_broken_fraction=2"
    ): [
        "dataset.max_broken_fraction=2: must be at most 1",
        "optimizer.lr=abc: must be a number",
        "optimizer.betas.1=1: must be less than 1",
        "optimizer.eps=null: must be a number",
        "ema.power=inf: must be a finite number",
    ],
    "seed=true optimizer.lr=false dataset.resolution=true dataset.channels=true dataset.random_flip=abc": [
        "seed=true: must be a number",
        "dataset.resolution=true: must be a whole number or [height,width]",
        "dataset.channels=true: must be a number",
        "dataset.random_flip=abc: must be true or false",
        "optimizer.lr=false: must be a number",
    ],
    "name=a/b dataset.resolution=[32] dataset.random_flip=null dataset.split=null train=3 tracker.tensorboard=3": [
        "name=a/b: must be made of letters, digits and . _ = , + - and begin with a letter or digit",
        "dataset.split=null: must be a text",
        "dataset.resolution=[32]: must be a whole number or [height,width]",
        "dataset.random_flip=null: must be true or false",
        "train=3: must be a section of keys",
        "tracker.tensorboard=3: must be a section of keys",
    ],
    "name=.. model.block_out_channels=[] model.down_block_types=3 optimizer.betas=[0.9,0.9,0.9]": [
        "name=..: must be made of letters, digits and . _ = , + - and begin with a letter or digit",
        f"model.down_block_types.0=3: not one of {BLOCKS}",
        "model.block_out_channels=[]: must be a list of at least 1",
        "optimizer.betas=[0.9,0.9,0.9]: must be a list of at most 2",
    ],
    "seed.a=1 ~resume.b noise_scheduler.beta_schedule.c=linear": [
        "seed.a=1: no such key; seed is no section of keys",
        "~resume.b: no such key; resume is no section of keys",
        "noise_scheduler.beta_schedule.c=linear: no such key; noise_scheduler.beta_schedule is no section of keys",
    ],
    "optimizer.betas=[0.9]": ["optimizer.betas.1: missing; give it a value"],
    "++optimizer={name:sgdd}": [
        "optimizer.name=sgdd: not one of adamw, adam, adamw_8bit, sgd, muon; did you mean 'sgd'?"
    ],
    "model.down_block_types=[DownBlock2D,XYZ,AttnDownBlock2D] noise_scheduler.prediction_type=v_predictoin": [
        f"model.down_block_types.1=XYZ: not one of {BLOCKS}",
        "noise_scheduler.prediction_type=v_predictoin: not one of epsilon, v_prediction, sample; "
        "did you mean 'v_prediction'?",
    ],
    "dataset=base dataset.resolution=30 model=unet_64": [
        "dataset.source=???: missing; give it a value",
        "dataset.path=???: missing; give it a value",
        "dataset.resolution=30: 4 levels need multiples of 8; use dataset.resolution=32 or fewer levels",
    ],
    # What a run is judged by.
    "objective=kid evaluation.metrics=[fid]": [
        "objective=kid: the evaluations of this run do not measure it; add it with 'evaluation.metrics=[fid,kid]'"
    ],
    "objective=kidd evaluation=full train.patience=2": [
        "objective=kidd: the evaluations of this run do not measure it; did you mean 'kid'? give held_out_loss, kid, "
        "auto or null"
    ],
    "objective=held_out_loss dataset.validation_split=null dataset.validation_fraction=0": [
        "objective=held_out_loss: the evaluations of this run do not measure it; "
        "hold images out with dataset.validation_fraction=0.02"
    ],
    "objective=kid evaluation=none": [
        "objective=kid: the evaluations of this run do not measure it; use evaluation=grid or evaluation=full"
    ],
    "train.patience=2 evaluation=none": [
        "train.patience=2: nothing measures whether the run improves; use evaluation=grid or evaluation=full"
    ],
    "train.patience=2 objective=null evaluation.every_steps=null": [
        "train.patience=2: nothing measures whether the run improves; give objective=held_out_loss",
        "train.patience=2: the run evaluates at its end only; give evaluation.every_steps",
    ],
    "train.patience=2 dataset.validation_split=null dataset.validation_fraction=0 evaluation.every_steps=5": [
        "train.patience=2: nothing measures whether the run improves; "
        "hold images out with dataset.validation_fraction=0.02"
    ],
    "train.stop_before_copying=true evaluation=none": [
        "train.stop_before_copying=true: nothing measures what the run has memorised; use evaluation=grid or "
        "evaluation=full"
    ],
    "train.stop_before_copying=true dataset.validation_split=null dataset.validation_fraction=0 train.max_steps=699": [
        "train.stop_before_copying=true: needs held-out images; hold images out with dataset.validation_fraction=0.02",
        "train.stop_before_copying=true: the run evaluates at its end only; give evaluation.every_steps",
    ],
    "evaluation=full evaluation.metrics=[kidd] evaluation.extractor=resnet evaluation.timestep_bins=0": [
        "evaluation.timestep_bins=0: must be greater than 0",
        "evaluation.metrics.0=kidd: not one of fid, kid, precision, recall, isc; did you mean 'kid'?",
        f"evaluation.extractor.name=resnet: not one of {', '.join(EXTRACTORS)}",
    ],
    (
        "evaluation=full evaluation.metrics=[isc] evaluation.extractor.name=clip-rn50 evaluation.num_samples=9 "
        "evaluation.extractor.weights=nowhere"
    ): [
        "evaluation.num_samples=9: too few for evaluation.metrics; use at least 10",
        "evaluation.extractor.name=clip-rn50: the Inception score needs classes, which this has not; "
        "use efficientnet_lite0 or inception-v3-compat, or leave isc out",
        "evaluation.extractor.weights=nowhere: no such file; give the extractor's weights, or null for those published",
    ],
    # Sizes and names that nothing has.
    (
        "seed=4294967296 dataset.resolution=1000000000000 dataset.num_workers=100000 hub.retry_minutes=1e12 "
        "evaluation.num_images=1000000 train.micro_batch_size=99999999999999999999"
    ): [
        "seed=4294967296: must be less than 4294967296",
        "dataset.resolution.0=1000000000000: must be at most 16384",
        "dataset.resolution.1=1000000000000: must be at most 16384",
        "dataset.num_workers=100000: must be at most 1024",
        "train.micro_batch_size=99999999999999999999: must be a whole number above 0, auto or null",
        "hub.retry_minutes=1000000000000.0: must be at most 1000000",
        "evaluation.num_images=1000000: must be at most 10000",
    ],
    f"seed={'9' * 5000}": [
        f"seed={'9' * 55}… (5,005 characters): a number of too many digits, or lists too deep in each other"
    ],
    f"output_dir={'x' * 256}/y dataset=imagefolder dataset.path='~nosuch/images'": [
        f"output_dir={'x' * 256}/y: no file has such a name: it holds a zero byte, or more than 255 bytes between two "
        "/",
        "dataset.path=~nosuch/images: no such folder",
    ],
    f"name={'x' * 300}": [  # also in the folder, which it names
        f"name={'x' * 300}: no file has such a name: it holds a zero byte, or more than 255 bytes between two /"
    ],
    # Combinations.
    "dataset.resolution=[18,32] model=unet_128": [
        "dataset.resolution=[18,32]: 6 levels need multiples of 32; use dataset.resolution=32 or fewer levels"
    ],
    "dataset.resolution=[60,100] model=unet_64": [
        "dataset.resolution=[60,100]: 4 levels need multiples of 8; use dataset.resolution=[64,96] or fewer levels"
    ],
    "model=unet_64 model.block_out_channels=[32,64] model.up_block_types=[AttnUpBlock2D,UpBlock2D]": [
        "model.down_block_types: 4 blocks for 2 model.block_out_channels; make the lists equally long"
    ],
    (
        "model.block_out_channels=[24,48,72] model.norm_num_groups=7 model.attention_head_dim=80 "
        "model.attn_norm_num_groups=7"
    ): [
        "model.norm_num_groups=7: does not divide 24 of model.block_out_channels; use a common divisor",
        "model.attn_norm_num_groups=7: does not divide the 72 channels of the middle block; use a divisor",
        "model.attention_head_dim=80: wider than the 72 channels of a level with attention; use at most that",
    ],
    (
        "model.layers_per_block=100000 model.block_out_channels=[1000000000] model.mid_block_scale_factor=0 "
        "model.norm_eps=1e300 noise_scheduler.num_train_timesteps=1000000000000"
    ): [
        "model.block_out_channels.0=1000000000: must be at most 65536",
        "model.layers_per_block=100000: must be at most 32",
        "model.mid_block_scale_factor=0: must be between 0.001 and 1000, or the negative of that",
        "model.norm_eps=1e+300: must be less than 1",
        "noise_scheduler.num_train_timesteps=1000000000000: must be at most 10000",
    ],
    # What only a network that is built and run shows.
    "--multirun model.freq_shift=0,17 seed=1": [
        "model.freq_shift=17: no network of this layout works (the frequencies of its time embedding are no numbers); "
        "use model.freq_shift=0"
    ],
    "train.max_steps=2000 train.epochs=3 train.batch_size=64 train.micro_batch_size=3": [
        "train.max_steps=2000 train.epochs=3.0: exactly one decides the length; set the other to null",
        "train.batch_size=64: not divisible by train.micro_batch_size=3; choose a multiple of it",
    ],
    "train.max_steps=null": [
        "train.max_steps=null train.epochs=null: exactly one decides the length; give one of them"
    ],
    "noise_scheduler.variance_type=learned_range noise_scheduler.beta_start=0.5 noise_scheduler.beta_end=0.02": [
        "noise_scheduler.variance_type=learned_range: there is no loss for a learned variance; "
        "use fixed_small or fixed_large",
        "noise_scheduler.beta_start=0.5: above beta_end=0.02; swap them",
    ],
    "noise_scheduler.trained_betas=[0.1,0.2] noise_scheduler.num_train_timesteps=3 evaluation.num_inference_steps=50": [
        "noise_scheduler.trained_betas: 2 values for num_train_timesteps=3; give as many",
        "evaluation.num_inference_steps=50: more than noise_scheduler.num_train_timesteps=3; use at most that many",
    ],
    "model.time_embedding_type=fourier": [
        "model.time_embedding_type=fourier: takes the logarithm of the timestep, and the first timestep is 0; "
        "use positional"
    ],
    "noise_scheduler=zero_snr noise_scheduler.prediction_type=epsilon loss=min_snr": [
        "noise_scheduler.prediction_type=epsilon: with zero terminal SNR the last timestep cannot be learned "
        "(min-SNR weighs it 0/0); use noise_scheduler.prediction_type=v_prediction"
    ],
    "loss=edm noise_scheduler=linear timestep_distribution=lognormal timestep_distribution.std=0": [
        "timestep_distribution.std=0: must be greater than 0",
        "loss=edm: with noise_scheduler.prediction_type=epsilon the weight of pure noise has no bound; "
        "use noise_scheduler.prediction_type=v_prediction",
    ],
    "augmentation=edm augmentation.hue=20 augmentation.rotation=270 dataset.channels=1 loss.learned_uncertainty=5": [
        "loss.learned_uncertainty=5: must be true or false",
        "augmentation.rotation=270: must be at most 180",
        "augmentation.hue=20: changes colours, which images with dataset.channels=1 do not have; use 0",
    ],
    "noise_scheduler=zero_snr noise_scheduler.prediction_type=epsilon": [
        "noise_scheduler.prediction_type=epsilon: with zero terminal SNR the last timestep cannot be learned "
        "(pure noise says nothing of x_0); use noise_scheduler.prediction_type=v_prediction"
    ],
    (
        "ema=warmup ema.max_decay=0.9999 ema.min_decay=0.99999 optimizer=sgd "
        "optimizer.nesterov=true optimizer.momentum=0"
    ): [
        "optimizer.nesterov=true: needs momentum; set optimizer.momentum=0.9",
        "ema.min_decay=0.99999: above ema.max_decay=0.9999; lower it",
    ],
    # The machine.
    "dataset=imagefolder": ["dataset.path=???: missing; give it a value"],
    "dataset=imagefolder dataset.path=/nowhere": ["dataset.path=/nowhere: no such folder"],
    "dataset=imagefolder dataset.path=a_file": [
        "dataset.path=a_file: a file of no kind that is read; give a folder, or a parquet file with dataset=hub"
    ],
    "dataset=hub dataset.path=./nowhere": ["dataset.path=./nowhere: no such file or folder"],
    "resume=nowhere output_dir=a_file": [
        "output_dir=a_file: not a folder; choose another name or output_dir",
        "resume=nowhere: no such checkpoint; give auto, never, a checkpoint's folder or hf://owner/name",
    ],
    "train.mixed_precision=fp16": [
        "train.mixed_precision=fp16: needs a CUDA GPU, and there is none; use bf16, no or auto"
    ],
    # Sweeps.
    "train.batch_size=1,2": [
        "train.batch_size=1,2: several values; add --multirun to try each",
    ],
    "dataset=base train.batch_size=1,2 dataset.source=folder,hub dataset.path=a_file,b optimizer.betas=0.9,0.99": [
        "train.batch_size=1,2: several values; add --multirun to try each",
        "dataset.source=folder,hub: several values; add --multirun to try each",
        "optimizer.betas=0.9,0.99: several values; add --multirun to try each, or write 'optimizer.betas=[0.9,0.99]' "
        "if it is one value",
        "dataset.path=a_file,b: no such folder",
    ],
    "--multirun model=unet_tiny,unet_x name=run_${seed}": [
        f"model=unet_x: no such config; did you mean 'unet_64'? (one of {options('model')})"
    ],
    "--multirun train.batch_size=8,16,abc seed=range(0,2) name=${train.batch_size}_${seed}": [
        "train.batch_size=abc: must be a whole number"
    ],
    # A key that the default choice has not, but one of those that the sweep tries.
    "--multirun optimizer=sgd,adamw optimizer.nesterov=true": [
        "optimizer.nesterov=true: no such key; did you mean 'optimizer.eps'?"
    ],
    "--multirun seed=range(1,1000000000) train.max_steps=shuffle(range(0,1e300))": [
        "seed=range(1,1000000000) train.max_steps=shuffle(range(0,1e300)): more than 10,000 runs; try fewer values"
    ],
    "--multirun seed=range(5,0) train.max_steps=range(0,1,0) model=glob(*)": [
        "seed=range(5,0): there is nothing in it; write range(START,STOP) with START below STOP",
        "train.max_steps=range(0,1,0): not a range; write range(START,STOP) or range(START,STOP,STEP)",
        "model=glob(*): write the choices out, model=A,B",
    ],
    "--multirun optimizer.lr=interval(1,2)": [
        "optimizer.lr=interval(1,2): only an optimiser can choose from an interval; add hydra/sweeper=optuna, "
        "or write optimizer.lr=A,B or range(A,B)"
    ],
    "--multirun seed=1,2 hydra.sweep.subdir=job": [
        "hydra.sweep.subdir=job: does nothing here; the jobs' folders are named after what varies; name='…${seed}' "
        "gives other names"
    ],
    "--multirun seed=1,2 --cfg job": ["--cfg: shows the config of one run, not of a sweep; leave out --multirun"],
    "--multirun seed=1,2 name=a_${train.batch_size}": [
        "output_dir=outputs/a_64: the same for 2 runs of the sweep; name them apart, such as name='run_${seed}'"
    ],
    "--multirun objective=auto,null hydra.launcher.max_parallel=1,2 hydra/launcher=processes,accelerate": [
        "hydra.launcher.max_parallel=1,2: how a sweep is done cannot vary within it; give one value",
        "hydra/launcher=processes,accelerate: how a sweep is done cannot vary within it; give one value",
        "objective=auto,null: must be the same for all jobs, which could not be compared; give one value",
    ],
    "--multirun seed=1,2 objective=kid": [
        "objective=kid: the evaluations of this run do not measure it; add it with 'evaluation.metrics=[kid]'"
    ],
    "--multirun seed=1,2 hydra/job_logging=xyz model.pretrained=7": [
        "hydra/job_logging=xyz: In 'hydra/config': Could not find 'hydra/job_logging/xyz'",
        "model.pretrained=7: no such folder; give a run, a model's folder, or a Hub repository (owner/name)",
    ],
    "--multirun seed=1,2 hydra/launcher=acelerate": [
        "hydra/launcher=acelerate: no such launcher; did you mean 'accelerate'? "
        "(one of accelerate, processes, submitit_local, submitit_slurm)"
    ],
    "--multirun seed=1,2 hydra/sweeper=optun": [
        "hydra/sweeper=optun: no such sweeper; did you mean 'optuna'? (one of grid, optuna)"
    ],
    "--multirun seed=1 hydra/sweeper=optuna hydra.sweeper.num_trials=0 hydra.sweeper.seed=-1": [
        "hydra/sweeper=optuna: nothing to choose; write KEY=interval(A,B), KEY=tag(log,interval(A,B)) or KEY=A,B",
        "hydra.sweeper.num_trials=0: must be a whole number above 0",
        "hydra.sweeper.seed=-1: must be a whole number of at least 0",
    ],
    "--multirun optimizer.lr=tag(log,interval(0,1)) model.dropout=interval(0,2) hydra/sweeper=optuna": [
        "optimizer.lr=tag(log,interval(0,1)): a logarithmic interval must begin above 0",
        "optimizer.lr=0.0: must be greater than 0",
        "model.dropout=2.0: must be less than 1",
    ],
    "--multirun seed=1,2 hydra/sweeper=optuna objective=null": [
        "hydra/sweeper=optuna: the jobs have no objective; give objective=auto and an evaluation"
    ],
    "--multirun seed=1,2 hydra.launcher.max_paralel=2": [
        "hydra.launcher.max_paralel=2: Could not override 'hydra.launcher.max_paralel'."
    ],
    "--multirun seed=1,2 hydra.launcher.max_parallel=0": [
        "hydra.launcher.max_parallel=0: must be a whole number above 0"
    ],
    "--multirun seed=1,2 train.batch_size=10 hydra/launcher=accelerate hydra.launcher.num_processes=4": [
        "train.batch_size=10: not divisible by 4 processes; use 1, 2, 5 or 10 processes or a multiple of 4"
    ],
}


@pytest.mark.parametrize("command", TABLE)
def test_what_is_wrong_is_told_in_one_line(cli: Cli, command: str) -> None:
    (cli.folder / "a_file").touch()
    assert mistakes(cli, *command.split(), CUDA_VISIBLE_DEVICES="") == TABLE[command]


def test_the_batch_divides_over_the_processes(cli: Cli) -> None:
    assert mistakes_of_several(cli, 3, "train.batch_size=64") == [
        "train.batch_size=64: not divisible by 3 processes; use 1, 2, 4, 8, 16, 32 or 64 processes or a multiple of 3"
    ]
    assert mistakes_of_several(cli, 3, "--multirun", "seed=1,2", "name=run_${seed}", "train.batch_size=12") == [
        "--multirun: each of 3 processes would sweep; start it without a launcher with hydra/launcher=accelerate "
        "hydra.launcher.num_processes=3"
    ]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (  # found without a look at each number up to it
            ["train.batch_size=100000000000"],
            "train.batch_size=100000000000: not divisible by 3 processes; use 1, 2, 4, 5, 8, 10, 16, 20, 25, 32, 40, "
            "50 or 64 processes or a multiple of 3",
        ),
        (
            ["train.batch_size=1"],
            "train.batch_size=1: not divisible by 3 processes; use 1 processes or a multiple of 3",
        ),
        (
            ["train.batch_size=12", "train.micro_batch_size=6"],
            "train.micro_batch_size=6: 2 micro-batches do not divide over 3 processes; use a divisor of 4",
        ),
    ],
)
def test_numbers_of_processes_that_divide(monkeypatch: pytest.MonkeyPatch, overrides: list[str], line: str) -> None:
    for name, value in {**FIRST_OF_TWO, "WORLD_SIZE": "3", "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Mistakes) as raised:
        compose_configs(PROGRAM, overrides)
    assert raised.value.lines == (line,)


def test_a_search_space_in_a_file_is_checked(cli: Cli) -> None:
    space = {"train.batch_size": "8,abc", "optimizer.lr": "tag(log,interval(1e-5,1e-2))"}
    file = cli.folder / "mine/experiment/space.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\n" + yaml.safe_dump({"hydra": {"sweeper": {"params": space}}}))
    search = ("--multirun", "--config-dir", "mine", "experiment=space", "hydra/sweeper=optuna")
    assert mistakes(cli, *search) == ["train.batch_size=abc: must be a whole number"]


def test_what_a_launcher_of_jobs_cannot_have(cli: Cli) -> None:
    launch = ("--multirun", "seed=1,2", "hydra/launcher=accelerate")
    assert mistakes(cli, *launch, "hydra.launcher.num_processes=3", CUDA_VISIBLE_DEVICES="0,1") == [
        "hydra.launcher.num_processes=3: more than the 2 GPUs here; use at most 2"
    ]
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        given = f"hydra.launcher.main_process_port={port}"
        assert mistakes(cli, *launch, given, CUDA_VISIBLE_DEVICES="") == [
            f"{given}: taken by another process; leave it out for a free one"
        ]
    assert mistakes(cli, *launch, given, "hydra.launcher.max_parallel=2", CUDA_VISIBLE_DEVICES="") == [
        f"{given}: one port for several jobs at a time; leave it out"
    ]


# What torchrun tells the first of two processes, in full.
FIRST_OF_TWO = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    ("variable", "value", "remedy"),
    [
        (
            "ACCELERATE_USE_FSDP",
            "true",
            "FSDP splits the model, and runs keep a whole one on each device; launch with ",
        ),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed splits the model, and runs keep a whole one on each device; "),
        ("ACCELERATE_USE_MEGATRON_LM", "1", "Megatron-LM splits the model, and runs keep a whole one on each device; "),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "True", "its parallelism splits the model, and runs keep a whole one "),
        (
            "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE",
            "model_parallel",
            "runs use torch's own processes; launch with torch",
        ),
        (
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
            "4",
            "would divide the gradients by it once more; unset it, and set",
        ),
        ("ACCELERATE_DYNAMO_BACKEND", "inductor", "compiles beside the run, which would not know it; launch with "),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "runs compute in no, bf16 or fp16; launch with one of them"),
        ("ACCELERATE_DEBUG_MODE", "maybe", "neither true nor false; unset it"),
        ("ACCELERATE_TORCH_DEVICE", "gpu", "Expected one of cpu, cuda, "),
        ("ACCELERATE_DOWNCAST_BF16", "true", "changes the precision on TPUs, where no run computes; unset it"),
    ],
)
def test_what_accelerate_would_do_unseen(cli: Cli, variable: str, value: str, remedy: str) -> None:
    (line,) = mistakes(cli, **FIRST_OF_TWO, MASTER_PORT=str(free_port()), **{variable: value})
    assert line.startswith(f"{variable}={value}: {remedy}")


FP16_LAUNCHED = "ACCELERATE_MIXED_PRECISION=fp16: needs a CUDA GPU, and there is none; use bf16 or no"


def test_a_precision_of_the_launcher_is_one_that_the_machine_has(cli: Cli) -> None:
    launched = {"ACCELERATE_MIXED_PRECISION": "fp16", "CUDA_VISIBLE_DEVICES": ""}
    assert mistakes(cli, **launched) == [FP16_LAUNCHED]
    # A key that says it decides.
    both = mistakes(cli, "train.mixed_precision=bf16", "train.max_steps=-1", **launched)
    assert both == ["train.max_steps=-1: must be greater than 0"]


@pytest.mark.parametrize("program", ["sample", "evaluate"])
def test_nor_do_the_other_programs_split_a_model(cli: Cli, program: str) -> None:
    command = ["-m", f"ddpm_train.cli.{program}", "pipeline=google/ddpm-cat-256"]
    command += ["dataset=fashion_tiny"] if program == "evaluate" else []
    (line,) = cli.python(*command, expect=2, ACCELERATE_USE_FSDP="true").splitlines()
    assert line.startswith("error: ACCELERATE_USE_FSDP=true: FSDP splits the model")


def test_accelerate_reads_no_variable_that_nobody_has_judged() -> None:
    """Those that are neither refused nor taken over change nothing that a run computes."""
    harmless = {
        *("CPU_AFFINITY", "DEBUG_MODE", "DEBUG_RDV_FILE", "ENABLE_RICH", "LOG_LEVEL", "IN_TPU_POD", "NUM_PROCESSES"),
        *("BYPASS_DEVICE_MAP", "INIT_INCLUDE_BUFFERS"),  # of models that do not fit into one device
        "USE_SAGEMAKER",  # with a kind of distribution only
    }
    taken_over = {"MIXED_PRECISION", "USE_CPU", "TORCH_DEVICE"}
    # These say more of what is refused by itself.
    of_refused = ("DEEPSPEED_", "DYNAMO", "FP8", "CONFIG_DS_FIELDS", "GRADIENT_CLIPPING", "ALLOW_CP_STANDALONE")
    launch = (ROOT / "ddpm_train/system/launch.py").read_text()
    (folder,) = importlib.util.find_spec("accelerate").submodule_search_locations
    sources = "".join(path.read_text() for path in Path(folder).rglob("*.py") if "test_utils" not in path.parts)
    names = set(re.findall(r"ACCELERATE_([A-Z0-9_]*[A-Z0-9])", sources))
    assert {"USE_FSDP", "GRADIENT_ACCUMULATION_STEPS", "DYNAMO_BACKEND"} <= names
    unknown = {name for name in names - harmless - taken_over if not name.startswith(of_refused)}
    assert {name for name in unknown if f'"ACCELERATE_{name}"' not in launch} == set()


def test_a_workspace_that_is_not_deterministic(cli: Cli) -> None:
    assert mistakes(cli, "train.deterministic=true", CUBLAS_WORKSPACE_CONFIG=":0:0") == [
        "CUBLAS_WORKSPACE_CONFIG=:0:0: not with train.deterministic=true; unset it"
    ]


@pytest.mark.parametrize("launcher", ["srun", "accelerate"])
def test_a_port_that_is_taken(cli: Cli, launcher: str) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        process: Process
        train = (str(ROOT / "train.py"), "train.max_steps=-1")
        if launcher == "accelerate":
            command = [str(Path(sys.executable).with_name("accelerate")), "launch", "--cpu", "--num_machines", "1"]
            command += ["--num_processes", "2", "--main_process_port", str(port), "--mixed_precision", "fp16"]
            process = cli.start([*command, *train])
        else:
            process = cli.fork(*train, **FIRST_OF_TWO, MASTER_PORT=str(port))
        _, err = process.communicate(timeout=60)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert process.returncode != 0 and lines == [
        "error: train.max_steps=-1: must be greater than 0",
        f"error: MASTER_PORT={port}: address already in use; choose another port "
        "(accelerate launch --main_process_port 0 takes any that is free)",
        *([f"error: {FP16_LAUNCHED}"] if launcher == "accelerate" else []),
    ]
    assert not (cli.folder / "outputs").exists()


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"RANK": "1"}, "RANK=1: set without WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; unset it, or "),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "RANK=1: set without LOCAL_RANK, MASTER_ADDR, MASTER_PORT; unset it, or"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0: set without RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT; unset it"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: not a whole number from 1 on; unset it"),
        ({"RANK": "-1"}, "RANK=-1: not a whole number from 0 on; unset it"),
        ({"RANK": ""}, "RANK=: not a whole number from 0 on; unset it"),
        ({**FIRST_OF_TWO, "RANK": "2"}, "RANK=2: too much for WORLD_SIZE=2, as ranks count from 0; unset it"),
        (
            {**FIRST_OF_TWO, "LOCAL_WORLD_SIZE": "8"},
            "LOCAL_WORLD_SIZE=8: more processes on this machine than WORLD_SIZE=2; unset it, or start with accelerate",
        ),
    ],
)
def test_variables_of_a_launch_that_do_not_fit_together(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], line: str
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    if "MASTER_ADDR" in variables:
        monkeypatch.setenv("MASTER_PORT", "29500")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (told,) = launch.variable_mistakes()
    assert told.startswith(line)


def test_such_variables_are_told_by_whoever_finds_them(cli: Cli) -> None:
    """Also where by them it is not the first process, which alone speaks otherwise."""
    for arguments in ((), ("--multirun", "seed=1,2"), ("train.max_steps=-1",)):
        (line,) = mistakes(cli, *arguments, RANK="1")
        assert line.startswith("RANK=1: set without WORLD_SIZE, ")
    assert "train.max_steps" in cli.python("-m", "ddpm_train.cli.train", "--help", RANK="1")
    alone = {"RANK": "0", "WORLD_SIZE": "1"}
    assert mistakes(cli, "train.max_steps=-1", **alone) == ["train.max_steps=-1: must be greater than 0"]


ONE_GPU = """
import sys, torch
torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
from ddpm_train.cli.{program} import main
main()
"""


@pytest.mark.parametrize("command", ["train", "sample pipeline=google/ddpm-cat-256"])
def test_more_processes_than_gpus(cli: Cli, command: str) -> None:
    """Accelerate would give two processes one GPU, which NCCL refuses after a while, in a traceback."""
    program, *overrides = command.split()
    torchrun = {**FIRST_OF_TWO, "MASTER_PORT": "29500", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
    said = cli.python("-c", ONE_GPU.format(program=program), *overrides, expect=2, **torchrun)
    assert said == "error: 2 processes: this machine has 1 GPU; start one process for each\n"


@pytest.mark.parametrize(
    ("override", "module", "line"),
    [
        ("tracker=wandb", "wandb", "tracker=wandb: wandb is not installed; pip install 'ddpm-train[wandb]'"),
        (
            "tracker=[trackio]",
            "trackio",
            "tracker=trackio: trackio is not installed; pip install 'ddpm-train[trackio]'",
        ),
        (
            "optimizer=adamw_8bit",
            "bitsandbytes",
            "optimizer=adamw_8bit: bitsandbytes is not installed; pip install 'ddpm-train[8bit]'",
        ),
    ],
)
def test_what_is_not_installed_is_named(cli: Cli, override: str, module: str, line: str) -> None:
    without = (
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *rest: None if name == {module!r} else find(name, *rest)\n"
        "from ddpm_train.cli.train import main\n"
        "main()\n"
    )
    assert cli.python("-c", without, override, expect=2) == f"error: {line}\n"


def test_a_folder_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb keeps its runs in a folder of its own name, which `python -m` would import."""
    (tmp_path / "wandb_or_so").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    (line,) = not_installed("tracker=wandb", "wandb_or_so", "wandb")
    assert line == "tracker=wandb: wandb_or_so is not installed; pip install 'ddpm-train[wandb]'"


@pytest.mark.parametrize("output_dir", ["a_file/run", "/proc/run"])
def test_an_output_folder_that_cannot_be_written(cli: Cli, output_dir: str) -> None:
    (cli.folder / "a_file").touch()
    (line,) = mistakes(cli, f"output_dir={output_dir}")
    assert line.startswith(f"output_dir={output_dir}: ") and "; choose another" in line


@pytest.mark.parametrize(
    ("command", "fault", "remedy"),
    [
        (
            "model.downsample_padding=2 model.freq_shift=16 model.attention_head_dim=5",
            "model.downsample_padding=2 model.freq_shift=16: no network of this layout works (",
            "use model.downsample_padding=1 model.freq_shift=0",
        ),
        (
            "model.down_block_types=[DownBlock2D,SkipDownBlock2D,DownBlock2D] dataset.channels=3 "
            "model.attn_norm_num_groups=3 model.add_attention=false",
            "model.down_block_types=[DownBlock2D,SkipDownBlock2D,DownBlock2D]: no network of this layout works (",
            "use model.down_block_types=[DownBlock2D,DownBlock2D,DownBlock2D]",
        ),
        (
            "model.block_out_channels=[65536,65536,65536]",
            "model.block_out_channels=[65536,65536,65536] model.layers_per_block=1 dataset.resolution=16: no network "
            "of this layout works (its weights alone take 6,322.2 GB, and this machine has ",
            "GB); choose others",
        ),
    ],
)
def test_a_layout_that_is_no_network(cli: Cli, command: str, fault: str, remedy: str) -> None:
    """The fewest keys that must change are named; what else is unusual works."""
    (line,) = mistakes(cli, *command.split())
    assert line.startswith(fault) and line.endswith(remedy)


def test_all_mistakes_at_once(cli: Cli) -> None:
    """Each kind of check has its say, whatever the others found; a repaired key brings up no further lines."""
    command = (
        "trainn.max_steps=3 =4 loss=msee loss.gamma=3 model.dropout=2 train.max_steps=abc train.epochs=1 "
        "dataset.resolution=30 model=unet_64 train.batch_size=64 "
        "noise_scheduler.variance_type=learned dataset=imagefolder resume=nowhere"
    )
    assert mistakes(cli, *command.split(), "name=a b") == [
        f"loss=msee: no such config; did you mean 'mse'? (one of {options('loss')})",
        "trainn.max_steps=3: no such key; did you mean 'train.max_steps'?",
        "=4: no such key; see --cfg job",
        "name=a b: must be made of letters, digits and . _ = , + - and begin with a letter or digit",
        "dataset.path=???: missing; give it a value",
        "model.dropout=2: must be less than 1",
        "train.max_steps=abc: must be a whole number",
        "dataset.resolution=30: 4 levels need multiples of 8; use dataset.resolution=32 or fewer levels",
        "noise_scheduler.variance_type=learned: there is no loss for a learned variance; "
        "use fixed_small or fixed_large",
        "resume=nowhere: no such checkpoint; give auto, never, a checkpoint's folder or hf://owner/name",
    ]


def test_a_mistake_in_a_users_own_file_is_found(cli: Cli) -> None:
    files = {
        "experiment/wrong_key.yaml": "# @package _global_\ntrian: {max_steps: 3}\n",
        "experiment/wrong_default.yaml": "# @package _global_\ndefaults: [override /model: nowhere]\n",
        "model/wrong_yaml.yaml": "layers_per_block: : 2\n",
        "optimizer/nameless.yaml": "lr: 0.1\n",
        "config.yaml": "train: [\n",
    }
    for name, text in files.items():
        path = cli.folder / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    yaml_file = (cli.folder / "mine/model/wrong_yaml.yaml").resolve()
    expected = {
        "experiment=wrong_key": "trian={max_steps:3}: no such key; did you mean 'train'?",
        "optimizer=nameless": "optimizer.name: missing; give it a value",
        "experiment=wrong_default": "experiment=wrong_default: In 'config': Could not find 'model/nowhere'",
        "model=wrong_yaml": f"model=wrong_yaml: {yaml_file}: is not YAML: line 1: "
        "mapping values are not allowed in this context",
    }
    for override, line in expected.items():
        assert mistakes(cli, "--config-dir", "mine", override) == [line]
    (line,) = mistakes(cli, "--config-path", "mine")
    assert line.startswith(f"--config-name=config: {cli.folder.resolve() / 'mine/config.yaml'}: is not YAML: line 2: ")
