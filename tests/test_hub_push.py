"""A push makes a folder the content of a repository, whatever the network and the Hub do meanwhile."""

import os
import socket
import sys
import time
from pathlib import Path

import pytest
from helpers.hub.client import TOKEN, HubCli, outcome, start_push
from helpers.hub.http import Kind
from helpers.hub.server import LoopbackHub
from huggingface_hub import HfApi, close_session

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.hub.access import limit_waiting, reason

# Larger than what the Hub takes as a regular file, and than a part of an upload.
LARGE_BYTES = 11 * 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Regular files, an LFS file in parts, a small one in a piece, two links to one file."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "unet").mkdir()
    (folder / "README.md").write_text("---\ntags: [ddpm]\n---\n# A card\n")
    (folder / "unet/large.safetensors").write_bytes(os.urandom(LARGE_BYTES))
    (folder / "small.safetensors").write_bytes(os.urandom(3000))
    (folder / "again.safetensors").hardlink_to(folder / "small.safetensors")
    (folder / "end.json").write_text("{}")
    (folder / "notes.txt").write_text("text\n" * 100)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".gitattributes")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# What happens to which requests; how often; with which headers of the answer.
FAULTS: dict[str, tuple[str, Kind, int, dict[str, str]]] = {
    "head 500": ("GET /api/models", 500, 2, {}),
    "head 429": ("GET /api/models", 429, 1, {"Retry-After": "1"}),
    "head reset": ("GET /api/models", "reset", 2, {}),
    "head cut": ("GET /api/models", "cut", 1, {}),
    "head stalls": ("GET /api/models", "stall", 1, {}),
    "create 503": ("POST /api/repos/create", 503, 2, {}),
    "create 500": ("POST /api/repos/create", 500, 1, {}),
    "create 409": ("POST /api/repos/create", 409, 1, {}),
    "create 429": ("POST /api/repos/create", 429, 1, {"Retry-After": "2"}),
    "create lost": ("POST /api/repos/create", "lost", 1, {}),
    "create stalls": ("POST /api/repos/create", "stall", 1, {}),
    "card 503": ("POST /api/validate-yaml", 503, 1, {}),
    "card 500": ("POST /api/validate-yaml", 500, 2, {}),
    "preupload 503": ("POST /preupload/", 503, 2, {}),
    "preupload 429": ("POST /preupload/", 429, 1, {"Retry-After": "1"}),
    "preupload reset": ("POST /preupload/", "reset", 1, {}),
    "batch 500": ("POST /objects/batch", 500, 2, {}),
    "batch reset": ("POST /objects/batch", "reset", 1, {}),
    "put 503": ("PUT /upload/", 503, 2, {}),
    "put reset": ("PUT /upload/", "reset", 3, {}),
    "put lost": ("PUT /upload/", "lost", 1, {}),
    "put stalls": ("PUT /upload/", "stall", 2, {}),
    "put corrupt": ("PUT /upload/", "corrupt", 2, {}),
    "parts complete 500": ("POST /complete/", 500, 1, {}),
    "verify 503": ("POST /info/lfs/verify", 503, 2, {}),
    "commit 500": ("POST /commit/", 500, 2, {}),
    "commit 503": ("POST /commit/", 503, 1, {}),
    "commit 409": ("POST /commit/", 409, 1, {}),
    "commit 412": ("POST /commit/", 412, 1, {}),
    "commit 429": ("POST /commit/", 429, 1, {"Retry-After": "2"}),
    "commit reset": ("POST /commit/", "reset", 1, {}),
    "commit lost": ("POST /commit/", "lost", 1, {}),
    "commit cut": ("POST /commit/", "cut", 1, {}),
    "commit stalls": ("POST /commit/", "stall", 1, {}),
    "commit overtaken": ("POST /commit/", "overtaken", 1, {}),
}


