"""Every file in launch/: checked by the tool of its kind, and run where it can run here."""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.cli import FORK_CHILDREN, ROOT, TINY, Cli
from helpers.forked import TESTS, server

LAUNCH = ROOT / "launch"
BIN = Path(sys.executable).parent

# As `man srun` says: a task for each rank of the job, and the highest of their exit codes. Sites may have chosen that
# one bad exit kills the other tasks.
SRUN = f"""#!{sys.executable}
import os, pathlib, signal, subprocess, sys
options = [word for word in sys.argv[1:] if word.startswith("--")]
command = sys.argv[1 + len(options):]
per_node = int(os.environ["SLURM_NTASKS_PER_NODE"])
count = per_node * int(os.environ["SLURM_JOB_NUM_NODES"])
tasks = {{}}
for rank in range(count):
    own = {{"SLURM_PROCID": rank, "SLURM_LOCALID": rank % per_node, "SLURM_NTASKS": count}}
    environment = {{**os.environ, **{{key: str(value) for key, value in own.items()}}}}
    task = subprocess.Popen(command, env=environment, close_fds=False)
    tasks[task.pid] = task
pathlib.Path("tasks").write_text(" ".join(map(str, tasks)))
codes = []
for _ in range(count):
    pid, status = os.wait()
    codes.append(os.waitstatus_to_exitcode(status))
    del tasks[pid]
    if codes[-1] != 0 and "--kill-on-bad-exit=0" not in options:
        for task in tasks.values():
            task.kill()
sys.exit(max(128 - code if code < 0 else code for code in codes))
"""
SCONTROL = """#!/bin/sh
case "$1 $2" in
  "show hostnames") for host in $(echo "$3" | tr , " "); do echo "$host"; done ;;
  "requeue "*) echo "$2" >> requeued ;;
  *) exit 1 ;;
esac
"""


# `train.py ARGUMENTS` in a fork of the process at the other end of that socket; the warning is passed on.
TRAIN = f"""#!{sys.executable}
import os, signal, socket, sys
sys.path.insert(0, {str(TESTS)!r})
from helpers import forked
forked.server = lambda: socket.socket(fileno=int(os.environ["FORK_SERVER"]))
task = forked.Fork([{str(ROOT / "train.py")!r}, *sys.argv[1:]], os.getcwd(), dict(os.environ))
signal.signal(signal.SIGUSR1, lambda number, frame: task.send_signal(number))
out, err = task.communicate()
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(task.returncode)
"""


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Slurm:
    """Runs launch/slurm.sh as slurmd does: with the environment that its #SBATCH lines ask for."""

    def __init__(self, cli: Cli, program: str, *flags: str) -> None:
        self.cli = cli
        write_program(cli.folder / "bin/srun", SRUN)
        write_program(cli.folder / "bin/scontrol", SCONTROL)
        write_program(cli.folder / "bin/ddpm-train", program)
        script = (LAUNCH / "slurm.sh").read_text()
        options = [*re.findall(r"^#SBATCH (--\S+)$", script, re.MULTILINE), *flags]
        chosen = dict(option.removeprefix("--").split("=", 1) for option in options if "=" in option)
        assert chosen["signal"] == "USR1@120" and "--requeue" in options
        self.environment = {
            "PATH": f"{cli.folder / 'bin'}:{os.environ['PATH']}",
            "ACCELERATE_USE_CPU": "True",
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": "127.0.0.1,node1",
            "SLURM_JOB_NUM_NODES": chosen["nodes"],
            "SLURM_NTASKS_PER_NODE": chosen["ntasks-per-node"],
            "SLURM_CPUS_PER_TASK": chosen["cpus-per-task"],
        }

    def start(self, *overrides: str, restarts: int = 0) -> "subprocess.Popen[str]":
        counted = {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
        environment = {**self.environment, **counted, "FORK_SERVER": str(server().fileno())}
        command = ["bash", str(LAUNCH / "slurm.sh"), *overrides]
        return self.cli.start(command, pass_fds=[server().fileno()], **environment)

    def tasks(self) -> list[int]:
        return [int(pid) for pid in (self.cli.folder / "tasks").read_text().split()]

    def requeued(self) -> int:
        """How often the job has asked for it."""
        requeued = self.cli.folder / "requeued"
        jobs = requeued.read_text().split() if requeued.exists() else []
        assert set(jobs) <= {self.environment["SLURM_JOB_ID"]}
        return len(jobs)


@pytest.mark.slow
def test_slurm_requeues_after_its_warning_and_the_run_goes_on(cli: Cli) -> None:
    """Two nodes with a process each. Slurm signals the tasks, and neither the batch script nor srun."""
    slurm = Slurm(cli, TRAIN, "--nodes=2", "--ntasks-per-node=1")
    # Slurm starts the script again with the same arguments.
    overrides = (*TINY, "train.max_steps=60", "evaluation=none", "tracker=none")
    job = slurm.start(*overrides)
    metrics = cli.output() / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 10:
        assert job.poll() is None and time.monotonic() < deadline, job.communicate()
        time.sleep(0.002)
    for task in slurm.tasks():
        os.kill(task, signal.SIGUSR1)
    out, err = job.communicate(timeout=60)
    assert job.returncode == 75 and slurm.requeued() == 1, out + err
    assert "16 = 8 x 2 processes" in out and "stopped (SIGUSR1)" in out
    stopped_at = len(cli.metrics())
    assert stopped_at < 60
    job = slurm.start(*overrides, restarts=1)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0 and slurm.requeued() == 1, out + err
    assert f"resumes at step {stopped_at}" in out and "done: step 60" in out
    assert [record["step"] for record in cli.metrics()] == list(range(1, 61))


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [
        (0, 0, 0),
        (2, 0, 0),
        (3, 0, 0),
        (4, 0, 0),
        (75, 9, 1),
        (1, 0, 1),
        (1, 3, 0),
        ("-KILL", 2, 1),
        ("-USR1", 9, 1),
        ("-TERM", 9, 1),
    ],
)
def test_slurm_knows_what_an_exit_code_means(cli: Cli, code: int | str, restarts: int, requeued: int) -> None:
    """Those of docs/resuming.md; one bad process is enough."""
    ends = f"exit {code}" if isinstance(code, int) else f"kill {code} $$"
    slurm = Slurm(cli, f'#!/bin/sh\nif [ "$RANK" = 1 ]; then {ends}; fi\n', "--ntasks-per-node=2")
    job = slurm.start(restarts=restarts)
    job.communicate(timeout=60)
    killed = {"-KILL": 137, "-USR1": 138, "-TERM": 143}
    assert (job.returncode, slurm.requeued()) == (killed[code] if isinstance(code, str) else code, requeued)


