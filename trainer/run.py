"""A training run, from an empty folder or a checkpoint to the final checkpoint: the loop and nothing else."""

from __future__ import annotations

import math
import signal
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.ledger import ByteLedger
from eval.scoring import Share, score_plain
from eval.tally import Tally
from model.config import ModelConfig
from model.errors import InputError
from model.network.gpt import GPT
from model.network.initialize import initialize
from model.text.shards import DataFolder
from trainer import checkpoint as checkpoints
from trainer.averaging import weight_average
from trainer.clock import Clock
from trainer.config import TrainingConfig
from trainer.engine import start_engine
from trainer.gradients import NonFiniteGradient, average_gradients, clip_gradients
from trainer.loader import SequentialLoader
from trainer.metrics import Metrics
from trainer.optimizer import TrainingOptimizer
from trainer.ranks import Ranks
from trainer.schedule import learning_rate_multiplier, momentum

VALIDATION_BATCH_TOKENS = 32_768


class Preempted(Exception):
    """The run was asked to stop (SIGTERM) and saved a checkpoint."""


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended."""

    num_steps: int
    num_tokens: int
    train_seconds: float
    train_loss_nats: float
    """Of the last step."""
    validation: Tally
    """The averaged (else the final) weights on all validation targets, plain scoring."""
    checkpoint: Path


def train(
    model_config: ModelConfig,
    training: TrainingConfig,
    data: DataFolder,
    ledger: ByteLedger,
    run_dir: Path,
    ranks: Ranks,
    *,
    resume: Path | None = None,
    replay_clock: list[float] | None = None,
) -> TrainingResult:
    """Train until the clock reaches 1; called by every rank.

    Args:
        ledger: bytes of the validation targets.
        run_dir: exists; gets checkpoints/, metrics.jsonl and log.txt, written by rank 0.
        resume: checkpoint folder to continue from.
        replay_clock: fractions recorded by an earlier run, in place of the wall clock.

    Raises:
        InputError: data too short, a damaged checkpoint, weights of another shape.
        Preempted: SIGTERM arrived and a checkpoint was saved.
        NonFiniteGradient: the loss or gradient was NaN or infinite; weights are those before the step.
        OSError: the final checkpoint could not be written.
    """
    metrics = Metrics(run_dir if ranks.is_first else None)
    return _Run(model_config, training, data, ledger, run_dir, ranks, metrics, resume, replay_clock).to_the_end()


class _Run:
    def __init__(
        self,
        model_config: ModelConfig,
        training: TrainingConfig,
        data: DataFolder,
        ledger: ByteLedger,
        run_dir: Path,
        ranks: Ranks,
        metrics: Metrics,
        resume: Path | None,
        replay_clock: list[float] | None,
    ) -> None:
        self.config, self.data, self.ledger = training, data, ledger
        self.run_dir, self.ranks, self.metrics = run_dir, ranks, metrics
        dtype = torch.bfloat16 if ranks.device.type == "cuda" else torch.float32
        self.model = GPT(model_config, dtype)
        initialize(self.model, training.seed)
        self.model.to(ranks.device)
        self.loader = SequentialLoader(data.train, training, ranks)
        self.optimizer = TrainingOptimizer(self.model, training, ranks)
        self.step, self.clock_before = 0, 0.0
        self.average = weight_average(dict(self.model.named_parameters()), training)
        elapsed = self._restore(checkpoints.load(resume)) if resume is not None else 0.0
        self.clock = Clock(training, elapsed, replay_clock)
        self.engine: Any = start_engine(
            self.model,
            self.optimizer,
            ranks,
            micro_batch_size=self.loader.micro_batch_sequences,
            num_micro_batches=self.loader.num_micro_batches,
        )
        self.terminated = False
        self.warned_of_checkpoint = False

    def to_the_end(self) -> TrainingResult:
        self._announce()
        self._warm_up()
        previous_handler = signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            loss = self._loop()
        finally:
            signal.signal(signal.SIGTERM, previous_handler)
        final = self._save_checkpoint()
        validation = self._validate(max_targets=None)
        return TrainingResult(
            num_steps=self.step,
            num_tokens=self.step * self.config.batch_tokens,
            train_seconds=self.clock.elapsed_seconds,
            train_loss_nats=loss,
            validation=validation,
            checkpoint=final,
        )

    def _loop(self) -> float:
        config, loss = self.config, math.nan
        self.clock.start()
        while True:
            fraction, terminated = self.ranks.from_first([self.clock.fraction(self.step), float(self.terminated)])
            if terminated:
                self.clock.stop()
                self._save_checkpoint()
                raise Preempted(f"stopped by SIGTERM after step {self.step}")
            if fraction >= 1:
                break
            loss = self._train_step(fraction)
            if config.validate_every_steps and self.step % config.validate_every_steps == 0:
                self.clock.stop()
                self._validate(config.validation_tokens or None)
                self.clock.start()
            if config.checkpoint_every_steps and self.step % config.checkpoint_every_steps == 0:
                self.clock.stop()
                self._save_checkpoint_or_warn()
                self.clock.start()
        self.clock.stop()
        return loss

    def _train_step(self, fraction: float) -> float:
        """One optimizer step at clock `fraction`; returns the mean loss in nats."""
        config = self.config
        multiplier = learning_rate_multiplier(config, self.step, fraction)
        self.optimizer.learning_rate_multiplier = multiplier
        self.optimizer.momentum = momentum(config.matrix, self.step)
        loss, norm = self._forward_backward_step()
        if self.average is not None:
            self.average.update(
                step=self.step + 1, clock_advance=fraction - self.clock_before, learning_rate_multiplier=multiplier
            )
        self.step, self.clock_before = self.step + 1, fraction
        elapsed_ms = 1000 * self.clock.elapsed_seconds
        self.metrics.row(
            step=self.step,
            train_loss=loss,
            clock=fraction,
            learning_rate_multiplier=multiplier,
            momentum=self.optimizer.momentum,
            gradient_norm=norm,
            tokens=self.step * config.batch_tokens,
            train_time_ms=elapsed_ms,
        )
        if self.step <= 10 or self.step % config.log_every_steps == 0:
            self.metrics.line(
                f"step:{self.step}/{config.max_steps} train_loss:{loss:.4f} "
                f"train_time:{elapsed_ms:.0f}ms step_avg:{elapsed_ms / self.step:.2f}ms"
            )
        return loss

    def _forward_backward_step(self) -> tuple[float, float]:
        parameters = list(self.model.parameters())
        total = torch.zeros((), device=self.ranks.device)
        last = self.loader.num_micro_batches - 1
        norm = total
        for index in range(last + 1):
            loss: Tensor = self.engine(*self.loader.micro_batch(self.step, index))
            self.engine.backward(loss)
            total += loss.detach()
            if index == last:
                average_gradients(parameters, self.ranks)
                norm = clip_gradients(parameters, self.config.gradient_clip_norm)
                total /= last + 1
                self.ranks.average(total)
                mean_loss, gradient_norm = torch.stack((total.double(), norm.double())).tolist()
                if not (math.isfinite(mean_loss) and math.isfinite(gradient_norm)):
                    first = int(self.loader.sample_numbers(self.step)[0])
                    raise NonFiniteGradient(
                        f"step {self.step + 1}: loss {mean_loss}, gradient norm {gradient_norm}; "
                        f"{self.config.num_sequences} samples from number {first} on"
                    )
            self.engine.step()
        return mean_loss, gradient_norm

    def _warm_up(self) -> None:
        """Compile the step, and run it once, before the clock starts; leaves no trace in the state."""
        if self.ranks.device.type != "cuda":
            return
        start = time.perf_counter()
        if self.config.compile:
            self.engine.module.compile(dynamic=False)
        for _ in range(2):
            self.engine.module(*self.loader.micro_batch(self.step, 0)).backward()
        self.model.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        self.metrics.line(f"warm-up (compilation, not counted): {time.perf_counter() - start:.1f} s")

    def _validate(self, max_targets: int | None) -> Tally:
        """Plain scoring, of the averaged weights where there are any; every rank scores its share."""
        context = self.config.sequence_tokens
        self.model.eval()
        with self._averaged_weights():
            tally = score_plain(
                self.model,
                self.data.val,
                self.ledger,
                context,
                max(1, VALIDATION_BATCH_TOKENS // context),
                self.ranks.device,
                max_targets=max_targets,
                share=Share(self.ranks.rank, self.ranks.size),
            )
        self.model.train()
        sums = torch.tensor(
            [tally.nats, tally.num_bytes, tally.num_tokens], dtype=torch.float64, device=self.ranks.device
        )
        self.ranks.sum(sums)
        nats, num_bytes, num_tokens = sums.tolist()
        merged = Tally(nats, int(num_bytes), int(num_tokens))
        elapsed_ms = 1000 * self.clock.elapsed_seconds
        self.metrics.row(step=self.step, val_loss=merged.nats_per_token, val_bpb=merged.bpb, train_time_ms=elapsed_ms)
        self.metrics.line(
            f"step:{self.step}/{self.config.max_steps} val_loss:{merged.nats_per_token:.4f} val_bpb:{merged.bpb:.4f} "
            f"train_time:{elapsed_ms:.0f}ms step_avg:{elapsed_ms / max(self.step, 1):.2f}ms"
        )
        return merged

    def _averaged_weights(self) -> AbstractContextManager[None]:
        return self.average.applied() if self.average is not None else nullcontext()

    def _save_checkpoint(self) -> Path:
        random = self.ranks.gather_bytes(torch.get_rng_state())
        path = self.run_dir / "checkpoints" / f"step_{self.step:06d}"
        if self.ranks.is_first:
            state = {
                "step": self.step,
                "elapsed_seconds": self.clock.elapsed_seconds,
                "clock": self.clock_before,
                "optimizer_steps": self.optimizer.num_steps,
                "average": self.average.counters() if self.average is not None else None,
            }
            weights = {name: p.detach() for name, p in self.model.named_parameters()}
            averages = self.average.tensors if self.average is not None else None
            saved = checkpoints.Checkpoint(weights, averages, self.optimizer.tensors, random, state)
            path = checkpoints.save(path.parent, self.step, saved, keep=self.config.keep_checkpoints)
            self.metrics.line(f"checkpoint: {path}")
        self.ranks.barrier()
        return path

    def _save_checkpoint_or_warn(self) -> None:
        """A periodic save that fails (full disk, read-only folder) must not cost the run."""
        try:
            self._save_checkpoint()
        except OSError as error:
            self.ranks.barrier()
            if not self.warned_of_checkpoint:
                self.metrics.line(f"warning: no checkpoint at step {self.step}: {error}; training goes on")
            self.warned_of_checkpoint = True

    def _restore(self, saved: checkpoints.Checkpoint) -> float:
        """Continue from a checkpoint; returns the seconds it had counted."""
        parameters = dict(self.model.named_parameters())
        if {n: t.shape for n, t in saved.weights.items()} != {n: p.shape for n, p in parameters.items()}:
            raise InputError("--resume: the checkpoint's weights have other names or shapes than this preset's")
        counters = saved.state.get("average")
        if (counters is None) != (self.average is None):
            raise InputError("--resume: the checkpoint and the training section disagree on averaging")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(saved.weights[name])
        if self.average is not None and counters is not None:
            self.average.restore(saved.averages, counters)
        self.optimizer.load_tensors(saved.optimizer, saved.state["optimizer_steps"])
        if self.ranks.rank < len(saved.random):
            torch.set_rng_state(saved.random[self.ranks.rank])
        self.step, self.clock_before = saved.state["step"], saved.state["clock"]
        return float(saved.state["elapsed_seconds"])

    def _announce(self) -> None:
        config, loader = self.config, self.loader
        num_parameters = sum(p.numel() for p in self.model.parameters())
        self.metrics.line(
            f"training {num_parameters:,} parameters on {self.ranks.size} x {self.ranks.device.type} in "
            f"{str(self.model.activation_dtype).removeprefix('torch.')}: {config.batch_tokens:,} tokens a step "
            f"({loader.num_micro_batches} x {loader.micro_batch_sequences} sequences of {config.sequence_tokens} "
            f"on each process), {loader.num_samples:,} samples in the training data"
        )
        if self.step:
            self.metrics.line(f"resumed after step {self.step}")

    def _on_sigterm(self, *_: object) -> None:
        self.terminated = True
