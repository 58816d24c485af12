"""The page that a run leaves: what it says, that it is whole in itself, and how it looks in a browser."""

import html
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.cli import Cli, Once
from helpers.page import Page
from hydra.core.override_parser.overrides_parser import OverridesParser

from ddpm_train import report
from ddpm_train.report import commands, write_report
from ddpm_train.report.advice import verdict
from ddpm_train.report.charts import loss_by_timestep, over_steps, shorten
from ddpm_train.report.evidence import Series, read_folder
from ddpm_train.report.findings import share_at_twice_the_steps, trend
from ddpm_train.report.formatting import count, digits, duration, measured, number, tick
from ddpm_train.report.plots import HEIGHT, WIDTH, Chart, new_axes
from ddpm_train.runs.clock import Forecast

NOISE = "How good is it? Noise: it was trained too briefly. "
HOSTILE = '<script>alert(1)</script> & "quoted" \'ü→'


def charts(path: Path) -> dict[str, str]:
    """The source of each drawing on a page, by its title."""
    drawings = re.findall(r"<svg class=.*?</svg>", path.read_text(encoding="utf-8"), re.DOTALL)
    return {re.findall(r"<title[^>]*>(.*?)</title>", drawing)[0]: drawing for drawing in drawings}


def points(path: str) -> np.ndarray:
    """The vertices of an SVG path of straight lines, [N, 2]; y grows downwards."""
    return np.array(re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path), dtype=float)


def marked(drawing: str) -> list[tuple[str, float, float]]:
    """What each dot says when one points at it, and where it is."""
    found = re.findall(r'<g><title>([^<]*)</title>.*?<use [^>]*x="([\d.]+)" y="([\d.]+)"', drawing)
    return [(title, float(x), float(y)) for title, x, y in found]


@pytest.fixture(scope="module")
def told(once: Once, write_images: Callable[[Path, int], Path]) -> tuple[Cli, str]:
    """A run that evaluates four times, and what it printed."""

    def train(cli: Cli) -> str:
        write_images(cli.folder / "garments", 60)
        return cli.train(
            *("dataset=imagefolder", "dataset.path=garments", "dataset.channels=1", "dataset.validation_fraction=0.25"),
            *("evaluation=full", "evaluation.every_steps=2", "evaluation.num_samples=10"),
            *("train.max_steps=8", "checkpoint.every_steps=4", "optimizer.lr=3e-3", "name=default"),
        )

    return once("told", train)


@pytest.fixture
def run(told: tuple[Cli, str], tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(told[0].output(), tmp_path / "run"))


@pytest.fixture(scope="module")
def scored(once: Once, told: tuple[Cli, str]) -> tuple[Path, str]:
    """Another copy, after ddpm-evaluate; and what that printed."""

    def evaluate(cli: Cli) -> str:
        shutil.copytree(told[0].folder, cli.folder, dirs_exist_ok=True)
        cli.output().rename(cli.folder / "scored")
        return cli.evaluate(
            *("pipeline=scored", "num_images=20", "num_inference_steps=3", "batch_size=20", "bound_timesteps=4"),
            *("metrics=[kid,fid,copy_rate,bits_per_dim,held_out_loss]", "cost.samplers=[ddim]", "cost.steps=[2,3]"),
        )

    cli, said = once("scored", evaluate)
    return cli.folder / "scored", said


