"""How near the samples of runs on Fashion-MNIST at 16 × 16 come to real images, by a judge that knows such pictures.

    python benchmarks/judge.py FASHION_MNIST outputs/default outputs/other

FASHION_MNIST is a folder with the four `*-ubyte.gz` files, as Debian's package dataset-fashion-mnist holds them. The
judge is a small convolutional network that learns the ten classes from the 60,000 training images, once (minutes), and
is kept in --judge. Its score is the Fréchet distance between its 64 features of a run's samples and of test images
that no run here trained on or was chosen by; beside it, how many samples there are of each class. These numbers
compare with each other only, of the same judge and at the same number of samples.
"""

import argparse
import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import report
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

import ddpm_train
from ddpm_train.config.program import compose_configs
from ddpm_train.data.decode import Decoder
from ddpm_train.data.loader import open_data
from ddpm_train.diffusion.objective import to_model_range
from ddpm_train.training.preflight import PROGRAM

RESOLUTION, CLASSES = (16, 16), 10
EPOCHS, BATCH_SIZE, LR = 4, 128, 2e-3
DECODER = Decoder(RESOLUTION, 1, (0, 0, 0), "center", max_pixels=2**20)


class Judge(nn.Module):
    """uint8 [B, 1, 16, 16] -> 64 features; `classes` of these."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            layers += [nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 64), nn.ReLU())
        self.classes = nn.Linear(64, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.features(to_model_range(images))


def read_images(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """uint8 [N, 1, 16, 16], made small as a dataset's images are, and their classes, int64 [N]."""
    tiles, labels = (
        np.frombuffer(gzip.decompress((folder / f"{part}-{kind}-ubyte.gz").read_bytes()), np.uint8, offset=offset)
        for kind, offset in (("images-idx3", 16), ("labels-idx1", 8))
    )
    images = [DECODER.from_image(Image.fromarray(tile)) for tile in tiles.reshape(-1, 28, 28)]
    return torch.from_numpy(np.stack(images)), torch.from_numpy(labels.astype(np.int64))


def train_judge(images: Tensor, labels: Tensor) -> Judge:
    torch.manual_seed(0)
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.01)
    batches = [torch.randperm(len(images)).split(BATCH_SIZE) for _ in range(EPOCHS)]
    steps = sum(map(len, batches))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    for batch in (batch for epoch in batches for batch in epoch):
        loss = functional.cross_entropy(judge.classes(judge(images[batch])), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


@torch.inference_mode()
def look(judge: Judge, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features, float32 [N, 64], and classes, int64 [N]."""
    features = torch.cat([judge(batch) for batch in images.split(1024)])
    return features, judge.classes(features).argmax(1)


def distance(features: Tensor, others: Tensor) -> float:
    statistics = (fid_features_to_statistics(each) for each in (features, others))
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


def unseen(images: Tensor) -> Tensor:
    """The test images without those that `fashion_tiny` holds out, by which a run may have been chosen."""
    ((config, _),) = compose_configs(PROGRAM, ["dataset=fashion_tiny"])
    validation = open_data(config.dataset, progress=False).validation
    held_out = {image.numpy().tobytes() for image in validation.load(np.arange(len(validation)))}
    return images[[image.numpy().tobytes() not in held_out for image in images]]


def judged(samples: Tensor, judge: Judge, real: Tensor) -> tuple[float, list[int]]:
    """The distance from the features of real images, and how many samples there are of each class."""
    features, classes = look(judge, samples)
    return distance(features, real), torch.bincount(classes, minlength=CLASSES).tolist()


def main(texts: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FASHION_MNIST")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folders of runs, or what ddpm-sample takes")
    parser.add_argument("--num-images", type=int, default=2048, help="samples of each")
    parser.add_argument("--judge", type=Path, default=Path("outputs/judge.pt"))
    parser.add_argument("--result", default="judge", help="the name of the JSON file in results/")
    arguments = parser.parse_args(texts)
    test, labels = read_images(arguments.folder, "t10k")
    if not arguments.judge.exists():
        torch.save(train_judge(*read_images(arguments.folder, "train")).state_dict(), arguments.judge)
    judge = Judge().eval()
    judge.load_state_dict(torch.load(arguments.judge, weights_only=True))
    right = float((look(judge, test)[1] == labels).float().mean())
    images = unseen(test)
    # Two halves, so that the one says how near as many real images come to the other.
    other, real = images[: arguments.num_images], look(judge, images[arguments.num_images :])[0]
    sets = {"real": other}
    for run in arguments.runs:
        samples = ddpm_train.sample(run, arguments.num_images, output="np", batch_size=256)
        sets[str(run)] = torch.from_numpy(samples).permute(0, 3, 1, 2)
    found = {name: judged(samples, judge, real) for name, samples in sets.items()}
    rows = [("the judge is right about", f"{right:.1%} of the test images")]
    for name, (far, counts) in found.items():
        rows.append((name, f"{far:.1f}   of each class: {' '.join(map(str, counts))}"))
    told = {name: {"distance": far, "classes": counts} for name, (far, counts) in found.items()}
    report.tell(arguments.result, rows, {"right": right, "num_images": arguments.num_images, "sets": told})


if __name__ == "__main__":
    main()
