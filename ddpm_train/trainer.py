"""The training loop. Everything else is handed in."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from torch import Tensor, nn

from ddpm_train.config import Config
from ddpm_train.diffusion.objective import Objective
from ddpm_train.ema import update_ema
from ddpm_train.metrics import Metrics
from ddpm_train.optim import learning_rate
from ddpm_train.preemption import Stopped, StopRequest
from ddpm_train.seeding import Purpose, derived_seed


@dataclass
class TrainState:
    """All that a run is, at a step. `step` counts completed updates; the rest follows from it and the config."""

    step: int
    unet: UNet2DModel
    ema_unet: UNet2DModel | None
    optimizer: torch.optim.Optimizer

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Named sets of tensors, as a checkpoint holds them."""
        optimizer = {
            f"{index}.{name}": value
            for index, values in self.optimizer.state_dict()["state"].items()
            for name, value in values.items()
            if isinstance(value, Tensor)
        }
        sets = {"unet": self.unet.state_dict(), "optimizer": optimizer}
        return sets if self.ema_unet is None else {**sets, "ema": self.ema_unet.state_dict()}

    def load(self, step: int, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Take over what `tensors` returned at `step`."""
        self.step = step
        self.unet.load_state_dict(tensors["unet"])
        if self.ema_unet is not None:
            self.ema_unet.load_state_dict(tensors["ema"])
        by_parameter: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors["optimizer"].items():
            index, name = key.split(".", 1)
            by_parameter.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": by_parameter, "param_groups": groups})

    @property
    def sampling_unet(self) -> UNet2DModel:
        """The weights to sample from: the average where there is one."""
        return self.unet if self.ema_unet is None else self.ema_unet


@dataclass(frozen=True)
class BatchPlan:
    """How the global batch is cut: `batch_size` = micro_batch_size x num_processes x accumulation."""

    batch_size: int
    micro_batch_size: int
    num_processes: int
    process_index: int

    @property
    def accumulation(self) -> int:
        return self.batch_size // (self.micro_batch_size * self.num_processes)

    def positions(self, step: int) -> Iterator[Tensor]:
        """The positions of this process's micro-batches from `step` on, without end; int64 [micro_batch_size]."""
        while True:
            for micro_step in range(self.accumulation):
                micro_batch = micro_step * self.num_processes + self.process_index
                start = step * self.batch_size + micro_batch * self.micro_batch_size
                yield torch.arange(start, start + self.micro_batch_size)
            step += 1


@dataclass
class Trainer:
    """Takes a run from `state.step` to `max_steps`, evaluating and saving on the way.

    Attributes:
        model, optimizer: the state's, as Accelerate prepared them.
        evaluate: measures `state`; returns named values for its step's record.
        save: starts a checkpoint of `state`; returns the seconds for which that held up the loop.
        save_overdue: whether a checkpoint is due by the clock (on any process).
        progress: shows a step's record to a person.
        evaluated: whether the evaluation due at `state.step` has been done.
        saved_step: the newest checkpoint's step.
    """

    config: Config
    plan: BatchPlan
    max_steps: int
    state: TrainState
    model: nn.Module
    optimizer: Any
    objective: Objective
    accelerator: Accelerator
    metrics: Metrics
    stop: StopRequest
    evaluate: Callable[[], dict[str, float]]
    save: Callable[[], float]
    save_overdue: Callable[[], bool]
    progress: Callable[[dict[str, Any]], None]
    evaluated: bool
    saved_step: int

    def train(self, data: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Train to the end.

        Args:
            data: this process's micro-batches from `state.step` on, see `micro_batches`.

        Raises:
            Stopped: all processes agreed to stop, and a checkpoint was saved.
            NonFinite: on all processes; nothing of the steps it names has reached a checkpoint.
        """
        self.model.train()
        stopping = self._after_step()
        while self.state.step < self.max_steps and not stopping:
            self.train_step(data)
            stopping = self._after_step()
        if stopping:
            raise Stopped

    def train_step(self, data: Iterator[tuple[Tensor, Tensor]]) -> None:
        """One update of weights and average."""
        config, state, accelerator = self.config, self.state, self.accelerator
        lr = learning_rate(config.optimizer.lr, config.lr_scheduler, state.step, self.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        losses = []
        for _ in range(self.plan.accumulation):
            positions, images = next(data)
            if config.model.dropout:
                # Dropout draws from torch's own generator: seeded by the micro-batch, whichever process has it.
                torch.manual_seed(derived_seed(config.seed, Purpose.DROPOUT, int(positions[0])))
            images = images.to(accelerator.device, non_blocking=True)
            positions = positions.to(accelerator.device, non_blocking=True)
            with accelerator.accumulate(self.model):
                loss = self.objective(self.model, images, positions)
                accelerator.backward(loss)
            losses.append(loss.detach())
        grad_norm = accelerator.clip_grad_norm_(self.model.parameters(), config.train.max_grad_norm or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad()
        state.step += 1
        if state.ema_unet is not None:
            update_ema(state.ema_unet, state.unet, config.ema, state.step)
        self.evaluated = not evaluation_due(config, state.step, self.max_steps)
        self.metrics.record(state.step, state.step * self.plan.batch_size, lr, torch.stack(losses).mean(), grad_norm)

    def _after_step(self) -> bool:
        """Evaluate, report and save what is due at `state.step`; returns whether to stop."""
        step, finished = self.state.step, self.state.step == self.max_steps
        stopping, overdue = self.stop.agree(self.save_overdue())
        if not self.evaluated and not stopping:
            stopping = not self._try_to_evaluate()
        every_steps = self.config.checkpoint.every_steps
        save_due = finished or stopping or overdue or bool(every_steps and step % every_steps == 0)
        if save_due or step % self.config.train.log_every_steps == 0:
            # What is saved has been found finite, and its records are on the disk before it is.
            self.metrics.read_back()
            self.metrics.write()
            self.progress(self.metrics.last)
        if save_due and step != self.saved_step:
            self.metrics.carry({"checkpoint_stall_seconds": round(self.save(), 4)})
            self.saved_step = step
            self.metrics.rest_clock()
        return stopping

    def _try_to_evaluate(self) -> bool:
        """Evaluate; False if a request to stop ended it, in which case a resumed run repeats it."""
        self.metrics.read_back()
        try:
            values = self.evaluate()
        except Stopped:
            return False
        self.metrics.annotate(self.state.step, values)
        self.metrics.rest_clock()
        self.evaluated = True
        return True


def evaluation_due(config: Config, step: int, max_steps: int) -> bool:
    """Whether the run evaluates at `step`: every `evaluation.every_steps` and at the end, but not untrained."""
    if config.evaluation.name == "none" or step == 0:
        return False
    every_steps = config.evaluation.every_steps
    return step == max_steps or bool(every_steps and step % every_steps == 0)
