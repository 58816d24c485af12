"""`dataset=hub` with the real `datasets` client against a server that speaks the Hub's protocol."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers.cli import Cli
from helpers.hub.server import Commit, LoopbackHub
from PIL import Image

FLOWERS = "huggan/flowers-102-categories"
ONE_STEP = ("train.max_steps=2", "evaluation=none")


@pytest.fixture
def hub(tmp_path: Path, garments: list[Image.Image]) -> Iterator[LoopbackHub]:
    """A parquet repository laid out like flowers102's: one `train` split, one `image` column; and a private copy."""
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    coloured = [image.convert("RGB").resize((40 + index % 9, 50)) for index, image in enumerate(garments[:48])]
    rows = Dataset.from_dict({"image": coloured}, features=Features({"image": ImageFeature()}))
    for name in (FLOWERS, "someone/secret"):
        folder = tmp_path / "hub/datasets" / name / "data"
        folder.mkdir(parents=True)
        rows.to_parquet(str(folder / "train-00000-of-00001.parquet"))
    with LoopbackHub(tmp_path / "hub", token="hf_right", private={"someone/secret"}) as server:
        yield server


def train(cli: Cli, hub: LoopbackHub, *overrides: str, token: str | None = None, expect: int = 0, **env: str) -> str:
    environment = {**hub.environment(cli.folder / "hf", token), **env}
    environment |= {key: cli.environment[key] for key in ("XDG_CACHE_HOME", "OMP_NUM_THREADS", "PYTHONPATH")}
    cli.environment = environment
    return cli.train(*ONE_STEP, *overrides, expect=expect)


@pytest.mark.slow
def test_the_flowers_preset(cli: Cli, hub: LoopbackHub) -> None:
    said = train(cli, hub, "dataset=flowers102")
    assert f"{FLOWERS}: 47 images 8x8x3, 1 held out" in said
    ports = {hub.url.removeprefix("http://"), hub.storage_url.removeprefix("http://")}
    assert {request.host for request in hub.requests} == ports
    assert not any(request.had_token for request in hub.requests)
    # The second run finds the prepared images; the third has no hub at all, only the cache.
    prepared = sorted((cli.folder / "cache/ddpm-train").glob("*"))
    train(cli, hub, "dataset=flowers102", "name=again")
    assert sorted((cli.folder / "cache/ddpm-train").glob("*")) == prepared
    offline = train(cli, hub, "dataset=flowers102", "name=offline", HF_HUB_OFFLINE="1")
    assert f"{FLOWERS}: 47 images" in offline
    assert cli.metrics("offline")[-1]["loss"] == cli.metrics("default")[-1]["loss"]
    # The commit that was used is in the record, whoever knew it.
    commit = Commit(hub.root / "datasets" / FLOWERS).id
    for name in ("default", "offline"):
        assert yaml.safe_load((cli.output(name) / "config.yaml").read_text())["dataset"]["revision"] == commit
        state = json.loads((cli.output(name) / "checkpoints/step_00000002/state.json").read_text())
        assert state["identity"]["dataset.revision"] == commit


def test_private_repositories_and_revisions(cli: Cli, hub: LoopbackHub) -> None:
    private = ("dataset=hub", "dataset.path=someone/secret")
    said = train(cli, hub, *private, expect=2)
    assert said == (
        "error: dataset.path=someone/secret: no such dataset on the Hub without a token; "
        "if it is private, set HF_TOKEN\n"
    )
    assert "401" in str([request.status for request in hub.requests])
    wrong = train(cli, hub, *private, token="hf_wrong", expect=2)
    assert wrong.startswith("error: dataset.path=someone/secret: ") and "HF_TOKEN" in wrong and "\n" not in wrong[:-1]
    commit = Commit(hub.root / "datasets/someone/secret").id
    said = train(cli, hub, *private, f"dataset.revision={commit}", token="hf_right")
    # What the command leaves open the images decide, and it is told in the same words as of a folder.
    assert "someone/secret: 44 images 8x8x3, 4 held out" in said and "  output     outputs/secret (new run)" in said
    assert [line for line in said.splitlines() if line.startswith("  chosen ")] == [
        "  chosen     name=secret  (after the images)",
        "  chosen     dataset.validation_fraction=0.0833  (held out: 2 %, but at least 10 images, and at most 10%)",
    ]
    storage = hub.storage_url.removeprefix("http://")
    assert any(request.had_token for request in hub.requests)
    assert not any(request.had_token for request in hub.requests if request.host == storage)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("dataset.path=owner/absent",), "dataset.path=owner/absent: no such dataset on the Hub without a token; "
         "if it is private, set HF_TOKEN"),
        (("dataset.revision=nope",), f"dataset.revision=nope: not in {FLOWERS}; give a branch, tag or commit of it"),
        (("dataset.revision=''",), f"dataset.revision=: empty; give a branch, tag or commit of {FLOWERS}, "
         "or leave it out"),
        (("dataset.split=test",), "dataset.split=test: Unknown split \"test\". Should be one of ['train']."),
        (("dataset.validation_split=val",), "dataset.validation_split=val: Unknown split \"val\". "
         "Should be one of ['train']."),
        (("dataset.config_name=big",), "dataset.config_name=big: BuilderConfig 'big' not found. "
         "Available: ['default']"),
        (("dataset.path='a b'",), "dataset.path=a b: neither a folder nor a repository name of the form owner/name"),
    ],
)  # fmt: skip
def test_mistakes(cli: Cli, hub: LoopbackHub, overrides: tuple[str, ...], message: str) -> None:
    said = train(cli, hub, "dataset=hub", f"dataset.path={FLOWERS}", *overrides, expect=2)
    assert said == f"error: {message}\n"


@pytest.mark.slow
def test_no_network_and_no_cache(cli: Cli, hub: LoopbackHub) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    said = train(cli, hub, "dataset=flowers102", expect=2, HF_ENDPOINT=nobody)
    assert said.startswith(f"error: dataset.path={FLOWERS}: the Hub cannot be reached (ConnectError), and there is no ")
    offline = train(cli, hub, "dataset=flowers102", expect=2, HF_HUB_OFFLINE="1")
    assert offline == (
        f"error: dataset.path={FLOWERS}: HF_HUB_OFFLINE is set, and there is no copy of it in the cache; "
        "check the network, HF_ENDPOINT and HF_HUB_OFFLINE\n"
    )
    # Once it is in the cache, a hub that is down does not matter.
    train(cli, hub, "dataset=flowers102", "name=filled")
    hub.fail("/api/", 503, times=100)
    assert "47 images" in train(cli, hub, "dataset=flowers102", "name=down")
