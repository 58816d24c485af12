"""README.md and docs/: every command, key, link and Python block is checked as the programs check them.

Commands of docs/extending.md are run in `test_extending.py`, those of docs/hub.md in `test_hub_docs.py`.
"""

import json
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from helpers.cli import ROOT
from PIL import Image

import ddpm_train
from ddpm_train.cli import data, flags, push
from ddpm_train.cli.export import PROGRAM as EXPORT
from ddpm_train.cli.sweeps import plan
from ddpm_train.cli.sweeps.sweep import Sweep
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.program import Program, compose_configs
from ddpm_train.config.push import PUSHING
from ddpm_train.config.schema import dotted
from ddpm_train.evaluation.preflight import PROGRAM as EVALUATE
from ddpm_train.evaluation.refine_preflight import PROGRAM as REFINE
from ddpm_train.sampling.preflight import PROGRAM as SAMPLE
from ddpm_train.training import api
from ddpm_train.training.preflight import PROGRAM as TRAIN

PUSH = Program("ddpm-push", "push", "run", "'run={}'", PUSHING, push.preflight)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A command within a sentence, and not the mere name of a program.
COMMAND = re.compile(
    r"ddpm-\w+ .*=.*|(accelerate|torchrun|python|sbatch|sky|docker|kubectl) .*(launch/|train\.py|benchmarks/).*"
    r"|make .+|pip install .+"
)
# Its commands need the files that it describes, its keys are theirs.
EXTENDING = ROOT / "docs/extending.md"
RUN_ELSEWHERE = {EXTENDING, ROOT / "docs/hub.md"}


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text()) if found == language]


def spans(page: Path) -> list[str]:
    """The code within the sentences of a page."""
    return re.findall(r"`([^`\n]+)`", BLOCK.sub("", page.read_text()).replace(r"\|", "|"))


def commands() -> dict[str, Path]:
    """Each command, and a page where it stands."""
    found = {}
    for page in PAGES:
        lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
        inline = [span for span in spans(page) if COMMAND.fullmatch(span) and "…" not in span]
        for line in [] if page in RUN_ELSEWHERE else lines + inline:
            if words := shlex.split(line, comments=True):
                found[shlex.join(words)] = page
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, trained: Path, write_images: Callable[[Path, int], Path]) -> Path:
    """A folder that holds what the pages speak of: runs, samples, photographs; and the files of the repository."""
    place = tmp_path_factory.mktemp("docs")
    for path in ("launch", "train.py", "benchmarks", "Makefile"):
        (place / path).symlink_to(ROOT / path)
    for name in ("default", "cats"):
        shutil.copytree(trained, place / "outputs" / name)
    (place / "outputs/cats/checkpoints/best").symlink_to("step_00000006")
    recipe = {"sampler": {"name": "unipc"}, "num_inference_steps": 8, "guidance_scale": None}
    (place / "outputs/cats/refined").mkdir()
    (place / "outputs/cats/refined/refine.json").write_text(json.dumps({"recipe": recipe}))
    for page in PAGES:
        for checkpoint in re.findall(r"outputs/\w+/checkpoints/step_\d+", page.read_text()):
            (place / checkpoint).parent.mkdir(parents=True, exist_ok=True)
            if not (place / checkpoint).exists():
                (place / checkpoint).symlink_to(place / "outputs/default/checkpoints/step_00000006")
    for name in ("data/cats", "data/scans", "data/my cats", "data/my cats (2024)", "samples/cats"):
        write_images(place / name, 60)
    (place / "data/cats.parquet").touch()
    for name in ("cat.png", "mask.png"):
        Image.new("L", (8, 8)).save(place / name)
    return place


@pytest.fixture
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder as the current one, and what is slow left out: all up to it happens as in the programs."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(Sweep, "carry_out", lambda sweep, run: None)
    monkeypatch.setattr(push, "push_mistakes", lambda *arguments, **more: iter(()))  # which asks the Hub
    monkeypatch.setattr(api, "run_evaluation", lambda config, stop: [])
    return place


def composed(program: Program[Any], *texts: str) -> None:
    """Read, compose and check a command line as the program does before anything slow.

    Raises:
        Mistakes: but for packages that only the reader needs, and for the small runs that stand for the reader's.
    """
    arguments = flags.read(texts, program, sweeps_itself=program is TRAIN, plans=program is TRAIN)
    try:
        if arguments.multirun:
            plan.sweep(arguments)
        elif not arguments.help:
            where = {"path": arguments.config_path, "config_dir": arguments.config_dir}
            loads_nothing = replace(program, settle=lambda config, values, overrides: values)
            compose_configs(loads_nothing, arguments.overrides, name=arguments.config_name, **where)
    except Mistakes as mistakes:
        expected = re.compile(r"this config would make another run than|.*; pip install 'ddpm-train\[")
        if lines := [line for line in mistakes.lines if not expected.match(line)]:
            raise Mistakes(*lines) from None


