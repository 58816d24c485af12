import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.cli import ROOT, Cli
from helpers.deadly import Deadly
from helpers.images import dataset_config
from PIL import Image

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.data.cache import Prepared, prepare
from ddpm_train.data.decode import BrokenImage, Decoder
from ddpm_train.data.loader import open_data
from ddpm_train.data.sources import FolderSource

DECODER = Decoder((8, 8), 1, (255, 255, 255), "center", 10**6)

# Prepares a folder with two workers from the first moment on. Each worker tells its process number on stdout, and
# whether it has torch; each image adds a byte to a log.
TELLING = """
import os, multiprocessing, sys
from ddpm_train.data.sources import FolderSource

LOG = sys.argv[3]

class Telling(FolderSource):
    told = False
    def load(self, index, decoder):
        if multiprocessing.parent_process() and not self.told:
            self.told = True
            os.write(1, f"worker {os.getpid()} {'torch' in sys.modules}\\n".encode())
        with open(LOG, "ab") as log:
            log.write(b".")
        return super().load(index, decoder)
"""
PROGRAM = """
import resource, signal, sys
from pathlib import Path
from ddpm_train.data import cache, decode_all
from ddpm_train.data.decode import Decoder
from telling import Telling

FOLDER, CACHE, SIDE = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[4])

class Stopped(Exception):
    pass

def stop(*_):
    raise Stopped

signal.signal(signal.SIGTERM, stop)
decode_all._ALONE_SECONDS = 0
decoder = Decoder((SIDE, SIDE), 3, (255, 255, 255), "center", 10**8)
try:
    prepared = cache.prepare(Telling(FOLDER), decoder, CACHE, keep_pixels=True, num_workers=2, progress=False)
    print("prepared", len(prepared), prepared.content, flush=True)
except Stopped:
    sys.exit(75)
who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
print("peak", *(resource.getrusage(each).ru_maxrss for each in who), flush=True)
"""


