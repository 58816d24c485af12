"""What the wheel carries, tried in a folder that has nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from helpers.cli import ROOT, Cli

IMAGES = ROOT / "ddpm_train/data/fashion_tiny"
PAGE = ROOT / "ddpm_train/report"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "unpacked")
    return folder / "unpacked"


def test_the_wheel_has_every_config_image_and_template(unpacked: Path) -> None:
    for source, packaged in ((ROOT / "conf", "conf"), (IMAGES, "data/fashion_tiny"), (PAGE, "report")):
        for path in source.rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                assert (unpacked / "ddpm_train" / packaged / path.relative_to(source)).read_bytes() == path.read_bytes()
    assert not (unpacked / "tests").exists()
    (licences,) = unpacked.glob("*.dist-info/licenses")
    assert (licences / "LICENSE").is_file() and (licences / "ddpm_train/data/fashion_tiny/LICENSE").is_file()


def test_the_wheel_runs_with_its_own_configs(cli: Cli, unpacked: Path) -> None:
    program = [sys.executable, "-m", "ddpm_train.cli.train"]
    where = {"PYTHONPATH": str(unpacked)}
    assert "model: auto, unet2d, unet_128" in cli.run([*program, "--help"], **where)
    shown = cli.run([*program, "--cfg", "job", "model=unet_32"], **where)
    assert yaml.safe_load(shown)["model"]["block_out_channels"] == [128, 256, 256, 256]
    said = cli.run([*program, "--config-name", "xyz"], expect=2, **where)
    assert f"no such file in {unpacked / 'ddpm_train/conf'}" in said


def test_the_embedded_images_are_small_and_licensed() -> None:
    assert sum(path.stat().st_size for path in IMAGES.glob("*.png")) <= 1.2e6
    licence = (IMAGES / "LICENSE").read_text()
    assert "MIT License" in licence and "Zalando" in licence
