"""The arrows of the map: a module may import what stands above it, and what is in its own package."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "ddpm_train"
# From the top; what shares a line does not import each other.
MAP = [
    "mistakes exit_codes",
    "measures",
    "config",
    "samplers selection",
    "validation",
    "sample_config push_config pipeline_path",
    "evaluate_config",
    "seeding files ranks hub_access config_file environment",
    "identity run_lock report",
    "data",
    "diffusion",
    "model optim ema compute",
    "checkpoint",
    "hub",
    "pretrained loading",
    "mirror saving",
    "preemption",
    "evaluation",
    "sampling",
    "metrics trackers",
    "trainer",
    "api",
    "sweeps",
    "cli",
]
LEVEL = {name: level for level, line in enumerate(MAP) for name in line.split()}
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


CHEAP = [
    *("config.py", "validation.py", "mistakes.py", "cli/app.py", "cli/train.py", "data/sources.py"),
    *("samplers.py", "selection.py", "measures.py", "sample_config.py", "pipeline_path.py", "hub_access.py"),
    *("cli/sample.py", "evaluate_config.py", "evaluation/image_folder.py", "cli/evaluate.py"),
    *(str(path.relative_to(PACKAGE)) for path in sorted((PACKAGE / "report").glob("*.py"))),
    *("push_config.py", "cli/push.py", "pretrained.py", "hub/preflight.py", "hub/push.py"),
    *("environment.py", "cli/reproduce.py", "cli/launching.py", "cli/sweeping.py", "cli/sweep_mistakes.py"),
    *(f"sweeps/{name}.py" for name in ("sweep", "jobs", "processes", "launchers", "devices", "summary", "naming")),
]


@pytest.mark.parametrize("name", CHEAP)
def test_what_a_mistake_needs_is_cheap(name: str) -> None:
    top_level = imported(ast.parse((PACKAGE / name).read_text()).body)
    assert not SLOW & {name.split(".")[0] for name in top_level}
