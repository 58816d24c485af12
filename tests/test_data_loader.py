import os
import pickle
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from helpers.cli import Cli
from helpers.images import dataset_config, encoded, png_bomb
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_train.config.losses import MSE
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.data.loader import Batches, Data, MicroBatch, micro_batches, open_data
from ddpm_train.data.workers import num_workers
from ddpm_train.diffusion.objective import Objective

ONE_STEP = ("train.max_steps=1", "evaluation=none", "tracker=none")


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """40 pictures, three times as wide as high; a pixel's red tells the column and its green the picture."""
    folder = tmp_path / "wide"
    folder.mkdir()
    for index in range(40):
        pixels = np.zeros((8, 24, 3), dtype=np.uint8)
        pixels[..., 0] = np.arange(24) * 10
        pixels[..., 1] = index * 6
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder


def opened(folder: Path, **values: object) -> Data:
    values = {"resolution": 8, "validation_fraction": 0.0, "cache_dir": str(folder.parent / "cache"), **values}
    return open_data(dataset_config("folder", folder, **values), progress=False)


def seen(data: Data, positions: torch.Tensor, seed: int = 0, *, crop: bool = False, flip: bool = False) -> torch.Tensor:
    batches = Batches(data.train, seed=seed, random_crop=crop, random_flip=flip)
    return loaded(batches, [positions])[0].images


def loaded(
    batches: Batches, steps: list[torch.Tensor], *, resident: bool = False, workers: int = 0
) -> list[MicroBatch]:
    objective, device = Objective(DDPMScheduler(), MSE("mse"), batches.seed), torch.device("cpu")
    return list(micro_batches(batches, objective, iter(steps), device=device, resident=resident, num_workers=workers))


def test_an_epoch_sees_every_image_once(wide: Path) -> None:
    batch = seen(opened(wide), torch.arange(80))
    pictures = batch[:, 1, 0, 0] // 6
    for epoch in (pictures[:40], pictures[40:]):
        assert epoch.sort().values.tolist() == list(range(40))
    assert torch.all(batch[:, 0, 0] == torch.arange(80, 160, 10))  # the centre


def test_about_half_of_the_visits_are_flipped_by_seed_and_position(wide: Path) -> None:
    data, positions = opened(wide), torch.arange(4000)
    plain, flipped = seen(data, positions), seen(data, positions, flip=True)
    is_flipped = torch.all(flipped == plain.flip(-1), dim=-1).flatten(1).all(1) & (flipped != plain).flatten(1).any(1)
    assert torch.all(torch.where(is_flipped[:, None, None, None], plain.flip(-1), plain) == flipped)
    assert abs(is_flipped.float().mean() - 0.5) < 0.04  # five standard deviations
    # The same picture is flipped at some visits and not at others.
    first = plain[:, 1, 0, 0] == 0
    assert 0.2 < is_flipped[first].float().mean() < 0.8
    other = seen(data, positions, seed=1, flip=True) != seen(data, positions, seed=1)
    assert 0.3 < (other.flatten(1).any(1) == is_flipped).float().mean() < 0.7