@pytest.mark.slow
def test_faults_are_outlived(folder: Path, tmp_path: Path) -> None:
    """Each in a process and at a hub of its own, a few side by side: byte for byte, and in exactly one commit."""
    cases = list(FAULTS.items())
    for batch in range(0, len(cases), 18):
        hubs, processes = {}, {}
        for name, (wanted, kind, times, headers) in cases[batch : batch + 18]:
            hubs[name] = LoopbackHub(tmp_path / name, token=TOKEN).__enter__()
            hubs[name].fault(wanted, kind, times, **headers)
            processes[name] = start_push(hubs[name], folder, tmp_path / f"home {name}")
        for name, process in processes.items():
            hub = hubs[name]
            result = outcome(process)
            assert set(result) == {"commit"}, (name, result)
            assert [fault.happened for fault in hub.faults] == [FAULTS[name][2]], name
            head = hub.head("tester/x")
            titles = [commit.title for commit in head.history()]
            theirs = ["Somebody else's"] if name == "commit overtaken" else []
            assert titles == ["Step 7", *theirs, "Add files"] and head.id == result["commit"], (name, titles)
            pushed = content(head.folder)
            assert pushed.pop("theirs.txt", None) == (b"somebody else's" if theirs else None)
            assert pushed == content(folder), name
            hub.check_hosts()
            assert not Path(f"{tmp_path / f'home {name}'}-strays.txt").exists()
            hub.__exit__()


@pytest.mark.slow
def test_stalls_of_half_a_minute_are_waited_out(folder: Path, tmp_path: Path) -> None:
    """With the default patience of a run, at each step of a push, side by side: nothing is sent again."""
    hubs, processes = {}, {}
    for wanted in ("GET /api/models", "POST /preupload/", "PUT /upload/", "POST /commit/"):
        name = wanted.replace("/", "")
        hubs[name] = LoopbackHub(tmp_path / name, token=TOKEN).__enter__()
        hubs[name].fault(wanted, "slow", 1)
        processes[name] = start_push(hubs[name], folder, tmp_path / f"home {name}", stall_seconds=60.0)
    for name, process in processes.items():
        hub = hubs[name]
        assert set(outcome(process)) == {"commit"}
        assert [fault.happened for fault in hub.faults] == [1]
        assert [commit.title for commit in hub.head("tester/x").history()] == ["Step 7", "Add files"]
        assert content(hub.head("tester/x").folder) == content(folder)
        assert sum("/commit/" in request.path for request in hub.requests) == 1
        hub.__exit__()


@pytest.mark.slow
def test_a_push_that_changes_nothing_is_no_commit_and_what_is_stale_goes(folder: Path, tmp_path: Path) -> None:
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub:
        first = outcome(start_push(hub, folder, tmp_path / "home"))["commit"]
        assert outcome(start_push(hub, folder, tmp_path / "home"))["commit"] == first
        # Of the folders that are a push's alone, what it does not bring is removed; all else is left.
        hub.commit_files("models", "tester/x", "main", {"unet/old.bin": b"old", "theirs.txt": b"theirs"})
        result = outcome(start_push(hub, folder, tmp_path / "home", revision="main"))
        assert content(hub.head("tester/x").folder) == content(folder) | {"theirs.txt": b"theirs"}
        assert hub.head("tester/x").id == result["commit"]
        # The same large object is sent once, however often it is pushed and linked.
        uploads = [request.path for request in hub.requests if request.method == "PUT"]
        assert len(uploads) == len(set(uploads)) == 4
        outcome(start_push(hub, folder, tmp_path / "home", revision="other"))
        assert {"main", "other"} == set(hub.branches("models", "tester/x"))


FINAL: dict[str, tuple[str, dict[str, str]]] = {
    "token": ("the Hub answers 401: Invalid ", {"HF_TOKEN": "hf_wrong"}),
    "offline": ("HF_HUB_OFFLINE is set", {"HF_HUB_OFFLINE": "1"}),
    "role": ("the Hub answers 403: Forbidden: you don't have the rights to write there", {}),
    "down": ("the Hub cannot be reached (ConnectError)", {}),
    "busy": ("the Hub answers 503: Injected failure", {}),
    "silent": ("the Hub does not answer", {}),
}