MODULES = {"ddpm_train.cli.train": TRAIN, "ddpm_train.cli.sample": SAMPLE, "ddpm_train.cli.evaluate": EVALUATE}


def python(script: str, *texts: str) -> None:
    """`python SCRIPT`, or `-m MODULE`."""
    if script == "-m":
        script, *texts = texts
    if script.startswith("benchmarks/"):
        assert Path(script).is_file()
    else:
        composed(TRAIN if script == "train.py" else MODULES[script], *texts)


def accelerate(*texts: str) -> None:
    from accelerate.commands.launch import launch_command_parser

    assert texts[0] == "launch"
    given = launch_command_parser().parse_args(texts[1:])
    assert given.config_file is None or Path(given.config_file).is_file()
    python(given.training_script, *given.training_script_args)


def torchrun(*texts: str) -> None:
    from torch.distributed.run import get_args_parser

    given = get_args_parser().parse_args(texts)
    python(given.training_script, *given.training_script_args)


def sbatch(*texts: str) -> None:
    script = texts.index("launch/slurm.sh")
    assert all(text.startswith("--") for text in texts[:script])
    composed(TRAIN, *texts[script + 1 :])


def sky(*texts: str) -> None:
    *_, file, flag, arguments = texts
    assert texts[:2] == ("jobs", "launch") and Path(file).is_file() and flag == "--env"
    composed(TRAIN, *shlex.split(arguments.removeprefix("ARGUMENTS=")))


def make(target: str) -> None:
    assert re.search(rf"^{target}:", Path("Makefile").read_text(), re.MULTILINE)


def pip(install: str, *given: str) -> None:
    """A package of our own with an extra that it has, or somebody's that is named after what it does."""
    *flags, what = given
    assert install == "install" and flags in ([], ["--editable"])
    package, _, extra = what.rstrip("]").partition("[")
    if package in ("ddpm-train", "."):
        assert extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    else:
        assert package in ("pillow-heif", "pillow-jxl-plugin")


def files_exist(*texts: str) -> None:
    files = [text for text in texts if re.fullmatch(r"[\w/]+\.(sh|yaml)|launch/\w+", text)]
    assert files and all(Path(text).is_file() for text in files)


def reproduced(run: str) -> None:
    from ddpm_train.cli import reproduce

    with patch.object(sys, "argv", ["ddpm-reproduce", run]), patch.object(sys, "stderr", sys.stderr):
        reproduce.main()


def known(expected: Sequence[str], *texts: str) -> None:
    assert list(texts) == list(expected)


CHECKS: dict[str, Callable[..., None]] = {
    "ddpm-train": partial(composed, TRAIN),
    "ddpm-sample": partial(composed, SAMPLE),
    "ddpm-evaluate": partial(composed, EVALUATE),
    "ddpm-data": partial(composed, data.PROGRAM),
    "ddpm-push": partial(composed, PUSH),
    "ddpm-export": partial(composed, EXPORT),
    "ddpm-refine": partial(composed, REFINE),
    "ddpm-reproduce": reproduced,
    "python": python,
    "accelerate": accelerate,
    "torchrun": torchrun,
    "sbatch": sbatch,
    "sky": sky,
    "make": make,
    "pip": pip,
    "bash": files_exist,
    "docker": files_exist,
    "kubectl": files_exist,
    "hf": partial(known, ["auth", "login"]),
    "source": partial(known, [".venv/bin/activate"]),
}


def check(line: str, place: Path) -> None:
    words = shlex.split(line.replace("/data/", f"{place}/data/"))
    while re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    program, *arguments = words
    if arguments not in (["--help"], ["--version"]):
        CHECKS[program](*arguments)
    if (
        program == "ddpm-train"
        and "--multirun" not in arguments
        and any(text.startswith(("dataset=", "model=")) and text != "dataset=imagefolder" for text in arguments)
    ):
        assert any(text.startswith("name=") for text in arguments), "would meet the demo's run, `default`"


@pytest.mark.parametrize("line", [pytest.param(line, id=f"{page.stem}: {line}") for line, page in commands().items()])
def test_a_command(line: str, there: Path) -> None:
    check(line, there)