@pytest.fixture
def evaluated(scored: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of that, to be changed."""
    return Path(shutil.copytree(scored[0], tmp_path / "evaluated"))


def test_a_run_leaves_a_report_that_says_how_it_went(told: tuple[Cli, str]) -> None:
    cli, said = told
    path = cli.output() / "report.html"
    assert "report     outputs/default/report.html" in said
    page, records = Page(path), cli.metrics()
    assert f"{NOISE}KID " in page.text and " after 8 steps" in page.text
    assert "What to do now? Go on It was trained too briefly to judge it. How good is it?" in page.text
    assert "It has seen 128 images: each of the 45 about 2.8 times." in page.text
    assert "the loss on 15 images that training never sees" in page.text and "EfficientNet-Lite0 features" in page.text
    assert "Does it copy its training images? Not measured" in page.text
    assert "ddpm-evaluate pipeline=outputs/default" in page.text
    assert (
        "garments · 8 × 8 × 1 · 45.0 k parameters" in page.text
        and "cpu, 1 thread" in page.text
        and "torch 2" in page.text
    )
    losses = [number(record["held_out_loss"]) for record in records if "held_out_loss" in record]
    assert f"that training never sees is {losses[-1]}; at step 2 it was {losses[0]}." in page.text
    assert all(loss in page.text for loss in losses)
    steps = [attributes["id"] for attributes in page.all("input")]
    assert steps == ["frame-2", "frame-4", "frame-6", "frame-8"]
    assert "block_out_channels:" in page.text
    assert path.stat().st_size < 1e6


def test_without_scores_the_loss_comes_first(run: Path) -> None:
    shutil.rmtree(run / "evaluation")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    page = Page(write_report(run))
    assert f"{NOISE}Held-out loss {number(records[-1]['held_out_loss'])} after 8 steps" in page.text
    assert "how the images look has not been scored" in page.text


def test_for_people_who_cannot_see_it_and_for_phones(told: tuple[Cli, str]) -> None:
    page = Page(told[0].output() / "report.html")
    assert all(attributes["alt"] for attributes in page.all("img"))
    assert {"lang": "en"} in page.all("html")
    assert any(attributes.get("name") == "viewport" for attributes in page.all("meta"))
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    charts = [attributes for attributes in page.all("svg") if attributes.get("role") == "img"]
    assert len(charts) >= 5
    assert all(set((chart["aria-labelledby"] or "").split()) <= set(page.ids) for chart in charts)


def test_charts_show_what_was_measured(scored: tuple[Path, str]) -> None:
    """Dots lie where their values are on axes that are labelled; bands are as wide as the intervals."""
    run, _ = scored
    evidence, drawn = read_folder(run), charts(run / "report.html")
    assert {"Training and held-out loss", "Held-out loss alone", "Learning rate", "Images per second"} <= drawn.keys()
    series = evidence.held_out_loss
    for title in ("Training and held-out loss", "Held-out loss alone"):
        dots = marked(drawn[title])
        assert [said for said, _, _ in dots] == [
            f"step {count(step)}: held-out loss {number(value)}"
            for step, value in zip(series.steps, series.values, strict=True)
        ]
        x, y = np.array([place for _, *place in dots]).T
        assert np.corrcoef(x, series.steps)[0, 1] == pytest.approx(1)
        assert np.corrcoef(-y, np.log(series.values))[0, 1] == pytest.approx(1)
        assert ">step<" in drawn[title] and "loss (logarithmic)<" in drawn[title]
    for label in ("every step", "moving mean", "held-out"):
        assert f">{label}<" in drawn["Training and held-out loss"]

    drawing, scores = drawn["KID over the run"], [asdict(found.scores[0]) for found in evidence.evaluations]
    dots = marked(drawing)
    assert [said for said, _, _ in dots] == [
        f"step {count(score['depends_on']['step'])}: {measured(score['value'], score['interval'])}" for score in scores
    ]
    ends = np.array([score["interval"] for score in scores])
    scale = np.log if ends.min() > 0 else np.asarray
    slope, origin = np.polyfit(scale([score["value"] for score in scores]), [y for *_, y in dots], 1)
    (band,) = re.findall(r'<path [^>]*d="([^"]+)"[^>]*opacity', drawing)
    edges = np.unique(points(band)[:, 1].round(2) % HEIGHT)
    assert edges == pytest.approx(np.unique((slope * scale(ends) + origin).round(2)), abs=0.1)
    assert ">value, with its 95 % interval<" in drawing

    cost = charts(run / "report.html")["KID against the time for an image"]
    # In the order of their measured seconds.
    assert {said.partition(":")[0] for said, _, _ in marked(cost)} == {"ddim, 2 steps", "ddim, 3 steps"}
    assert ">2</text>" in cost and ">3</text>" in cost and ">seconds for an image (logarithmic)<" in cost


def test_charts_follow_the_page(run: Path) -> None:
    """No size and no colour of their own; the same bytes every time."""
    first = write_report(run).read_bytes()
    for drawing in charts(run / "report.html").values():
        assert f'viewBox="0 0 {WIDTH} {HEIGHT}"' in drawing
        assert " width=" not in drawing[: drawing.index(">")] and "style=" not in drawing[: drawing.index(">")]
        colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", drawing))
        assert colours <= {
            "none",
            *(
                f"var(--{name})"
                for name in ("ink", "quiet", "hair", "paper", *(f"curve-{place}" for place in range(4)))
            ),
        }
        assert set(re.findall(r"font-family: ([^;\"]+)", drawing)) == {"var(--font)"}
    assert write_report(run).read_bytes() == first


def test_a_bin_without_images_is_a_gap() -> None:
    chart = loss_by_timestep({"step 2": {"edges": [0, 10, 20, 30], "loss": [0.4, None, 0.1]}})
    assert chart.description == "At step 2 the loss is largest for t from 0 to 10: 0.400."
    (path,) = re.findall(r'<path [^>]*d="([^"]+)"[^>]*stroke: var\(--curve-0\); stroke-width: 1.5', chart.svg("one"))[
        :1
    ]
    levels = [np.unique(points(f"M{part}")[:, 1]) for part in path.split("M")[1:]]
    assert len(levels) == 2 and all(len(level) == 1 for level in levels) and levels[0] < levels[1]


def test_a_report_needs_neither_torch_nor_matplotlib_before_it_draws(run: Path) -> None:
    script = (
        "import sys, pathlib, ddpm_train.report as report\n"
        "assert 'matplotlib' not in sys.modules\n"
        "report.write_report(pathlib.Path(sys.argv[1]))\n"
        "assert not {'torch', 'diffusers', 'datasets', 'matplotlib.pyplot'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script, run], check=True)


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb", as WCAG 2 defines it."""
    channels = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("theme", [0, 1, 2], ids=["light", "dark", "print"])
def test_text_and_curves_stand_out(theme: int) -> None:
    style = (Path(report.__file__).parent / "style.css").read_text()
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", style.split(":root")[theme + 1].partition("}")[0]))
    for name, paper, least in [
        *((ink, paper, 4.5) for ink in ("ink", "quiet") for paper in ("paper", "raised")),
        ("caution", "caution-paper", 4.5),
        *((f"curve-{place}", "paper", 4.5) for place in range(4)),
    ]:
        darker, lighter = sorted((luminance(colours[name]), luminance(colours[paper])))
        assert (lighter + 0.05) / (darker + 0.05) >= least, (name, paper)


