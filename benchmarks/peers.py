"""The training loops that others document, around the same network and images: one of them, in its own process.

    python benchmarks/peers.py tutorial|tuned|package|ours|limits WORK.json

Called by `throughput.py` and `scaling.py`; prints one JSON object as its last line.

tutorial  diffusers' examples/unconditional_image_generation/train_unconditional.py with the flags of its README:
          `datasets` decodes and transforms at every visit, in this process; fp32; AdamW; EMAModel; `.item()` each step
tuned     the same with all that makes it faster short of another program: bf16, one worker for each core that lives on
          between epochs, pinned memory, fused AdamW, EMAModel(foreach=True)
package   `denoising-diffusion-pytorch`'s Trainer and GaussianDiffusion, in bf16
ours      this project's program with a clock around its data and, after that, a profiler around some more steps (for
          scaling.py also without the gradients' exchange)
limits    no training: operations for each image, and how many a second the device does in a matrix product
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from profiling import profiled
from work import Work, build_model, num_cores


class Meter:
    """Counts images and the time that a loop waits for them, from its step `warmup` on."""

    def __init__(self, warmup: int) -> None:
        self._warmup = warmup
        self._requests: list[float] = []
        self._waits: list[float] = []
        self._images: list[int] = []

    def over(self, loader: Iterable[Any], count: Callable[[Any], int]) -> Generator[Any, None, None]:
        """The loader's batches. What starting its iterator costs (workers, each epoch) is waiting too."""
        requested = time.monotonic()
        iterator = iter(loader)
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                received = time.monotonic()
            self._requests.append(requested)
            self._waits.append(received - requested)
            self._images.append(count(batch))
            yield batch
            requested = time.monotonic()

    def figures(self) -> dict[str, Any]:
        """Call when the last step is done."""
        import torch

        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.synchronize()
        seconds = time.monotonic() - self._requests[self._warmup]
        return {
            "images_per_second": sum(self._images[self._warmup :]) / seconds,
            "waiting_share": sum(self._waits[self._warmup :]) / seconds,
            "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "peak_gpu": torch.cuda.max_memory_allocated() if cuda else None,
        }


def documented_loader(work: Work, tuned: bool) -> Any:
    """The images as the diffusers example loads them."""
    import torch
    from datasets import load_dataset
    from torchvision import transforms

    dataset = load_dataset("imagefolder", data_dir=work.images, split="train", cache_dir=f"{work.scratch}/datasets")
    augment = transforms.Compose(
        [
            transforms.Resize(work.resolution, interpolation=transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(work.resolution),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5], [0.5]),
        ]
    )
    dataset.set_transform(lambda rows: {"input": [augment(image.convert("RGB")) for image in rows["image"]]})
    faster = {"num_workers": num_cores(), "persistent_workers": True, "pin_memory": torch.cuda.is_available()}
    return torch.utils.data.DataLoader(
        dataset, batch_size=work.batch_size, shuffle=True, **(faster if tuned else {"num_workers": 0})
    )