@pytest.mark.parametrize(
    "line",
    [
        "ddpm-train train.max_stepz=5",
        "accelerate launch --cpu train.py model=unet_65",
        "accelerate launch --no_such_flag train.py",
        "ddpm-sample pipeline=outputs/nothing",
        "ddpm-train --multirun seed=1 model.drop=1",
        "make nothing",
        "pip install 'ddpm-train[nothing]'",
        "ddpm-train dataset=cifar10",
        "curl somewhere",
    ],
)
def test_a_wrong_command_fails(line: str, there: Path) -> None:
    with pytest.raises((Mistakes, AssertionError, SystemExit, KeyError)):
        check(line, there)


def known_keys() -> set[str]:
    """All keys of all choices, and the sections that hold them."""
    keys = set()
    for path in (ROOT / "conf").rglob("*.yaml"):
        group = [] if path.parent == ROOT / "conf" or path.parent.name == "experiment" else [path.parent.name]
        values = yaml.safe_load(path.read_text()) or {}
        values.pop("defaults", None)
        for key, _ in dotted(values):
            parts = [*group, *key.split(".")]
            keys |= {".".join(parts[: length + 1]) for length in range(len(parts))}
    return keys


KEY = re.compile(r"([a-z]\w*(?:\.\w+)*)(?:=(\S*))?")
GROUPS = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()} - {"hydra"}
# They take any argument of somebody else's class, or are Hydra's.
OPEN = {"sampler", "tracker", "hydra"}


@pytest.mark.parametrize("page", [page for page in PAGES if page != EXTENDING], ids=lambda page: page.stem)
def test_the_keys_and_choices_in_its_sentences_exist(page: Path) -> None:
    keys = known_keys()
    sections = {key.split(".")[0] for key in keys if "." in key} - OPEN
    for word in (word for span in spans(page) for word in span.split()):
        found = KEY.fullmatch(word)
        if found is None or word.endswith((".py", ".yaml", ".json", ".jsonl", ".md", ".pt", ".onnx")):
            continue
        key, value = found.groups()
        if "." in key and key.split(".")[0] in sections:
            assert key in keys, word
        elif value and key in GROUPS and re.fullmatch(r"[\w|]+", value):
            for choice in value.split("|"):
                assert choice == "null" or (ROOT / f"conf/{key}/{choice}.yaml").is_file(), word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", BLOCK.sub("", page.read_text())):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE) if anchor else []
        slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in slugs, target


PYTHON = [
    pytest.param(text, id=f"{page.stem}-{number}")
    for page in PAGES
    if page.stem not in ("extending", "models-and-configs")  # which `test_extending.py`, `test_training.py` run
    for number, text in enumerate(blocks(page, "python"))
]


@pytest.mark.parametrize("text", PYTHON)
def test_its_python(text: str, there: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls are checked as `ddpm_train` checks them; a run that is there already stands for what they train."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "train_run", lambda config, *_, **more: shutil.copytree(trained, config.output_dir))
    if "ddpm_train.train(" not in text:
        shutil.copytree(trained, "outputs/cats")
    exec(text.replace("/data/", f"{there}/data/"), {"ddpm_train": ddpm_train})


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(BLOCK.sub("", text).split()) <= 900
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in text, page


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == ddpm_train.__version__
    assert f"## {ddpm_train.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def figures(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())["figures"]
    return result


def test_the_tables_of_networks_hold_what_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters, memory and operations; and hours at the rate that was measured in training."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from models import PAGE, tables  # type: ignore[import-not-found]

    counted, measured = figures("models"), figures("throughput")
    ours = measured["ours"]["images_per_second"]
    rate = sum(ours) / len(ours) * measured["limits"]["flops_per_image"]
    assert PAGE.read_text().endswith(tables(counted))
    rows = re.findall(r"\| `(\w+)` \| (\d+) px \|(.*)\|\n", (ROOT / "README.md").read_text())
    for model, side, row in rows:
        network = counted[f"{model} {side} px"]
        batch, flops = network["batch_size"], network["flops_of_1000_steps"]
        parameters, memory, time = (cell.strip() for cell in row.split("|"))
        assert parameters in (f"{network['parameters'] / 1e6:.{digits}f}M" for digits in (1, 2))
        assert memory == f"{network['bytes']['bf16'] / 1e9:.1f} GB ({batch})"
        assert time.endswith("measured") or time == f"{flops / rate / 3600:.{0 if flops / rate > 36000 else 1}f} h"
    assert len(rows) == 6


def test_what_was_counted_is_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from models import count  # type: ignore[import-not-found]

    assert count("unet_tiny", 16, 1, 64) == figures("models")["unet_tiny 16 px"]
