"""Output that goes nowhere: to a full disk, a pipe that nobody reads, no descriptor at all."""

import io
import os
import sys
from pathlib import Path

import pytest
import yaml
from helpers.cli import TINY, Cli
from helpers.runs import steps_written

from ddpm_train.system.output import forgiving

# What a program is started with: `>/dev/full 2>&1`, `2>&1 | head -2` whose head has left, and `>&-`.
FULL = "import os\nfull = os.open('/dev/full', os.O_WRONLY)\nos.dup2(full, 1)\nos.dup2(full, 2)\n"
LEFT = "import os\nread, write = os.pipe()\nos.close(read)\nos.dup2(write, 1)\nos.dup2(write, 2)\n"
CLOSED = "import sys\nsys.stdout = None\n"
MAIN = "from ddpm_train.cli.{} import main\nmain()\n"
FROM_PYTHON = """
import ddpm_train
ddpm_train.train("outputs/default", {keys})
"""


@pytest.mark.parametrize("lost", [FULL, LEFT, CLOSED], ids=["full", "left", "closed"])
def test_a_run_does_not_need_to_be_heard(cli: Cli, lost: str) -> None:
    """Whoever speaks: the console, a library's warning, Python itself at the end."""
    warns = "import warnings\nwarnings.warn('of a library')\n"
    said = cli.python("-c", lost + warns + MAIN.format("train"), *TINY, "tracker=none")
    assert steps_written(cli.output()) == 6 and (cli.output() / "result.json").exists()
    assert said == "" or lost == CLOSED


def test_nor_does_one_from_python(cli: Cli) -> None:
    keys = dict(each.split("=", 1) for each in (*TINY, "evaluation.num_images=2"))
    values = {key: yaml.safe_load(value) for key, value in keys.items()}
    values |= {"optimizer.lr": 1e-3, "train.mixed_precision": "no"}  # which YAML reads otherwise
    cli.python("-c", FULL + FROM_PYTHON.format(keys=values))
    assert steps_written(cli.output()) == 6 and (cli.output() / "result.json").exists()


@pytest.mark.parametrize("lost", [FULL, LEFT], ids=["full", "left"])
def test_nor_do_samples_and_scores(cli: Cli, trained: Path, lost: str) -> None:
    few = (f"pipeline={trained}", "num_inference_steps=1", "mixed_precision=no", "num_images=2", "output=samples")
    cli.python("-c", lost + MAIN.format("sample"), *few)
    assert len(list((cli.folder / "samples/images").iterdir())) == 2 and (cli.folder / "samples/grid.png").exists()
    cli.python("-c", lost + MAIN.format("evaluate"), f"pipeline={trained}", "metrics=[held_out_loss]", "output=scores")
    assert (cli.folder / "scores/scores.json").exists()


def test_a_mistake_keeps_its_exit_code(cli: Cli) -> None:
    cli.python("-c", FULL + MAIN.format("train"), "train.max_steps=-1", expect=2)


def test_what_is_printed_to_be_used_must_arrive(cli: Cli, trained: Path) -> None:
    full = "import os\nos.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"
    for program, arguments in (("train", ["--cfg", "job"]), ("reproduce", [str(trained)])):
        *_, line = cli.python("-c", full + MAIN.format(program), *arguments, expect=4).splitlines()
        assert line.startswith("error: [Errno 28] No space left on device. Make room")
    assert cli.python("-c", LEFT + MAIN.format("train"), "--help", expect=1) == ""


@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_warning_is_there_before_the_program_ends(unbuffered: bool) -> None:
    """Also where PYTHONUNBUFFERED is set, and whatever kills the program then."""
    read, write = os.pipe()
    with os.fdopen(write, "wb", 0) as descriptor:
        stream = io.TextIOWrapper(descriptor, line_buffering=not unbuffered, write_through=unbuffered)
        print("warning: one", file=forgiving(stream))
        assert os.read(read, 100) == b"warning: one\n"
    os.close(read)


def test_a_reader_that_is_slow_is_not_waited_for_where_the_descriptor_does_not() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    with os.fdopen(write, "w") as stream:
        heard = forgiving(stream)
        heard.write("a line\n" * 100_000)
        heard.flush()
    assert os.read(read, 7) == b"a line\n"
    os.close(read)


def test_a_locale_without_our_characters(cli: Cli) -> None:
    """A dash of ours must not end a program where the locale is that of a bare container, or of an old cluster."""
    ascii_alone = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    said = cli.run([sys.executable, "-m", "ddpm_train.cli.train", "--help"], **ascii_alone)
    assert "dataset.path=\\u2026" in said
    said = cli.run([sys.executable, "-m", "ddpm_train.cli.sample", "sampler=dpm_solvr"], expect=2, **ascii_alone)
    assert "did you mean 'dpm_solver'?" in said


def test_what_a_notebook_or_a_typo_leaves_in_the_environment(cli: Cli) -> None:
    """Charts need no backend of a notebook; a library that refuses to start is named."""
    look = [sys.executable, "-m", "ddpm_train.cli.data", "dataset=fashion_tiny"]
    cli.run(look, MPLBACKEND="module://matplotlib_inline.backend_inline")
    said = cli.run(look, expect=2, TORCH_LOGS="nonsense")
    assert said.splitlines()[-1].startswith("error: torch cannot be imported: Invalid log settings: nonsense")