def test_slurm_passes_arguments_as_they_are(cli: Cli) -> None:
    slurm = Slurm(cli, '#!/bin/sh\nprintf "%s\\n" "$@" "$WORLD_SIZE $LOCAL_WORLD_SIZE"\n', "--ntasks-per-node=1")
    out, _ = slurm.start("a=[1, 2]", "b='c d'", "e=$HOME").communicate(timeout=60)
    assert out.splitlines() == ["a=[1, 2]", "b='c d'", "e=$HOME", "1 1"]


def skypilot() -> dict[str, Any]:
    task: dict[str, Any] = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    return task


@pytest.mark.parametrize("name", ["slurm.sh", "skypilot.yaml"])
def test_shellcheck(name: str, tmp_path: Path) -> None:
    script = LAUNCH / name
    if name == "skypilot.yaml":
        script = tmp_path / "run.sh"
        script.write_text(f"#!/usr/bin/env bash\n{skypilot()['setup']}\n{skypilot()['run']}")
    checked = subprocess.run([BIN / "shellcheck", script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def launch_arguments(name: str, *flags: str) -> argparse.Namespace:
    """What `accelerate launch` makes of a config."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    command = ["--config_file", str(LAUNCH / "accelerate" / name), *flags, "train.py"]
    arguments: argparse.Namespace = _validate_launch_command(launch_command_parser().parse_args(command))[0]
    return arguments


def test_accelerate_configs() -> None:
    """Accelerate's own loader refuses unknown keys; what it makes of the known ones is what the file says."""
    from accelerate.utils.launch import prepare_multi_gpu_env

    assert {path.stem for path in (LAUNCH / "accelerate").iterdir()} == {
        *("cpu", "one_gpu", "multi_gpu", "several_machines")
    }
    cpu = launch_arguments("cpu.yaml")
    assert (cpu.use_cpu, cpu.multi_gpu, cpu.num_processes) == (True, False, 1)
    one = launch_arguments("one_gpu.yaml")
    assert (one.use_cpu, one.multi_gpu, one.num_processes, one.gpu_ids) == (False, False, 1, "0")
    machine = launch_arguments("multi_gpu.yaml", "--num_processes", "4")
    prepare_multi_gpu_env(machine)
    assert (machine.multi_gpu, machine.nproc_per_node) == (True, "4") and int(machine.master_port) > 0
    second = launch_arguments("several_machines.yaml", "--machine_rank", "1")
    prepare_multi_gpu_env(second)
    assert (second.nnodes, second.node_rank, second.nproc_per_node) == ("2", 1, "8")
    assert (second.rdzv_backend, second.rdzv_endpoint) == ("static", "10.0.0.1:29500")


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            {"distributed_type": "FSDP", "num_processes": 2, "fsdp_config": {"fsdp_version": 2}},
            "ACCELERATE_USE_FSDP=true: FSDP splits the model",
        ),
        (
            {"distributed_type": "NO", "num_processes": 1, "dynamo_config": {"dynamo_backend": "INDUCTOR"}},
            "ACCELERATE_DYNAMO_BACKEND=inductor: compiles beside the run",
        ),
    ],
)
@pytest.mark.slow
def test_a_config_that_a_run_cannot_follow(cli: Cli, config: dict[str, Any], line: str) -> None:
    """Told once, by one of the processes that it starts."""
    path = cli.folder / "accelerate.yaml"
    path.write_text(yaml.safe_dump({"compute_environment": "LOCAL_MACHINE", "num_machines": 1, **config}))
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(path), "--main_process_port", "0"]
    process = cli.fork(*launch, str(ROOT / "train.py"), *TINY, **FORK_CHILDREN)
    _, err = process.communicate(timeout=120)
    (told,) = [each for each in err.splitlines() if each.startswith("error: ")]
    assert process.returncode == 1 and told.startswith(f"error: {line}") and not cli.output().exists()


