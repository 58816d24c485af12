"""How a step is computed: what `auto` measures and keeps, and that nothing of it changes what a run is."""

import json
import shutil
import warnings
from functools import cache
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from diffusers import UNet2DModel
from helpers.cli import LEAN, ROOT, TINY, Cli
from helpers.runs import relative_difference, weights
from torch._dynamo.utils import counters

from ddpm_train.config.program import compose_configs
from ddpm_train.config.train import Train
from ddpm_train.system import compute as system_compute
from ddpm_train.system.compute import PLAIN, Compute, Stopwatch, choose, choose_for_training, out_of_memory
from ddpm_train.training import auto
from ddpm_train.training.messages import evaluation_memory_remedy
from ddpm_train.training.preflight import PROGRAM
from ddpm_train.training.state import BatchPlan

WATCHED = str(ROOT / "tests/helpers/watched_train.py")
CPU = torch.device("cpu")
AUTO = ("train.mixed_precision=auto", "train.channels_last=auto", "train.attention=auto", "train.compile=auto")
# What a compiler has to do with, of all kinds of layers.
ONE_LEVEL = (
    *("model.block_out_channels=[8]", "model.layers_per_block=1"),
    *("model.down_block_types=[AttnDownBlock2D]", "model.up_block_types=[AttnUpBlock2D]"),
)
LARGE = ("dataset.resolution=16", "train.batch_size=300", "train.max_steps=3", "evaluation=none", "tracker=none")


def train_config(**values: object) -> Train:
    defaults = {
        "batch_size": 16,
        "micro_batch_size": None,
        "max_steps": 6,
        "epochs": None,
        "max_grad_norm": None,
        "patience": None,
        "mixed_precision": "no",
        "channels_last": False,
        "attention": "fused",
        "compile": False,
        "allow_tf32": True,
        "deterministic": False,
        "gradient_checkpointing": False,
        "log_every_steps": 1,
    }
    return Train(**{**defaults, **values})  # type: ignore[arg-type]


BACKENDS = """
import os, torch
from types import SimpleNamespace
from ddpm_train.system.compute import set_backends
for deterministic in (True, False):
    set_backends(SimpleNamespace(deterministic=deterministic, allow_tf32=True))
    print(torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG"))
"""


def test_deterministic_algorithms_are_for_the_run_that_asks(cli: Cli) -> None:
    assert cli.python("-c", BACKENDS).split() == ["True", ":4096:8", "False", ":4096:8"]


def test_what_is_faster_by_its_margin_is_chosen() -> None:
    def chosen(
        seconds: dict[str, float], steps_left: float = 1, device: torch.device = CPU, **values: object
    ) -> tuple[str, list[str]]:
        asked: list[str] = []
        stopwatch = Stopwatch(lambda compute: asked.append(str(compute)), CPU, dict(seconds))
        everything = {"channels_last": "auto", "attention": "auto", "compile": "auto"}
        train = train_config(**{**everything, **values})
        chosen = choose_for_training(train, device, stopwatch, steps_left=steps_left)
        return str(chosen), asked

    times = {"fp32": 1.0, "fp32 + channels_last": 0.96, "fp32 + math attention": 0.94}
    assert chosen(times)[0] == "fp32 + math attention"  # 4 % is no reason, 6 % is
    minutes, gpu = 300 / 0.94, torch.device("cuda")
    compiled = {**times, "fp32 + math attention + compiled": 0.5}
    assert chosen(compiled, minutes - 1, gpu)[0] == chosen(compiled, 1e12)[0] == "fp32 + math attention"
    assert chosen(compiled, minutes + 1, gpu)[0] == "fp32 + math attention + compiled"
    # What is forced is not measured, and what is to be compiled is chosen before.
    name, asked = chosen(times, channels_last=True, attention="math", compile=False)
    assert name == "fp32 + channels_last + math attention" and asked == []
    assert chosen(times, compile=True) == ("fp32 + math attention + compiled", [])