@pytest.mark.slow
def test_what_does_not_end_is_given_up_and_told(folder: Path, tmp_path: Path) -> None:
    """What another try cannot help at once; the rest after the time given."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    started = time.monotonic()
    hubs, processes = {}, {}
    for name, (_, environment) in FINAL.items():
        hubs[name] = hub = LoopbackHub(tmp_path / name, token=TOKEN).__enter__()
        hub.role = "read" if name == "role" else "write"
        if name in ("busy", "silent"):
            hub.fault("POST /commit/" if name == "busy" else "", 503 if name == "busy" else "stall", 1000)
        environment |= {"HF_ENDPOINT": nobody} if name == "down" else {}
        patience = {"retry_seconds": 2.0, "stall_seconds": 1.0, "environment": environment}
        processes[name] = start_push(hub, folder, tmp_path / f"home {name}", **patience)
    for name, process in processes.items():
        result = outcome(process)
        assert set(result) == {"error"} and result["error"].startswith(FINAL[name][0]), (name, result)
        hubs[name].__exit__()
    assert time.monotonic() - started < 45


@pytest.mark.slow
@pytest.mark.parametrize("kind", [None, "lost"])
def test_a_round_trip_with_xet(folder: Path, tmp_path: Path, kind: Kind | None) -> None:
    """What users get who set nothing: both ways through the client's own library for Xet."""
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub:
        if kind:
            hub.fault("POST /commit/", kind)
        result = outcome(start_push(hub, folder, tmp_path / "home", xet=True))
        assert set(result) == {"commit"}, result
        assert [commit.title for commit in hub.head("tester/x").history()] == ["Step 7", "Add files"]
        assert any("/v1/shards" in request.path for request in hub.requests)
        assert not any(request.method == "PUT" for request in hub.requests)
        cli = HubCli(tmp_path, hub)
        del cli.environment["HF_HUB_DISABLE_XET"]
        download = "from huggingface_hub import snapshot_download\nprint(snapshot_download('tester/x'))"
        found = cli.run([sys.executable, "-c", download])
        assert content(Path(found.splitlines()[0])) == content(folder)
        assert any("/v1/reconstructions/" in request.path for request in hub.requests)
        cli.check_hosts()


@pytest.mark.slow
def test_it_ends_with_the_process_that_started_it(folder: Path, tmp_path: Path) -> None:
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub:
        stall = hub.fault("PUT", "stall", 1000)
        process = start_push(hub, folder, tmp_path / "home", stall_seconds=60.0)
        deadline = time.monotonic() + 30
        while not stall.happened:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert process.stdin is not None
        process.stdin.close()  # as the system does for one that was killed
        assert process.wait(timeout=10) == 1
        assert [commit.title for commit in hub.head("tester/x").history()] == ["Add files"]


def test_settings_that_no_request_can_be_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied from a web page, or as a desktop sets them: told as what they are, not as a Hub that is out of reach."""
    with pytest.raises(UnicodeEncodeError) as raised:
        HfApi(endpoint="http://127.0.0.1:9", token="hf_\u2026").whoami()
    assert reason(raised.value).startswith("the token (HF_TOKEN, or what `hf auth login` has stored) holds characters")
    for proxy, said in {"socks://127.0.0.1:9": "Unknown scheme", "socks5://127.0.0.1:9": "Using SOCKS proxy"}.items():
        monkeypatch.setenv("ALL_PROXY", proxy)
        close_session()  # the next one reads the variables
        with pytest.raises(Mistakes, match=rf"^ALL_PROXY, HTTPS_PROXY or HTTP_PROXY: {said}.*; give http://HOST:PORT"):
            limit_waiting(1)