def test_whatever_a_name_holds_stays_text(run: Path) -> None:
    odd = run.rename(run.parent / HOSTILE.replace("/", "|"))
    config = yaml.safe_load((odd / "config.yaml").read_text())
    config |= {"name": HOSTILE, "dataset": {**config["dataset"], "path": HOSTILE}}
    config["checkpoint"]["mirror"] = "s3://KEY:a/Secret+of@bucket/runs"  # of before it was refused
    (odd / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    path = write_report(odd)
    page = Page(path)
    assert page.text.count("<script>alert(1)") >= 3
    assert "<script" not in path.read_text(encoding="utf-8")
    assert "Secret" not in path.read_text(encoding="utf-8") and "s3://…@bucket/runs" in page.text
    assert f"<title>{html.escape(HOSTILE, quote=False)}"[:40] in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", ["outputs/cats", "my cats/a,b=c", "{x}[1]$(y)", "it's", 'a"b', "c:\\new'", "ünï"])
def test_commands_are_quoted_for_the_shell_and_for_hydra(path: str, tmp_path: Path) -> None:
    evidence = read_folder(tmp_path / path)
    program, override, *rest = shlex.split(commands.sample(evidence, "ddim", 20))
    assert program == "ddpm-sample" and rest == ["sampler=ddim", "num_inference_steps=20"]
    (parsed,) = OverridesParser.create().parse_overrides([override])
    assert parsed.key_or_group == "pipeline" and str(parsed.value()) == str(tmp_path / path)


def test_what_is_damaged_is_left_out_and_named(run: Path) -> None:
    whole = write_report(run).read_text(encoding="utf-8")
    assert "it is damaged" not in whole
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "loss": 0.1')
    (run / "samples/step_00000004.png").write_bytes((run / "samples/step_00000004.png").read_bytes()[:200])
    (run / "pipeline/training.json").write_text('{"step": ')
    (run / "config.yaml").write_text("name: [unclosed")
    (run / "pipeline/unet/diffusion_pytorch_model.safetensors").write_bytes(b"torn")
    page = Page(write_report(run))
    for name in ("metrics.jsonl: 1 line", "step_00000004.png", "training.json", "config.yaml", "safetensors"):
        assert name in page.text
    assert "after 8 steps" in page.text and len(page.all("input")) == 3


@pytest.mark.parametrize(
    "missing",
    [
        ("metrics.jsonl",),
        ("config.yaml",),
        ("samples",),
        ("pipeline", "checkpoints"),
        ("config.yaml", "metrics.jsonl", "samples", "pipeline", "checkpoints", "evaluation"),
    ],
    ids=" ".join,
)
def test_missing_parts_are_left_out(run: Path, missing: tuple[str, ...]) -> None:
    for name in missing:
        path = run / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    page = Page(write_report(run))
    assert "it is damaged" not in page.text
    assert ("Training and held-out loss" in page.text) == ("metrics.jsonl" not in missing)
    assert ("What it makes" in page.text) == ("samples" not in missing)


def test_what_an_evaluation_found_stands_on_the_page(scored: tuple[Path, str]) -> None:
    run, said = scored
    assert f"report     {run.name}/report.html" in said
    page, found = Page(run / "report.html"), json.loads((run / "evaluation/scores.json").read_text())
    for score in found["scores"]:
        assert (score["name"] in page.text) == (score["metric"] != "copy_rate")  # which has a block of its own
        if score["metric"] not in ("kid", "copy_rate"):
            assert digits(score["value"], score["interval"])[0] in page.text
    kid = next(score for score in found["scores"] if score["depends_on"]["sampler"]["name"] == "dpm_solver")
    value, ends = digits(kid["value"], kid["interval"])
    assert f"{NOISE}KID {value} after 8 steps Lower is better, 0 is perfect; 95 % interval {ends}" in page.text
    yardstick = found["yardstick"]
    real = measured(yardstick["value"], yardstick["interval"])
    assert f"The {yardstick['num_images']} real images that training never sees score {real}." in page.text
    assert f"the KID of the {yardstick['num_images']} real held-out images is" in said
    (bits,) = (score for score in found["scores"] if score["metric"] == "bits_per_dim")
    assert f"at most {measured(bits['value'], bits['interval'])} bits per dimension" in page.text
    assert "Caution: " in page.text
    assert (page.all("img")[-1]["alt"] or "").startswith("Rows of images")
    rows = [(row["num_inference_steps"], duration(row["seconds_per_image"])) for row in found["cost"]["rows"]]
    assert all(re.search(rf"ddim {steps} .{{0,40}} {cost}", page.text) for steps, cost in rows)
    best = found["cost"]["fewest_within_5_percent"]["num_inference_steps"]
    assert f"ddpm-sample pipeline=scored sampler=ddim num_inference_steps={best}" in page.text
    for title in ("Held-out loss by timestep", "KID over the run", "Where the bits go", "KID against the time"):
        assert title in page.text


LEFT_OUT = "3 of 18 held-out images are training images as well and were left out; the held-out loss still counts them"


@pytest.mark.parametrize(
    ("interval", "caution", "answer"),
    [
        ([0.001, 0.03], None, "No sign of it 0.4 % of 20"),
        ([0.001, 0.03], LEFT_OUT, "No sign of it 0.4 % of 20"),
        ([0.001, 0.03], "15 held-out images do not show", "Too uncertain to tell 0.4 % of 20"),
        ([0.04, 0.06], "15 held-out images do not show", "Yes, some of them"),
    ],
)
def test_copies_are_told(evaluated: Path, interval: list[float], caution: str | None, answer: str) -> None:
    path = evaluated / "evaluation/scores.json"
    stored = json.loads(path.read_text())
    for score in stored["scores"]:
        score["warning"] = caution
        if score["metric"] == "copy_rate":
            score["value"] = 0.004
    stored["copying"] |= {"copy_rate": 0.004, "interval": interval, "held_out_rate": 0.01, "left_out": 3}
    stored["copying"]["cautions"] = [caution] if caution not in (None, LEFT_OUT) else []
    path.write_text(json.dumps(stored))
    text = Page(write_report(evaluated)).text
    assert f"Does it copy its training images? {answer}" in text
    assert (f"Caution: {caution}." in text) == (caution is not None)
    # One block says it, with what it rests on, and no score beside it.
    assert text.count("copy_rate_efficientnet") == 0 and "Copy rate 0.4 % (" in text
    found = stored["copying"]
    threshold = f"Threshold a distance of {number(found['threshold'])} to the nearest training image, in EfficientNet"
    assert (
        threshold in text and f"from its training image Rests on {found['held_out_images']} held-out images; " in text
    )
    assert "3 more are training images as well and do not count; 45 training images" in text
    # Files from before know neither what it rests on nor which of the cautions matter.
    for key in ("threshold", "cautions"):
        del found[key]
    path.write_text(json.dumps(stored))
    text = Page(write_report(evaluated)).text
    assert "Threshold" not in text and f"images? {answer if caution != LEFT_OUT else 'Too uncertain'}" in text


def test_a_run_that_got_worse_and_ended_early(run: Path) -> None:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        if "held_out_loss" in record:
            record["held_out_loss"] = 0.5 + abs(record["step"] - 6) / 10
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    result = {"objective": "held_out_loss", "value": 0.5, "best_step": 6, "step": 8, "stopped_early": True}
    (run / "result.json").write_text(json.dumps(result))
    page = Page(write_report(run))
    assert (
        "Yes, and it got worse again The held-out loss was lowest at step 6 and has risen by 40.0 % since." in page.text
    )
    assert "The run ended early" in page.text and "Train it longer" not in page.text
    assert "Held-out loss was best at step 6" in page.text and f"pipeline={run}/checkpoints/best" in page.text


def test_a_run_that_was_measured_once_is_to_be_measured_on_the_way(run: Path) -> None:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records[:-1]:
        record.pop("held_out_loss", None)
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    text = Page(write_report(run)).text
    assert "Did it stop getting better? Not known" in text and "Measure it, and train it longer, for instance" in text
    assert re.search(
        r"ddpm-train --config-path \S+ --config-name config .*train.max_steps=16 evaluation.every_steps=1 ", text
    )


def test_a_run_that_is_not_at_its_end(run: Path) -> None:
    shutil.rmtree(run / "pipeline")
    page = Page(write_report(run))
    assert "No: still getting better so far" in page.text
    assert "It stands at step 8 of 8. The same command goes on" in page.text and "Train it longer" not in page.text


def test_a_folder_that_is_no_run(evaluated: Path) -> None:
    page = Page(write_report((evaluated / "evaluation").rename(evaluated.parent / "garments")))
    assert "Evaluation report" in page.text and "How good is it? KID" in page.text
    assert "Did it stop" not in page.text and "ddpm-train --" not in page.text and "ddpm-sample" not in page.text


def test_a_report_that_cannot_be_written_does_not_fail_the_run(cli: Cli) -> None:
    (cli.output() / "report.html").mkdir(parents=True)
    said = cli.train("train.max_steps=2", "evaluation=none", "tracker=none")
    assert "ERROR: the report in outputs/default cannot be written" in said
    assert (cli.output() / "pipeline/training.json").exists()


@pytest.mark.parametrize(
    ("values", "kind", "since"),
    [
        ([0.9, 0.5, 0.30, 0.20, 0.15], "falling", 400),
        ([0.9, 0.5, 0.30, 0.2, 0.199], "level", 400),
        ([0.9, 0.5, 0.30, 0.2, 0.201], "level", 400),
        ([0.9, 0.80], "falling", 100),
        ([0.9, 0.2, 0.25, 0.3, 0.400], "rose", 200),
        ([0.5], "unknown", 0),
        ([], "unknown", 0),
    ],
)
def test_how_the_end_of_a_run_is_judged(values: list[float], kind: str, since: int) -> None:
    steps = np.arange(100.0, 100 * len(values) + 1, 100)
    found = trend(Series(steps, np.array(values)))
    assert (found.kind, found.since) == (kind, since)


def test_what_is_learned_is_told_against_what_no_model_could(run: Path) -> None:
    stored = json.loads((run / "evaluation/step_00000008.json").read_text())
    floor = stored["floor"]
    assert floor["learned"] < 0 and "How much has it learned? Nothing yet" in Page(run / "report.html").text
    floor["learned"], stored["memorisation"]["forecast"] = 0.6, None
    (run / "evaluation/step_00000008.json").write_text(json.dumps(stored))
    page = Page(write_report(run))
    assert "Does it copy its training images? Not measured; no copying is in sight" in page.text
    assert f"How much has it learned? At least {100 * floor['learned']:.0f} % of what can be learned" in page.text
    for name in ("loss", "least", "naive", "copier"):
        assert number(floor[name]) in page.text
    drawing = charts(run / "report.html")["What is left, by timestep"]
    for label in ("this model", "no model is below", "a copier of the training images"):
        assert f">{label}<" in drawing
    gaps = np.array(floor["by_timestep"]["loss"], float) - np.array(floor["by_timestep"]["least"], float)
    assert f"Most may be left to learn for t from {100 * np.nanargmax(gaps):.0f} to " in drawing


@pytest.mark.parametrize(
    ("losses", "changes", "answer"),
    [
        ([0.9, 0.5, 0.4, 0.3], {}, "Go on It was still getting better"),
        ([0.9, 0.5, 0.4, 0.3], {"forecast": Forecast(7_000.0, (3_000.0, None))}, "Get more images Copying"),
        ([0.9, 0.5, 0.4, 0.3], {"forecast": Forecast(9_000.0, (3_000.0, None))}, "Go on"),
        ([0.9, 0.5, 0.4, 0.3], {"interval": [0.04, 0.06]}, "Stop, and get more images Some of its samples are copies"),
        ([0.9, 0.5, 0.4, 0.3], {"held_out": 1}, "Get more images 1 held-out image cannot"),
        ([0.9, 0.5, 0.4, 0.3], {"finished": False}, "Let it go on"),
        ([0.9, 0.5, 0.4, 0.4], {}, "Stop More steps of this run bring little."),
        ([0.9, 0.5, 0.4, 0.6], {}, "Stop, and get more images It got worse"),
        ([0.9], {}, "Not known"),
    ],
)
def test_the_first_answer_says_whether_to_go_on(
    run: Path, losses: list[float], changes: dict[str, Any], answer: str
) -> None:
    """The run as it would be after a thousand steps for each of these losses, of 64 images."""
    evidence = read_folder(run)
    steps = 1000.0 * np.arange(1, len(losses) + 1)
    values = {"loss": np.ones(len(losses)), "images_seen": 64 * steps, "held_out_loss": np.array(losses)}
    last = evidence.evaluations[-1]
    assert last.memorisation is not None
    memorisation = replace(last.memorisation, forecast=changes.get("forecast"))
    last = replace(last, held_out_images=changes.get("held_out", 15), memorisation=memorisation)
    found = replace(
        evidence,
        metrics={key: Series(steps, series) for key, series in values.items()},
        evaluations=[last],
        copying={"interval": changes["interval"], "held_out_rate": 0.01} if "interval" in changes else {},
        pipeline={"step": int(steps[-1]) if changes.get("finished", True) else 0},
    )
    told = verdict(found)
    assert f"{told.answer} {told.details[0]}".startswith(answer)


def test_what_more_steps_would_add() -> None:
    steps = np.array([50.0, 100.0, 200.0, 400.0])
    found = share_at_twice_the_steps(Series(steps, 1 - 3 / np.sqrt(steps)))
    assert found == pytest.approx(1 - 3 / np.sqrt(800))
    assert share_at_twice_the_steps(Series(steps, np.array([0.1, 0.2, 0.5, 0.4]))) is None  # nothing was gained
    assert share_at_twice_the_steps(Series(steps[[0, 3]], np.array([0.1, 0.4]))) is None  # since long ago
    assert share_at_twice_the_steps(Series(steps[:1], np.array([0.1]))) is None


def test_a_long_series_is_short_on_the_page_and_no_spike_is_lost() -> None:
    steps = np.arange(1.0, 1_000_001)
    values = 1 / np.sqrt(steps)
    values[[123_456, 654_321]] = 50, 1e-6
    short = shorten(Series(steps, values))
    assert len(short.steps) <= 300
    assert short.high.max() == 50 and short.low.min() == 1e-6
    middle = slice(50, 250)
    unspoilt = np.abs(short.mean[middle] * np.sqrt(short.steps[middle]) - 1) < 0.05
    assert unspoilt.mean() > 0.9
    drawn = over_steps("loss", "", Series(steps, values), "loss").svg("one")
    (band,) = re.findall(r'<path [^>]*d="([^"]+)"[^>]*opacity', drawn)[:1]
    band = points(band) % HEIGHT
    assert len(drawn) < 50_000 and len(band) <= 2 * 300 + 3
    top, bottom = band[:, 1].min(), band[:, 1].max()
    decades = np.log10(50 / 1e-6)
    assert top < 0.25 * HEIGHT and bottom > 0.6 * HEIGHT
    # The rest of the values lies between 1 and 0.001 on the same scale.
    assert np.median(band[:, 1]) == pytest.approx(top + (bottom - top) * np.log10(50 * 700) / decades, rel=0.05)


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(0, 1, False), (0.0712, 0.0713, False), (-3, 1e6, False), (1e-4, 2, True), (0.19, 0.31, True)],
)
def test_axes_have_a_few_labels_within_the_plot(low: float, high: float, log: bool) -> None:
    axes = new_axes("x", "y", log_y=log)
    axes.set_xticks([])
    axes.set_ylim(low, high)
    drawn = [
        (float(y), label)
        for y, label in re.findall(r' y="([\d.]+)"[^>]*>([^<]+)</text>', Chart("", "", axes).svg("one"))
    ]
    places = [(y, label) for y, label in drawn if label not in ("x", "y", "y (logarithmic)")]
    assert 3 <= len(places) <= 8 and len(drawn) == len(places) + 2
    assert all(0 <= y <= HEIGHT for y, _ in places)
    assert [y for y, _ in places] == sorted({y for y, _ in places}, reverse=True)
    assert len({label for _, label in places}) == len(places)