@pytest.mark.parametrize(
    ("stretch", "begins"), [(stretch, begins) for stretch in range(1, 9) for begins in range(2 * stretch)]
)
def test_a_neighbour_does_not_change_the_choice(stretch: int, begins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is three times as slow for so many steps, and then not for as many."""
    seconds, runs = 0.0, begins

    def step(compute: Compute) -> None:
        nonlocal seconds, runs
        seconds += (0.035 if compute.mixed_precision == "bf16" else 0.05) * (3 if runs // stretch % 2 else 1)
        runs += 1

    monkeypatch.setattr(system_compute, "time", SimpleNamespace(perf_counter=lambda: seconds))
    chosen = choose(PLAIN, {"mixed_precision": ["bf16"]}, Stopwatch(step, CPU, {}))
    assert chosen.mixed_precision == "bf16" and seconds < 5


@pytest.mark.parametrize("begins", range(6))
def test_a_neighbour_does_not_change_how_many_images_are_measured(begins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is three times as slow for three steps of six."""
    seconds, runs = 0.0, begins

    def step(compute: Compute, num_images: int) -> None:
        nonlocal seconds, runs
        seconds += (0.01 + 0.002 * num_images) * (3 if runs // 3 % 2 else 1)
        runs += 1

    trial = Mock(device=CPU, side_effect=step)
    monkeypatch.setattr(auto, "time", SimpleNamespace(perf_counter=lambda: seconds))
    assert auto._trial_images(trial, at_most=64) == 64 and seconds < 2


@pytest.mark.slow
def test_auto_measures_once_says_so_and_is_kept(cli: Cli) -> None:
    said = cli.train(*AUTO, "name=first", "tracker=none", "checkpoint.every_steps=3")
    (measured,) = (line for line in said.splitlines() if line.startswith("  measured   "))
    assert "measuring how this machine trains fastest (at most 20 s) …\n" in said
    assert "fp32 " in measured and " ms for 16 images forward and backward" in measured
    state = json.loads((cli.output("first") / "checkpoints/step_00000006/state.json").read_text())
    (compute,) = (line for line in said.splitlines() if line.startswith("  compute    "))
    assert compute == f"  compute    {Compute(**state['compute'])} on cpu, 1 thread"
    # The next run finds the measurements, and so trains the same to the last bit.
    (kept,) = (cli.folder / "cache/ddpm-train/compute").iterdir()
    before = kept.read_bytes()
    assert measured in cli.train(*AUTO, "name=second", "tracker=none") and kept.read_bytes() == before
    first, second = (weights(cli.output(name)) for name in ("first", "second"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    # A run that goes on measures nothing, whatever would be found now.
    opposite = {str(Compute("no", False, "fused", False)): 1e9 if state["compute"]["mixed_precision"] == "no" else 0.0}
    kept.write_text(json.dumps({"num_images": 16, "seconds": opposite}))
    said = cli.train(*AUTO, "name=first", "tracker=none", "train.max_steps=8")
    assert compute in said and "measured" not in said


def test_a_launcher_decides_the_precision(cli: Cli) -> None:
    said = cli.train(
        "train.mixed_precision=auto", "train.max_steps=1", "evaluation=none", ACCELERATE_MIXED_PRECISION="bf16"
    )
    assert "compute    bf16 on cpu" in said


FORCED = ("train.mixed_precision=bf16", "train.channels_last=true", "train.attention=math", "dataset.device_cache=true")


@pytest.mark.slow
@pytest.mark.parametrize("ema", ["none", "warmup"])
def test_every_fast_path_resumes_to_the_bit(cli: Cli, ema: str) -> None:
    run = (*FORCED, f"ema={ema}", "tracker=none", "dataset.random_flip=true", "dataset.crop=random")
    run = (*run, "lr_scheduler=constant", "evaluation=none")
    assert "bf16 + channels_last + math attention on cpu" in cli.train(*run, "name=whole")
    cli.train(*run, "name=parts", "train.max_steps=3")
    cli.train(*run, "name=parts")
    for name in ("unet", "optimizer"):
        whole, parts = (weights(cli.output(run), name) for run in ("whole", "parts"))
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    pipeline = UNet2DModel.from_pretrained(cli.output("whole") / "pipeline/unet").state_dict()
    trained = weights(cli.output("whole"), "unet" if ema == "none" else "ema")
    assert all(torch.equal(pipeline[key], trained[key]) for key in trained)


def test_layout_attention_and_images_on_the_device_change_rounding_only(cli: Cli) -> None:
    plain = ("tracker=none", "evaluation=none")
    cli.train("name=plain", *plain)
    fast = ("train.channels_last=true", "train.attention=math", "dataset.device_cache=true")
    cli.train("name=fast", *plain, *fast)
    plain, other = (weights(cli.output(name)) for name in ("plain", "fast"))
    assert 0 < relative_difference(plain, other) < 1e-5


COUNTED = """
from torch._dynamo.utils import counters
from ddpm_train.cli.train import main
main()
print("compiled", counters["stats"]["unique_graphs"])
"""


@pytest.mark.parametrize("compile", [False, True, "max-autotune-no-cudagraphs"])
def test_a_way_to_compute_is_known_by_its_name(compile: bool | str) -> None:
    compute = Compute("bf16", channels_last=True, attention="math", compile=compile)
    assert Compute.named(str(compute)) == compute


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_run_is_the_same_run_and_compiles_each_thing_once(cli: Cli) -> None:
    """The network and the drawing of noise: not for what is measured, nor for each micro-batch that is tried."""
    auto = ("train.attention=auto", "train.micro_batch_size=auto")
    run = (*ONE_LEVEL, *auto, "dataset.random_flip=true", "tracker=none", "evaluation=none", "lr_scheduler=constant")
    cli.train(*run, "name=eager")
    said = cli.python("-c", COUNTED, *TINY, *run, "name=whole", "train.compile=true")
    assert "+ compiled on cpu" in said and "\ncompiled 2\n" in said
    cli.train(*run, "name=parts", "train.compile=true", "train.max_steps=3")
    cli.train(*run, "name=parts", "train.compile=true")
    eager, whole, parts = (weights(cli.output(name)) for name in ("eager", "whole", "parts"))
    assert relative_difference(eager, whole) < 1e-4
    assert all(torch.equal(parts[key], whole[key]) for key in whole)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_mode_of_torch_compile_is_used() -> None:
    """And torch's compiler does not speak of the caches of version checks in diffusers."""

    class Cached(torch.nn.Conv2d):
        factor = staticmethod(cache(lambda: 2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * self.factor()

    network, images = Cached(1, 4, 3), torch.randn(2, 1, 8, 8)
    plain, graphs = network(images), counters["stats"]["unique_graphs"]
    with warnings.catch_warnings(record=True) as told:
        Compute("no", channels_last=False, attention="fused", compile="max-autotune-no-cudagraphs").apply(network)
        assert torch.allclose(network(images), plain, atol=1e-5)
    assert not any("Dynamo" in str(warning.message) for warning in told)
    assert counters["stats"]["unique_graphs"] == graphs + 1


SWITCHED_OFF = "import torch\ntorch.compiler.set_stance('force_eager')\n"
NO_COMPILER = "import torch._inductor.config as config\nconfig.cpp.cxx = ('/nowhere/g++',)\n"


@pytest.mark.parametrize(
    ("program", "reason"), [(SWITCHED_OFF, "torch.compile is switched off"), (NO_COMPILER, "/nowhere/g++")]
)
def test_a_run_that_is_not_compiled_does_not_claim_it(cli: Cli, program: str, reason: str) -> None:
    run = (*ONE_LEVEL, "train.compile=true", "tracker=none", "evaluation=none")
    said = cli.python("-c", program + "from ddpm_train.cli.train import main\nmain()", *TINY, *run)
    (warning,) = (
        line for line in said.splitlines() if line.startswith("warning: the run goes on without torch.compile")
    )
    assert reason in warning and "compute    fp32 on cpu" in said
    state = json.loads((cli.output() / "checkpoints/step_00000006/state.json").read_text())
    assert state["compute"]["compile"] is False
    assert json.loads((cli.output() / "environment.json").read_text())[0]["compute"]["compile"] is False


def test_a_compiler_that_fails_is_not_chosen() -> None:
    def step(compute: Compute) -> None:
        if compute.compile:
            raise RuntimeError("no C++ compiler")

    stopwatch = Stopwatch(step, CPU, {})
    assert not choose_for_training(
        train_config(compile="auto"), torch.device("cuda"), stopwatch, steps_left=1e12
    ).compile
    assert "fp32 + compiled" in stopwatch.seconds


IN_ORDER = """
import torch
from ddpm_train.cli import train
from ddpm_train.training.loop import Trainer
from ddpm_train.training.trackers import RunTrackers

walks = 0
train_step, log, named_parameters = Trainer.train_step, RunTrackers.log, torch.nn.Module.named_parameters

def walk(self, *arguments, **options):
    global walks
    yield from named_parameters(self, *arguments, **options)
    walks += 1  # to the end: diffusers looks at the first one now and then

def step(self):
    before = walks
    train_step(self)
    print("step", self.state.step, "walks", walks - before)

def tell(self, records):
    log(self, records)
    if records:
        print("records", *(record["step"] for record in records))

Trainer.train_step, RunTrackers.log, torch.nn.Module.named_parameters = step, tell, walk
train.main()
"""


def test_a_step_is_queued_before_the_records_of_the_last_are_written(cli: Cli) -> None:
    """So that a GPU computes meanwhile. What is saved is written before it is. And no step walks over the network."""
    said = cli.python("-c", IN_ORDER, *TINY, "evaluation=none", "checkpoint.every_steps=5", "train.max_steps=7")
    lines = [line for line in said.splitlines() if line.startswith(("step ", "records")) and "loss" not in line]
    steps = [f"step {number} walks 0" for number in range(1, 8)]
    in_between = {3: ["records 1 2"], 5: ["records 3 4", "records 5"], 7: ["records 6", "records 7"]}
    assert lines == [line for number, step in enumerate(steps, 1) for line in (step, *in_between.get(number, ()))]


@pytest.mark.parametrize("micro_batch_size", ["null", "4"])
def test_a_step_never_waits_for_the_device(cli: Cli, micro_batch_size: str) -> None:
    run = ("tracker=none", "dataset.random_flip=true", "model.dropout=0.1", "dataset.device_cache=true")
    command = (WATCHED, "syncs", *TINY, *run, f"train.micro_batch_size={micro_batch_size}")
    counted = cli.python(*command).split("counted ")[1]
    assert "'waiting': 0" in counted and int(counted.split("'operations': ")[1].split(",")[0]) > 5000


def test_gradients_are_exchanged_once_a_step(cli: Cli) -> None:
    command = (WATCHED, "exchanges", *TINY, "tracker=none", "train.micro_batch_size=2")
    # Six steps of four micro-batches on each of two processes; this network's gradients are one bucket.
    assert cli.python_together(*command, count=2).count("counted {'exchanges': 6}") == 2


@pytest.mark.slow
def test_the_largest_micro_batch_that_fits_is_found_and_cut_when_it_does_not_fit_any_more(cli: Cli) -> None:
    cli.train(*LARGE, "name=reference")
    # 300 images take more than 150 MB here; what oneDNN keeps of each size that was tried differs from CPU to CPU.
    found = cli.python(WATCHED, "room=125", *TINY, *LARGE, "name=found", "train.micro_batch_size=auto", **LEAN)
    (batch,) = (line for line in found.splitlines() if line.startswith("  batch "))
    micro = int(batch.split("= ")[1].split(" x")[0])
    assert micro < 300 and f"{micro} x 1 process x {300 // micro} accumulated" in batch
    assert "out of memory" not in found
    cut = cli.python(WATCHED, "room_at_3=75", *TINY, *LARGE, "name=cut", "train.micro_batch_size=auto", **LEAN)
    assert "batch      300 = 300 x 1 process" in cut
    assert "out of memory: the run goes on with micro-batches of 150" in cut
    for name in ("found", "cut"):
        for record, expected in zip(cli.metrics(name), cli.metrics("reference"), strict=True):
            assert record["step"] == expected["step"]
            assert record["loss"] == pytest.approx(expected["loss"], rel=1e-5)
            assert record["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        reference, other = (weights(cli.output(run), step=3) for run in ("reference", name))
        assert relative_difference(reference, other) < 1e-4


RESERVED = """
import gc
import torch
from ddpm_train.cli.train import main
from ddpm_train.training import auto
search = auto.largest_fitting
def look_and_search(*arguments):
    tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor) and each.dtype == torch.uint8]
    print("reserved", sum(each.nbytes for each in tensors))
    return search(*arguments)
auto.largest_fitting = look_and_search
main()
"""


def test_images_in_the_devices_memory_leave_less_for_a_micro_batch(cli: Cli) -> None:
    run = ("train.micro_batch_size=auto", "train.max_steps=1", "evaluation=none", "tracker=none")
    reserved = []
    for device_cache in ("false", "true"):
        said = cli.python(
            "-c", RESERVED, *TINY, *run, f"dataset.device_cache={device_cache}", f"name=is_{device_cache}"
        )
        reserved.append(int(said.split("reserved ")[1].split()[0]))
    images = max(path.stat().st_size for path in (cli.folder / "cache").rglob("pixels.bin"))
    assert reserved[1] - reserved[0] == images


def test_out_of_memory_is_told_in_one_line(cli: Cli) -> None:
    said = cli.python(WATCHED, "room_at_3=75", *TINY, *LARGE, expect=2, **LEAN)
    assert "error: out of memory: " in said and "Traceback" not in said
    assert said.endswith("The same command with train.micro_batch_size=auto continues with the largest that fits\n")


# As torch 2.14 and the libraries below it say it.
OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which 3.00 MiB are",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA ran out of memory outside PyTorch's allocator. If this workload uses many dynamic shapes, cuDNN may need",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "GET was unable to find an engine to execute this computation",
    "FIND was unable to find an engine to execute this computation",
    "HIP out of memory. Tried to allocate 2.00 GiB",
    "MPS backend out of memory (MPS allocated: 8.13 GiB, other allocations: 1.02 GiB, max allowed: 9.07 GiB)",
    "Invalid buffer size: 24.00 GiB",
    "XPU out of memory. Tried to allocate 2.00 GiB",
    "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9",
    "could not create a primitive",
)


@pytest.mark.parametrize("said", OUT_OF_MEMORY)
def test_out_of_memory_is_known_by_all_its_words(said: str) -> None:
    assert out_of_memory(RuntimeError(said))


def test_other_errors_are_not_taken_for_it() -> None:
    others = ("CUDA error: device-side assert triggered", "mat1 and mat2 shapes cannot be multiplied (4x8 and 4x8)")
    assert not any(out_of_memory(RuntimeError(said)) for said in (*others, "CUBLAS_STATUS_EXECUTION_FAILED", ""))


@pytest.mark.slow
def test_out_of_memory_in_an_evaluation_names_its_batch(cli: Cli) -> None:
    large = ("dataset.resolution=16", "evaluation.num_images=2000", "evaluation.batch_size=2000", "tracker=none")
    said = cli.python(WATCHED, "room_in_evaluation=60", *TINY, *large, expect=2, **LEAN)
    assert "error: out of memory: " in said and "Traceback" not in said
    assert said.endswith("The same command with evaluation.batch_size=1000, or less, continues\n")


def test_an_evaluation_of_single_images_can_only_be_left_out() -> None:
    ((config, _),) = compose_configs(PROGRAM, ["evaluation.batch_size=1"])
    assert evaluation_memory_remedy(config) == "The same command with evaluation=none continues"


@pytest.mark.slow
def test_out_of_memory_on_several_processes_ends_them_all(cli: Cli) -> None:
    """With code 2; a process that is still within its memory ends with 1 when the exchange with the other one fails."""
    command = (WATCHED, "room_at_3=40", *TINY, *LARGE, "train.micro_batch_size=auto")
    processes = cli.start_together(*command, count=2, **LEAN)
    said = "".join("".join(process.communicate(timeout=300)) for process in processes)
    codes = {process.returncode for process in processes}
    assert 2 in codes and codes <= {1, 2}
    assert "error: out of memory: " in said
    assert "Give a number for train.micro_batch_size; the same command then continues" in said


OUT_ONCE = """
import os
from ddpm_train.cli.train import main
from ddpm_train.diffusion.objective import Objective
from ddpm_train.system.signals import StopRequest
draw, failed, vote, votes = Objective.draw, [], StopRequest.vote, []
def counted(self, wish=False):
    votes.append(wish)
    return vote(self, wish)
StopRequest.vote = counted
def draw_or_fail(self, shape, positions, **others):
    if os.environ["RANK"] == "1" and positions[0] == 16 * 4 + 8 and not failed:
        failed.append(True)
        raise MemoryError("no room at step 4")
    return draw(self, shape, positions, **others)
Objective.draw = draw_or_fail
main()
print(f"{len(votes)} votes")
"""


def test_one_of_several_processes_cuts_its_micro_batches(cli: Cli) -> None:
    """In an earlier micro-batch than the one that exchanges gradients: the others notice nothing, nothing is lost."""
    begin = ("evaluation=none", "lr_scheduler=constant", "train.max_steps=2", "train.micro_batch_size=4")
    cli.together(*begin, "name=cut", num_processes=2)
    go_on = (*TINY, "evaluation=none", "lr_scheduler=constant", "train.max_steps=8", "train.micro_batch_size=auto")
    said = cli.python_together("-c", OUT_ONCE, *go_on, "name=cut", count=2)
    assert "out of memory: the run goes on with micro-batches of 2" in said
    assert said.count(" votes") == said.count("7 votes") == 2  # what the processes do together, both do equally often
    cli.together(*begin, "name=whole", "train.max_steps=8", num_processes=2)
    assert relative_difference(*(weights(cli.output(name), step=8) for name in ("cut", "whole"))) <= 1e-5


OUT_IN_BACKWARD = """
from ddpm_train.cli.train import main
from ddpm_train.training.loop import Trainer
train, calls = Trainer.train, []
def fail_once(gradient):
    calls.append(1)
    if len(calls) == 3:
        raise MemoryError("no room at step 3")
def train_and_fail(self):
    self.state.unet.conv_in.weight.register_hook(fail_once)  # the last of a backward pass
    train(self)
Trainer.train = train_and_fail
main()
"""


def test_a_single_process_of_a_launcher_cuts_its_micro_batches(cli: Cli) -> None:
    run = (*TINY, "evaluation=none", "tracker=none", "train.micro_batch_size=auto")
    said = cli.python_together("-c", OUT_IN_BACKWARD, *run, "name=cut", count=1)
    assert "out of memory: the run goes on with micro-batches of 8" in said
    cli.train(*run[len(TINY) :], "name=whole")
    assert relative_difference(*(weights(cli.output(name)) for name in ("cut", "whole"))) <= 1e-5


def test_micro_batches_of_all_processes_tile_the_batch() -> None:
    for sizes in ((4, 2), (1, 4)):  # each process may cut its piece as its memory demands
        seen = []
        for index, size in enumerate(sizes):
            plan = BatchPlan(8, size, num_processes=2, process_index=index)
            positions = plan.positions(step=3)
            seen += [next(positions) for _ in range(plan.accumulation)]
        assert torch.cat(seen).sort().values.tolist() == list(range(24, 32))
    assert BatchPlan(24, 12, 2, 0).micro_batch_sizes() == [12, 6, 4, 3, 2, 1]