def torchrun_commands() -> dict[str, list[str]]:
    """The `torchrun …` of every file that has one, as the shell or Kubernetes gives it."""
    _, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    head = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}
    machines = {**head, "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", **skypilot()["envs"]}
    shown = 'torchrun() { printf "%s\\n" torchrun "$@"; }\n' + skypilot()["run"]
    told = subprocess.run(["bash", "-euc", shown], env={**os.environ, **machines}, capture_output=True, text=True)
    cells = json.loads((LAUNCH / "notebook.ipynb").read_text())["cells"]
    (line,) = (text for cell in cells if (text := "".join(cell["source"])).startswith("!torchrun "))
    return {
        "kubernetes.yaml": [*container["command"], *container["args"]],
        "skypilot.yaml": told.stdout.splitlines(),
        "notebook.ipynb": shlex.split(line.removeprefix("!").replace("\\\n", "").format(MIRROR="null")),
    }


@pytest.mark.parametrize("name", ["kubernetes.yaml", "skypilot.yaml", "notebook.ipynb"])
def test_torchrun_and_the_program_understand_the_command(cli: Cli, name: str) -> None:
    from torch.distributed.run import get_args_parser, parse_min_max_nnodes

    program, *words = torchrun_commands()[name]
    arguments = get_args_parser().parse_args(words)
    assert program == "torchrun" and arguments.module and arguments.training_script == "ddpm_train.cli.train"
    shown = cli.python("-m", arguments.training_script, "--cfg", "job", *arguments.training_script_args)
    config = yaml.safe_load(shown)
    assert config["resume"] == "auto" and config["name"] == "flowers102_64"
    assert config["checkpoint"]["every_minutes"] == 10
    if name == "kubernetes.yaml":
        assert parse_min_max_nnodes(arguments.nnodes) == (1, 2)
    if name == "skypilot.yaml":
        assert (arguments.nnodes, arguments.node_rank, arguments.master_addr) == ("2", 1, "10.0.0.1")


def test_kubernetes_names_agree() -> None:
    """What no schema sees: pods find each other by the service's name, and are as many everywhere."""
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    spec, name = job["spec"], job["metadata"]["name"]
    (container,) = spec["template"]["spec"]["containers"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    (endpoint,) = [word for word in container["args"] if word.startswith("--rdzv-endpoint=")]
    assert endpoint.startswith(f"--rdzv-endpoint={name}-0.{service['metadata']['name']}.default.svc.")
    assert f"--nnodes=1:{spec['completions']}" in container["args"] and spec["parallelism"] == spec["completions"]
    assert {"name": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "value": "1"} in container["env"]


def test_the_image_gets_all_that_the_package_needs(tmp_path: Path) -> None:
    """A wheel of what the Dockerfile copies, and its ignore file lets through, has the configs and images."""
    instructions = (LAUNCH / "Dockerfile").read_text()
    allowed = {line[1:] for line in (LAUNCH / "Dockerfile.dockerignore").read_text().split() if line[0] == "!"}
    for words in re.findall(r"^COPY (.+)$", instructions, re.MULTILINE):
        *sources, target = words.split()
        for source in sources:
            assert source in allowed
            place = tmp_path / "image" / target.strip("/") / (source if target.endswith("/") else "")
            place.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, place)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", tmp_path, tmp_path / "image/source"], check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    listed = subprocess.run([sys.executable, "-m", "zipfile", "-l", wheel], capture_output=True, text=True).stdout
    assert "ddpm_train/conf/config.yaml" in listed and "ddpm_train/data/fashion_tiny/train.png" in listed
    assert "ddpm_train/data/fashion_tiny/LICENSE" in listed


def test_the_page_names_every_file() -> None:
    page = (ROOT / "docs/launching.md").read_text()
    for path in LAUNCH.rglob("*"):
        if path.is_file() and path.suffix != ".dockerignore":
            assert str(path.relative_to(ROOT)) in page, path