@pytest.mark.parametrize("legend", [False, True])
@pytest.mark.parametrize(("last", "scale"), [(6, 1.0), (1_400, 1e-4), (20_000, 2e-7), (1_500_000, 1e5)])
def test_a_chart_is_filled_and_nothing_of_it_is_cut_off(last: int, scale: float, legend: bool) -> None:
    axes = new_axes("step", "loss")
    axes.plot([1, last], [0.1 * scale, 0.9 * scale], label="training" if legend else None)
    axes.set_xlim(1, last)
    Chart("", "", axes).svg("one")
    points = 72 / axes.figure.dpi
    legends = [drawn.get_window_extent().y0 * points for drawn in axes.figure.legends]
    assert len(legends) == legend
    (left, bottom), (right, top) = axes.get_tightbbox().get_points() * points
    ceiling = legends[0] if legends else HEIGHT
    assert -1 < left < 8 and -1 < bottom < 8 and WIDTH - 20 < right < WIDTH + 1 and ceiling - 8 < top < ceiling + 1


def test_numbers_have_sensible_digits_and_units() -> None:
    assert [number(value) for value in (0, 0.071249, 38.4123, 89600.4, 2.1e-7, 0.99999)] == [
        *("0", "0.0712", "38.4", "89,600", "2.10 × 10⁻⁷", "1.00"),
    ]
    assert measured(0.012345, [0.0115, 0.0131]) == "0.0123 (0.0115 to 0.0131)"
    assert measured(0.004, [0.001, 0.009], percent=True) == "0.40 % (0.10 to 0.90)"
    assert measured(1234.5, [1180, 1290]) == "1,234 (1,180 to 1,290)"
    assert [duration(seconds) for seconds in (0.0123, 4.23, 59.7, 150, 11100, 187200)] == [
        *("12 ms", "4.2 s", "1 min", "2 min 30 s", "3 h 5 min", "2 d 4 h"),
    ]
    assert [tick(value) for value in (0, 0.05, 7.5e-5, 5e-4, 1400, 20000, 1.5e6)] == [
        *("0", "0.05", "7.5 × 10⁻⁵", "0.0005", "1,400", "20k", "1.5M"),
    ]