@pytest.fixture
def start(tmp_path: Path, cli: Cli) -> Callable[..., "subprocess.Popen[str]"]:
    """Starts PROGRAM on a folder, in a process group of its own."""
    (tmp_path / "telling.py").write_text(TELLING)
    (tmp_path / "program.py").write_text(PROGRAM)

    def run(folder: Path, cache: str = "prepared", side: int = 8) -> "subprocess.Popen[str]":
        command = [sys.executable, str(tmp_path / "program.py"), str(folder), str(tmp_path / cache), "log", str(side)]
        return subprocess.Popen(
            command, cwd=tmp_path, env=cli.environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    return run


def copies(image: Image.Image, folder: Path, count: int) -> Path:
    """Many names for one file: each is decoded like a file of its own, and they are made in a moment."""
    folder.mkdir()
    image.save(folder / "00000.jpg", quality=95)
    for index in range(1, count):
        os.link(folder / "00000.jpg", folder / f"{index:05}.jpg")
    return folder


def prepare_here(folder: Path, cache: Path, decoder: Decoder = DECODER) -> Prepared:
    return prepare(FolderSource(folder), decoder, cache, keep_pixels=True, num_workers=0, progress=False)


def test_the_cache_holds_the_pixels(tmp_path: Path, write_images: Callable[[Path, int], Path]) -> None:
    folder = write_images(tmp_path / "images", 10)
    prepared = prepare_here(folder, tmp_path / "cache")
    pixels = prepared.pixels()
    assert isinstance(pixels, np.memmap) and pixels.dtype == np.uint8 and not pixels.flags.writeable
    expected = [DECODER(path) for path in sorted(folder.rglob("*.png"), key=lambda path: str(path.relative_to(folder)))]
    assert np.array_equal(pixels.reshape(10, 1, 8, 8), expected)
    assert prepared.broken == [] and prepared.usable.tolist() == list(range(10))


def test_the_second_time_nothing_is_decoded(tmp_path: Path, write_images: Callable[[Path, int], Path]) -> None:
    folder = write_images(tmp_path / "images", 10)
    first = prepare_here(folder, tmp_path / "cache")

    class Undecodable(FolderSource):
        def load(self, index: int, decoder: Decoder) -> np.ndarray:
            raise BrokenImage("looked at")

    def prepared(cache: Path) -> Prepared:
        return prepare(Undecodable(folder), DECODER, cache, keep_pixels=True, num_workers=0, progress=False)

    again = prepared(tmp_path / "cache")
    assert again.folder == first.folder and again.content == first.content and again.broken == []
    assert len(prepared(tmp_path / "elsewhere").broken) == 10


def test_another_transform_or_content_is_another_cache(
    tmp_path: Path, write_images: Callable[[Path, int], Path], garments: list[Image.Image]
) -> None:
    folder = write_images(tmp_path / "images", 4)
    decoders = [
        DECODER,
        Decoder((8, 16), 1, (255, 255, 255), "center", 10**6),
        Decoder((8, 8), 3, (255, 255, 255), "center", 10**6),
        Decoder((8, 8), 1, (0, 0, 0), "center", 10**6),
        Decoder((8, 8), 1, (255, 255, 255), "random", 10**6),
    ]
    found = [prepare_here(folder, tmp_path / "cache", decoder) for decoder in decoders]
    garments[99].save(folder / "001.png")
    found.append(prepare_here(folder, tmp_path / "cache"))
    (folder / "003.png").rename(folder / "002.png")
    found.append(prepare_here(folder, tmp_path / "cache"))
    assert len({prepared.folder for prepared in found}) == len(found)
    assert found[0].content != found[5].content == found[6].content


@pytest.mark.parametrize("damage", ["meta.json", "sizes.npy", "pixels.bin", "half of the pixels"])
def test_a_damaged_cache_is_made_again(damage: str, tmp_path: Path, write_images: Callable[[Path, int], Path]) -> None:
    folder = write_images(tmp_path / "images", 4)
    first = prepare_here(folder, tmp_path / "cache")
    if damage == "half of the pixels":
        os.truncate(first.folder / "pixels.bin", 128)
    else:
        (first.folder / damage).unlink()
    again = prepare_here(folder, tmp_path / "cache")
    assert again.content == first.content and again.pixels().size == 4 * 64


def test_two_processes_share_the_work_of_one(
    tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"], garments: list[Image.Image]
) -> None:
    folder = copies(garments[0].convert("RGB"), tmp_path / "images", 5000)
    processes = [start(folder) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    lines = [line for text in said for line in text.splitlines()]
    (prepared,) = {line for line in lines if line.startswith("prepared 5000 ")}
    workers = [line.split()[1:] for line in lines if line.startswith("worker")]
    # All workers of one process did it, and they had not to wait for torch.
    assert len({pid for pid, _ in workers}) == 2 and {torch for _, torch in workers} == {"False"}
    assert (tmp_path / "log").stat().st_size == 5000
    colour = Decoder((8, 8), 3, (255, 255, 255), "center", 10**8)
    assert prepared.split()[-1] == prepare_here(folder, tmp_path / "here", colour).content


def test_a_process_killed_in_the_middle_leaves_nothing_wrong(
    tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"], garments: list[Image.Image]
) -> None:
    folder = copies(garments[0].convert("RGB").resize((200, 200)), tmp_path / "images", 3000)
    killed = start(folder)
    assert killed.stdout is not None
    assert killed.stdout.readline().startswith("worker")
    killed.kill()
    # The end of the pipe comes when the last of its workers has gone.
    said, _ = killed.communicate(timeout=30)
    assert killed.returncode == -signal.SIGKILL and "prepared" not in said
    assert (tmp_path / "log").stat().st_size < 3000
    said, _ = start(folder).communicate(timeout=60)
    colour = Decoder((8, 8), 3, (255, 255, 255), "center", 10**8)
    reference = prepare_here(folder, tmp_path / "here", colour)
    assert f"prepared 3000 {reference.content}" in said
    left = sorted(path.suffix for path in (tmp_path / "prepared").iterdir())
    assert left == ["", ".lock"]


@pytest.mark.parametrize("to_the_group", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_preparing(
    number: signal.Signals,
    to_the_group: bool,
    tmp_path: Path,
    start: Callable[..., "subprocess.Popen[str]"],
    garments: list[Image.Image],
) -> None:
    folder = copies(garments[0].convert("RGB").resize((800, 800)), tmp_path / "images", 6000)  # a minute of decoding
    process = start(folder)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("worker")
    if to_the_group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    said, _ = process.communicate(timeout=10)  # until the last worker has gone
    # Python itself dies of the SIGINT that raised KeyboardInterrupt.
    assert process.returncode == (75 if number == signal.SIGTERM else -number) and "prepared" not in said
    assert [path.suffix for path in (tmp_path / "prepared").iterdir()] == [".lock"]


def test_sigterm_while_the_command_line_prepares(cli: Cli, garments: list[Image.Image], tmp_path: Path) -> None:
    folder = copies(garments[0].convert("RGB").resize((800, 800)), tmp_path / "images", 6000)
    program = (
        "import os, runpy, sys\n"
        "from ddpm_train.data import decode_all\n"
        "before = decode_all._decode_beside\n"
        "def telling(*arguments):\n"
        "    os.write(1, b'workers\\n')\n"  # not through what the program says
        "    return before(*arguments)\n"
        "if __name__ == '__main__':\n"
        "    decode_all._decode_beside = telling\n"
        f"    sys.argv[0] = {str(ROOT / 'train.py')!r}\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    (tmp_path / "slowly.py").write_text(program)
    process = cli.fork("slowly.py", "dataset=imagefolder", f"dataset.path={folder}", "dataset.cache_dir=own")
    assert process.stdout.readline() == "workers\n"
    process.terminate()
    out, err = process.communicate(timeout=20)
    assert process.returncode == 75, err
    assert "SIGTERM" in out and len(out.splitlines()) == 1 and err == ""
    assert [path.suffix for path in (tmp_path / "own").iterdir() if path.name != "contents"] == [".lock"]


def test_memory_does_not_grow_with_the_images(
    tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"], garments: list[Image.Image]
) -> None:
    image = garments[0].convert("RGB")
    peaks = []
    for count in (500, 6000):
        process = start(copies(image, tmp_path / f"{count}", count), cache=f"prepared{count}", side=64)
        said, _ = process.communicate(timeout=100)
        assert f"prepared {count} " in said
        peaks.append(np.array(said.splitlines()[-1].split()[1:], dtype=int) / 1024)
    # 6000 images are 70 MB of pixels.
    assert (peaks[1] - peaks[0]).max() < 20


def test_a_disk_that_takes_no_more(tmp_path: Path, write_images: Callable[[Path, int], Path]) -> None:
    folder = write_images(tmp_path / "images", 100)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))  # as near to a full disk as a test gets without root
    try:
        with pytest.raises(Mistakes) as raised:
            prepare_here(folder, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.lines == (f"dataset.cache_dir={tmp_path / 'cache'}: File too large; choose another folder",)
    # What there is no room for is not left lying about.
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    assert len(prepare_here(folder, tmp_path / "cache")) == 100


def test_a_cache_folder_that_cannot_be_had(tmp_path: Path, write_images: Callable[[Path, int], Path]) -> None:
    folder = write_images(tmp_path / "images", 4)
    (tmp_path / "file").touch()
    with pytest.raises(Mistakes) as raised:
        open_data(dataset_config("folder", folder, cache_dir=str(tmp_path / "file/cache")), progress=False)
    assert raised.value.lines == (
        f"dataset.cache_dir={tmp_path / 'file/cache'}: Not a directory; choose another folder",
    )


def test_a_disk_that_maps_no_files(tmp_path: Path, write_images: Callable[[Path, int], Path]) -> None:
    """As some network file systems do not; nor does this file of the kernel, of 64 images' size."""
    folder, unmapped = write_images(tmp_path / "images", 64), Path("/sys/kernel/uevent_seqnum")
    pixels = prepare_here(folder, tmp_path / "cache").folder / "pixels.bin"
    if not unmapped.exists() or unmapped.stat().st_size != pixels.stat().st_size:
        pytest.skip(f"{unmapped} is not as large as the pixels")
    pixels.unlink()
    pixels.symlink_to(unmapped)
    with pytest.raises(Mistakes) as raised:
        prepare_here(folder, tmp_path / "cache")
    assert raised.value.lines == (f"dataset.cache_dir={tmp_path / 'cache'}: No such device; choose another folder",)


def test_a_worker_that_is_killed(tmp_path: Path, write_images: Callable[[Path, int], Path]) -> None:
    source = Deadly(write_images(tmp_path / "images", 4))
    with pytest.raises(Mistakes, match=r"^dataset.num_workers=2: a worker was killed .*; use fewer$"):
        prepare(source, DECODER, tmp_path / "cache", keep_pixels=True, num_workers=2, progress=False)