def documented(work: Work, tuned: bool) -> dict[str, Any]:
    """The loop of the diffusers example."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    from tqdm.auto import tqdm

    folders = ProjectConfiguration(project_dir=work.scratch, logging_dir=f"{work.scratch}/logs")
    precision = "bf16" if tuned else "no"
    accelerator = Accelerator(mixed_precision=precision, log_with="tensorboard", project_config=folders)
    model = build_model(work.overrides)
    faster = {"foreach": True} if tuned else {}
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75, **faster)
    ema.to(accelerator.device)
    noise_scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8, fused=tuned or None
    )
    lr_scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=max(work.steps, 1000))
    model, optimizer, loader, lr_scheduler = accelerator.prepare(
        model, optimizer, documented_loader(work, tuned), lr_scheduler
    )
    accelerator.init_trackers("peer")
    meter, step = Meter(work.warmup), 0
    while step < work.steps:
        model.train()
        bar = tqdm(total=len(loader))
        for batch in meter.over(loader, count=lambda rows: len(rows["input"])):
            x_0 = batch["input"]
            noise = torch.randn(x_0.shape, device=x_0.device)
            timesteps = torch.randint(0, 1000, (len(x_0),), device=x_0.device)
            x_t = noise_scheduler.add_noise(x_0, noise, timesteps)
            with accelerator.accumulate(model):
                prediction = model(x_t, timesteps).sample
                loss = torch.nn.functional.mse_loss(prediction.float(), noise.float())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            step += 1
            if accelerator.sync_gradients:
                ema.step(model.parameters())
                bar.update(1)
            logs = {"loss": loss.detach().item(), "lr": lr_scheduler.get_last_lr()[0], "ema_decay": ema.cur_decay_value}
            bar.set_postfix(**logs)
            accelerator.log(logs, step=step)
            if step == work.steps:
                break
        bar.close()
    figures = meter.figures()
    accelerator.end_training()
    return figures | {"precision": precision}


def package(work: Work) -> dict[str, Any]:
    """The installable Trainer, around the same network. It exchanges its own defaults for the case's where it can."""
    import torch
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer

    class Adapter(torch.nn.Module):
        """A UNet2DModel with the face of the package's own Unet."""

        def __init__(self, unet: Any) -> None:
            super().__init__()
            self.unet = unet
            self.channels = unet.config.in_channels
            self.out_dim = unet.config.out_channels
            self.self_condition = False
            self.random_or_learned_sinusoidal_cond = False

        def forward(self, x: Any, time: Any, x_self_cond: Any = None) -> Any:
            return self.unet(x, time).sample

    diffusion = GaussianDiffusion(
        Adapter(build_model(work.overrides)),
        image_size=work.resolution,
        timesteps=1000,
        objective="pred_noise",
        beta_schedule="linear",
    )
    trainer = Trainer(
        diffusion,
        work.images,
        train_batch_size=work.batch_size,
        gradient_accumulate_every=1,
        train_lr=1e-4,
        train_num_steps=work.steps,
        save_and_sample_every=work.steps + 1,
        results_folder=f"{work.scratch}/package",
        amp=True,
        mixed_precision_type="bf16",
        calculate_fid=False,
    )
    meter = Meter(work.warmup)
    # Its loader begins again by itself, so the meter sees one without an end.
    trainer.dl = meter.over(trainer.dl, count=len)
    trainer.train()
    return meter.figures() | {"precision": "bf16"}


def ours(work: Work) -> dict[str, Any]:
    """This project's program in this process, its data timed, and then some steps profiled."""
    from ddpm_train.system import launch

    launch.spread()  # while the command line is still this script's
    from ddpm_train.cli import train as program
    from ddpm_train.training import run
    from ddpm_train.training.loop import Trainer

    meter = Meter(work.warmup)
    micro_batches = run.micro_batches

    def timed(*arguments: Any, **options: Any) -> Iterator[Any]:
        batches = micro_batches(*arguments, **options)
        try:
            yield from meter.over(batches, count=lambda batch: len(batch[0]))
        finally:
            batches.close()

    run.micro_batches = timed
    if not work.exchange:
        keep_gradients()
    figures: dict[str, Any] = {}
    train_step = Trainer.train_step
    profiling = ExitStack()

    def measured_step(self: Any) -> None:
        train_step(self)
        if self.state.step == work.steps:
            figures.update(meter.figures())
            if work.profiled_steps:
                figures["profile"] = {}
                profiling.enter_context(profiled(work.profiled_steps, figures["profile"]))
        elif self.state.step == work.steps + work.profiled_steps:
            profiling.close()

    Trainer.train_step = measured_step
    sys.argv = ["train.py", *work.overrides, f"train.max_steps={work.steps + work.profiled_steps}"]
    program.main()
    return figures


def keep_gradients() -> None:
    """DistributedDataParallel as it is, but each process keeps its own gradients: what is left is the computing."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    def kept(state: object, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    start = DistributedDataParallel.__init__

    def start_and_register(self: Any, *arguments: Any, **options: Any) -> None:
        start(self, *arguments, **options)
        self.register_comm_hook(None, kept)

    DistributedDataParallel.__init__ = start_and_register


def limits(work: Work) -> dict[str, Any]:
    """Operations for each image, parameters, and measured operations a second in matrix products."""
    from limits import flops_per_image, peak_flops

    unet = build_model(work.overrides)
    parameters = unet.num_parameters()
    return {
        "parameters": parameters,
        "flops_per_image": flops_per_image(unet, work.resolution),
        "peak_flops": peak_flops(),
    }


CONTESTANTS: dict[str, Callable[[Work], dict[str, Any]]] = {
    "tutorial": lambda work: documented(work, tuned=False),
    "tuned": lambda work: documented(work, tuned=True),
    "package": package,
    "ours": ours,
    "limits": limits,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("work", type=Path, help="a JSON file with the fields of `Work`")
    arguments = parser.parse_args()
    work = Work(**json.loads(arguments.work.read_text()))
    figures = CONTESTANTS[arguments.contestant](work)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
