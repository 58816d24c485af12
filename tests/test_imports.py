"""The arrows of the map: a module may import what stands above it, and what is in its own package."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.cli import ROOT

PACKAGE = ROOT / "ddpm_train"
# From the top: a room imports from the rooms above it. Within a room no circle.
MAP = [
    "_version",
    "seeding",
    "config",
    "system",
    "diffusion",
    "runs",
    "report",
    "hub",
    "data",
    "models",
    "sampling",
    "evaluation",
    "training",
    "cli",
    "__main__",
]
LEVEL = {name: level for level, name in enumerate(MAP)}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
SLOW = {"torch", "torchvision", "diffusers", "datasets", "transformers", "accelerate", "torch_fidelity"}


def part(path: Path) -> str:
    """The entry of the map that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(nodes: list[ast.stmt] | ast.Module) -> Iterator[str]:
    """Dotted names of everything imported; with a module, also inside functions."""
    for node in ast.walk(nodes) if isinstance(nodes, ast.Module) else nodes:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_above(path: Path) -> None:
    own = part(path)
    assert own in LEVEL, "not in the map"
    for name in imported(ast.parse(path.read_text())):
        package, other, *_ = *name.split("."), own  # the package itself holds no more than the version
        if package == "ddpm_train" and other != own:
            assert LEVEL[other] < LEVEL[own], name


def test_no_circle_within_a_room() -> None:
    """Files are left over that only lead to each other as long as there is one; also imports for types count."""
    names = {".".join(("ddpm_train", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in MODULES}
    leads_to = {name: set(imported(ast.parse(path.read_text()))) for name, path in names.items()}
    left = {
        name: {other for other in names if any(one == other or one.startswith(f"{other}.") for one in found)} - {name}
        for name, found in leads_to.items()
    }
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert not left


CHEAP = [
    *(
        str(path.relative_to(PACKAGE))
        for room in ("config", "report", "cli")
        for path in sorted((PACKAGE / room).glob("**/*.py"))
    ),
    *(f"data/{name}.py" for name in ("paths", "sources", "hf_datasets")),
    *(f"hub/{name}.py" for name in ("access", "preflight", "push")),
    *(
        "models/pretrained.py",
        "models/source.py",
        "evaluation/image_folder.py",
        "system/launch.py",
        "training/choices.py",
        "training/decisions.py",
        "training/preflight.py",
    ),
    *(f"runs/{name}.py" for name in ("folder", "best", "environment", "identity", "lock", "state")),
]


@pytest.mark.parametrize("name", CHEAP)
def test_what_a_mistake_needs_is_cheap(name: str) -> None:
    top_level = imported(ast.parse((PACKAGE / name).read_text()).body)
    assert not SLOW & {name.split(".")[0] for name in top_level}


# Who parses JSON or YAML by other means than `config/foreign.py`, which reads what comes from elsewhere, and why.
PARSERS = {
    "cli/show.py": "our own conf/",
    "config/idle.py": "our own conf/",
    "training/decisions.py": "our own conf/",
    "hub/push.py": "what its parent process says",
    "hub/background.py": "what its child process says",
    "evaluation/scores.py": "what it has just written",
    "models/unet.py": "what it has just written",
    "runs/environment.py": "what pip notes of this package",
    "sampling/onnx_sampler.py": "what the export has written beside it",
    "hub/share.py": "the manifest of a checkpoint that was verified",
}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_comes_from_elsewhere_is_read_in_one_place(path: Path) -> None:
    calls = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    parsers = {ast.unparse(call) for call in calls} & {
        *("json.load", "json.loads", "yaml.load", "yaml.safe_load", "yaml.full_load", "OmegaConf.load")
    }
    name = str(path.relative_to(PACKAGE))
    assert bool(parsers) == (name == "config/foreign.py" or name in PARSERS), parsers


def test_no_test_file_imports_from_another() -> None:
    """What they share stands in helpers/."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        found = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
        assert not [name for name in found if name == "conftest" or name.startswith("test_")], path