HARNESS = """<!doctype html><title>harness</title><body><script>
const frame = document.createElement("iframe");
frame.style = "width: 360px; height: 800px; border: 0";
frame.src = "report.html";
frame.onload = async () => {
  const page = frame.contentDocument, view = frame.contentWindow;
  const found = {};
  for (const width of [360, 768, 1280]) {
    frame.style.width = width + "px";
    await new Promise(done => setTimeout(done, 50));
    const inside = element => element.closest(".scrolls, svg");
    const beyond = element => !inside(element) && element.getBoundingClientRect().right > width + 0.5;
    found[width] = [...page.body.querySelectorAll("*")].filter(beyond).map(element => element.outerHTML.slice(0, 80));
    found[width + " scrolls"] = page.documentElement.scrollWidth > width;
  }
  found.loaded = view.performance.getEntriesByType("resource").map(entry => entry.name);
  const frames = () => [...page.querySelectorAll(".film figure")].filter(figure => figure.offsetParent).length;
  found.frames = [frames()];
  page.querySelector(".film label").click();
  found.frames.push(frames(), page.querySelector(".film input").checked);
  document.body.textContent = "RESULT" + JSON.stringify(found) + "END";
};
document.body.append(frame);
</script></body>"""


@pytest.fixture
def served(run: Path) -> Iterator[tuple[str, list[str]]]:
    """The run's folder on loopback, and what was asked of it."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(run))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def browser() -> str | None:
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


@pytest.mark.skipif(browser() is None, reason="needs a headless Chromium or Chrome")
def test_in_a_real_browser(run: Path, served: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = served
    write_report(run)
    (run / "harness.html").write_text(HARNESS)
    command = [
        *(browser() or "", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"),
        *("--enable-logging=stderr", "--virtual-time-budget=10000", "--window-size=1400,900", "--dump-dom"),
        f"{address}/harness.html",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = json.loads(html.unescape(done.stdout.partition("RESULT")[2].partition("END")[0]))
    for width in ("360", "768", "1280"):
        assert found[width] == [] and not found[f"{width} scrolls"]
    assert found["loaded"] == []
    assert found["frames"] == [1, 1, True]
    assert set(asked) <= {"/harness.html", "/report.html", "/favicon.ico"}
    assert "CONSOLE" not in done.stderr