def test_each_visit_draws_its_crop(wide: Path) -> None:
    data, positions = opened(wide, crop="random"), torch.arange(4000)
    batch = seen(data, positions, crop=True)
    columns = batch[:, 0, 0, 0] // 10
    assert torch.all(batch[:, 0, 0].int() == columns[:, None].int() * 10 + torch.arange(0, 80, 10))
    counts = torch.bincount(columns.int(), minlength=17)
    assert len(counts) == 17 and counts.min() > 170 and counts.max() < 300  # 235 on average, s = 15
    one_picture = columns[batch[:, 1, 0, 0] == 0]
    assert len(one_picture.unique()) > 10
    assert not torch.equal(columns, seen(data, positions, seed=1, crop=True)[:, 0, 0, 0] // 10)
    # What stands at a position does not depend on what else is in the batch; evaluation sees the centre.
    parts = [seen(data, part, crop=True, flip=True) for part in positions.split(7)]
    assert torch.equal(torch.cat(parts), seen(data, positions, crop=True, flip=True))
    assert torch.all(data.train.load([0, 5])[:, 0, 0] == torch.arange(80, 160, 10))


@pytest.mark.parametrize("crop", ["center", "random"])
def test_a_gather_on_the_device_gives_what_the_cache_gives(wide: Path, crop: str) -> None:
    data = opened(wide, crop=crop, resolution=[6, 8], validation_fraction=0.25)
    batches = Batches(data.train, seed=3, random_crop=crop == "random", random_flip=True)
    steps = [torch.arange(start, start + 40) for start in (0, 40, 10**12)]
    for one, other in zip(loaded(batches, steps), loaded(batches, steps, resident=True), strict=True):
        assert all(map(torch.equal, one, other))
        assert one.images.shape == one.noise.shape == (40, 3, 6, 8) and one.images.dtype == torch.uint8


class Launches(TorchDispatchMode):
    """Counts the operations that a GPU would launch a kernel for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.count += not operator.is_view
        return operator(*arguments, **(options or {}))


def test_all_that_is_random_of_a_micro_batch_costs_few_launches(wide: Path) -> None:
    """Crops, flips, noise and timesteps by themselves took 518 of them; on a GPU each is some microseconds."""
    batches = Batches(opened(wide, crop="random").train, seed=0, random_crop=True, random_flip=True)
    objective, device = Objective(DDPMScheduler(), MSE("mse"), 0), torch.device("cpu")
    positions = iter([torch.arange(16), torch.arange(16, 32)])
    with closing(micro_batches(batches, objective, positions, device=device, resident=True, num_workers=0)) as made:
        next(made)
        with Launches() as launches:
            next(made)
    assert 50 < launches.count <= 120  # 91 of them to draw, the others to gather the images


def test_workers_give_what_the_cache_gives(wide: Path) -> None:
    (wide / "broken.png").write_bytes(b"")
    allowed = {"crop": "random", "max_broken_fraction": 0.1}
    steps = [torch.arange(start, start + 5) for start in (0, 5, 300, 10**12)]

    def through(data: Data, workers: int) -> list[MicroBatch]:
        batches = Batches(data.train, seed=0, random_crop=True, random_flip=True)
        return loaded(batches, steps, workers=workers)

    cached, uncached = opened(wide, **allowed), opened(wide, **allowed, cache="none")
    assert cached.content == uncached.content and cached.broken == [("broken.png", "an empty file")]
    for one, other in zip(through(cached, 0), through(uncached, 1), strict=True):
        assert all(map(torch.equal, one, other))


def test_an_image_lost_during_training_is_told_without_a_traceback(wide: Path) -> None:
    data = opened(wide, cache="none")
    for path in wide.iterdir():
        path.write_bytes(b"")
    batches = Batches(data.train, seed=0, random_crop=False, random_flip=False)
    for workers in (0, 1):
        with pytest.raises(Mistakes) as raised:
            loaded(batches, [torch.arange(4)], workers=workers)
        (line,) = raised.value.lines
        assert line.endswith(".png: could be read at the start, but not now: an empty file") and "\n" not in line


def test_the_held_out_part_does_not_depend_on_the_cache_and_overlaps_nothing(wide: Path) -> None:
    data = opened(wide, validation_fraction=0.25)
    assert data.validation is not None and (len(data.train), len(data.validation)) == (30, 10)
    train, held_out = ({int(row) for row in part.rows} for part in (data.train, data.validation))
    assert train | held_out == set(range(40)) and not train & held_out
    again = opened(wide, validation_fraction=0.25, cache="none", random_flip=False)
    assert again.validation is not None and np.array_equal(again.validation.rows, data.validation.rows)


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataset_config("folder", "anywhere")
    for cores, processes, prepared, decoded in ((2, 1, 2, 2), (192, 1, 8, 32), (192, 8, 8, 24), (4, 8, 1, 1)):
        monkeypatch.setattr("ddpm_train.data.workers.num_cores", lambda cores=cores: cores)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert num_workers(config) == prepared
        assert num_workers(dataset_config("folder", "anywhere", cache="none")) == decoded
    assert num_workers(dataset_config("folder", "anywhere", num_workers=50)) == 50


class PickledBatches(Batches):
    """Counts how often it is sent somewhere."""

    def __reduce__(self) -> tuple[object, ...]:
        with open(os.environ["PICKLED"], "a") as file:
            file.write(".")
        return Batches, (self.images, self.seed, self.random_crop, self.random_flip)


def test_workers_start_together_and_get_no_copy_of_the_pixels(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They get the list of images, which may be long, when all have been started, and it is pickled once."""
    monkeypatch.setenv("PICKLED", str(wide.parent / "pickled"))
    data, steps = opened(wide), [torch.arange(start, start + 8) for start in range(0, 64, 8)]
    data.train.load([0])  # maps the pixels into memory
    assert len(pickle.dumps(data.train)) < data.train.prepared.pixels().nbytes
    batches = PickledBatches(data.train, seed=0, random_crop=False, random_flip=False)
    expected = loaded(batches, steps)
    for one, other in zip(loaded(batches, steps, workers=2), expected, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert (wide.parent / "pickled").read_text() == "."


def test_a_run_without_a_cache_is_the_same_run(cli: Cli, wide: Path) -> None:
    run = ("dataset=imagefolder", f"dataset.path={wide}", "dataset.crop=random", "dataset.random_flip=true")
    run = (*run, "dataset.cache_dir=own")
    cli.train(*run, "name=cached", "tracker=none")
    cli.train(*run, "name=uncached", "tracker=none", "dataset.cache=none")
    cached, uncached = (
        [(line["step"], line.get("loss"), line.get("held_out_loss")) for line in cli.metrics(name)]
        for name in ("cached", "uncached")
    )
    assert cached == uncached and len([loss for _, loss, _ in cached if loss is not None]) == 6
    sizes = [path.stat().st_size for path in (cli.folder / "own").rglob("pixels.bin")]
    assert sorted(sizes) == [0, 40 * 8 * 24 * 3]


def test_sigterm_to_the_whole_group_while_workers_load(cli: Cli, wide: Path) -> None:
    dataset = ("dataset=imagefolder", f"dataset.path={wide}", "dataset.cache=none")
    # A process group, as a terminal or a scheduler gives it.
    process = cli.start_training(*dataset, "name=default", "train.max_steps=100000", "tracker=none", session=True)
    for line in process.stdout:
        if "  step " in line:
            break
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=30)  # until the last worker has gone
    assert process.returncode == 75, err
    assert "SIGTERM" in out and "Traceback" not in err and "worker" not in err
    assert list((cli.output() / "checkpoints").iterdir())


def test_a_hostile_folder_trains(cli: Cli, garments: list[Image.Image]) -> None:
    folder = cli.folder / "hostile"
    (folder / "deep/er").mkdir(parents=True)
    good = 0
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"):
        for size in ((28, 28), (1, 1), (3000, 9)):
            image = garments[good].resize(size)
            image = (
                Image.fromarray(np.asarray(image).astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
            )
            image.save(folder / f"{mode}_{size[0]}.{'tif' if mode in ('CMYK', 'I;16') else 'PNG'}")
            good += 1
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        garments[good].save(folder / f"deep/er/{orientation}.JPEG", exif=exif)
        good += 1
    whole = encoded(garments[0].resize((200, 200)), "JPEG")
    broken = {
        "no_bytes.png": b"",
        "text\nerror: forged\x1b[2J.png": b"this is not a picture\n",
        "truncated.jpg": whole[: len(whole) // 2],
        "deep/huge.png": png_bomb(13_000),
        "page.gif": b"<html>404 not found</html>",
    }
    for name, data in broken.items():
        (folder / name).write_bytes(data)
    (folder / "lost.webp").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "deep/pipe.bmp")
    (folder / "circle").symlink_to(folder)
    run = ("dataset=imagefolder", f"dataset.path={folder}", "dataset.crop=random", "dataset.validation_fraction=0")
    said = cli.train(*run, *ONE_STEP, "dataset.max_broken_fraction=0.2")
    assert "hostile: 32 images 8x8x3" in said and "7 images cannot be read and are skipped" in said
    for reason in (
        *("no_bytes.png: an empty file", r"text\nerror: forged\x1b[2J.png: not an image", "page.gif: a web page"),
        *("truncated.jpg: ", "deep/huge.png: 169 megapixels, more than dataset.max_pixels=89478485"),
        *("lost.webp: No such file", "deep/pipe.bmp: not a regular file"),
    ):
        assert reason in said
    assert "Traceback" not in said and "\nerror: " not in said
    # By default one image in a hundred may be broken.
    said = cli.train(*run, *ONE_STEP, expect=2)
    (line,) = said.splitlines()
    assert line.startswith(
        "error: dataset.max_broken_fraction=0.01: 7 of 39 images cannot be read (deep/huge.png: 169 megapixels"
    )
    assert line.endswith(" and 2 more); repair or remove them, or allow more")


def test_too_few_images_for_a_batch(cli: Cli, write_images: Callable[[Path, int], Path]) -> None:
    folder = write_images(cli.folder / "few", 15)
    said = cli.train("dataset=imagefolder", f"dataset.path={folder}", "dataset.validation_fraction=0", expect=2)
    assert said == "error: train.batch_size=16: more than the 15 training images; use at most 15\n"


def test_folders_without_a_usable_image(tmp_path: Path) -> None:
    def mistake(folder: Path, **values: object) -> str:
        with pytest.raises(Mistakes) as raised:
            opened(folder, **values)
        (line,) = raised.value.lines
        return line

    folder = tmp_path / "folder"
    folder.mkdir()
    nothing = f"dataset.path={folder}: no images in it (no file below it has the ending of an image)"
    nothing += "; give the folder that holds them"
    assert mistake(folder) == nothing
    (folder / "notes.txt").write_text("no pictures yet")
    assert mistake(folder) == nothing
    (folder / "bomb.png").write_bytes(png_bomb(13_000))
    assert mistake(folder, max_broken_fraction=1.0) == (
        f"dataset.path={folder}: none of its 1 images can be read "
        "(bomb.png: 169 megapixels, more than dataset.max_pixels=89478485)"
    )
    Image.new("L", (8, 8)).save(folder / "good.png")
    assert mistake(folder, max_broken_fraction=1.0, validation_fraction=0.9) == (
        "dataset.validation_fraction=0.9: leaves no image to train on"
    )
