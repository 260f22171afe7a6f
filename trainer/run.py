"""A training run, from an empty folder or a checkpoint to the final checkpoint: the loop and nothing else."""

from __future__ import annotations

import math
import signal
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eval.coverage import CoverageError
from eval.ledger import ByteLedger
from eval.scoring import Share, score_plain
from eval.tally import Tally
from model.config import ModelConfig
from model.errors import InputError
from model.network.gpt import GPT
from model.network.initialize import initialize
from model.text.bigrams import count_bigrams
from model.text.shards import DataFolder
from trainer import checkpoint as checkpoints
from trainer.averaging import weight_average
from trainer.clock import Clock
from trainer.config import TrainingConfig
from trainer.engine import Engine, open_trackers
from trainer.gradients import NonFiniteGradient, Outcomes
from trainer.loaders.loader import training_loader
from trainer.metrics import Metrics
from trainer.optimizer import TrainingOptimizer
from trainer.phases import Phases
from trainer.ranks import Ranks, peak_memory_bytes
from trainer.schedule import learning_rate_multiplier, momentum, weight_decay
from trainer.trackers import TrackerConfig
from trainer.warm_up import preserved, random_state, restore_random_state

VALIDATION_BATCH_TOKENS = 32_768
BIGRAM_TOKENS = 10_000_000
"""Counted for a spectral embedding."""


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
    live_validation: Tally | None
    """The same of the final weights before averaging; None without averaging."""
    checkpoint: Path
    peak_memory_bytes: int
    """Of this rank: allocated on the GPU, or of the whole process on a CPU; validation included."""


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
    trackers: TrackerConfig | None = None,
) -> TrainingResult:
    """Train until the clock reaches 1; called by every rank.

    Args:
        ledger: bytes of the validation targets.
        run_dir: exists; gets checkpoints/, metrics.jsonl and log.txt, written by rank 0.
        resume: checkpoint folder to continue from.
        replay_clock: fractions recorded by an earlier run, in place of the wall clock.
        trackers: get every row of metrics.jsonl too.

    Raises:
        InputError: data too short, a damaged checkpoint, weights of another shape.
        Preempted: SIGTERM arrived and a checkpoint was saved.
        NonFiniteGradient: the loss or gradient was NaN or infinite; weights are those before the step.
        OSError: the final checkpoint could not be written.
    """
    metrics = Metrics(run_dir if ranks.is_first else None)
    run = _Run(model_config, training, data, ledger, run_dir, ranks, metrics, resume, replay_clock)
    if trackers is not None and trackers.enabled:
        metrics.listen(open_trackers(trackers.deepspeed_settings(run_dir)))
    return run.to_the_end()


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
        torch.manual_seed(training.seed)
        dtype = torch.bfloat16 if ranks.device.type == "cuda" else torch.float32
        self.model = GPT(model_config, dtype)
        initialize(self.model, training.seed, self._bigram_counts())
        if training.embedding_dtype == "bfloat16":
            self.model.embedding.to(torch.bfloat16)
        self.model.to(ranks.device)
        self.loader = training_loader(data.train, training, ranks)
        self.optimizer = TrainingOptimizer(self.model, training, ranks)
        self.average = weight_average(dict(self.model.named_parameters()), training)
        self.phases = Phases(self.model, training)
        self.engine = Engine(
            self.model,
            self.optimizer.adamw,
            training,
            ranks,
            micro_batch_size=self.loader.micro_batch_sequences,
            num_micro_batches=self.loader.num_micro_batches,
        )
        self.step, self.clock_before, self.loss_nats = 0, 0.0, math.nan
        elapsed = self._restore(checkpoints.load(resume)) if resume is not None else 0.0
        self.clock = Clock(training, elapsed, replay_clock)
        self.outcomes = Outcomes(ranks.device)
        self.rows: dict[int, dict[str, float]] = {}
        """By step, what metrics.jsonl will say of steps whose outcome has not come back from the device."""
        self.terminated = False
        self.warned_of_checkpoint = False

    def _bigram_counts(self) -> np.ndarray | None:
        """Of the training split, where the initial embedding is made of them."""
        config = self.model.config
        if config.initialization.embedding != "spectral":
            return None
        return count_bigrams(self.data.train, config.vocab_size, BIGRAM_TOKENS)

    def to_the_end(self) -> TrainingResult:
        self._announce()
        if self.ranks.device.type == "cuda":
            self.warm_up()
        previous_handler = signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            self._loop()
        finally:
            signal.signal(signal.SIGTERM, previous_handler)
            self.loader.close()
        final = self._save_checkpoint()
        validation = self._validate(max_targets=None)
        live = self._score(None, averaged=False) if self.average is not None else None
        return TrainingResult(
            num_steps=self.step,
            num_tokens=self.step * self.config.batch_tokens,
            train_seconds=self.clock.elapsed_seconds,
            train_loss_nats=self.loss_nats,
            validation=validation,
            live_validation=live,
            checkpoint=final,
            peak_memory_bytes=peak_memory_bytes(self.ranks.device),
        )

    def _loop(self) -> None:
        config = self.config
        self.clock.start()
        while True:
            fraction, terminated = self.ranks.from_first([self.clock.fraction(self.step), float(self.terminated)])
            if terminated:
                self._pause()
                self._save_checkpoint()
                raise Preempted(f"stopped by SIGTERM after step {self.step}")
            if fraction >= 1:
                break
            self._train_step(fraction)
            if config.validate_every_steps and self.step % config.validate_every_steps == 0:
                self._pause()
                self._validate(config.validation_tokens or None)
                self.clock.start()
            if config.checkpoint_every_steps and self.step % config.checkpoint_every_steps == 0:
                self._pause()
                self._save_checkpoint_or_warn()
                self.clock.start()
        self._pause()

    def _pause(self) -> None:
        """Finish what the device still has to do, then stop the clock."""
        self._report_outcomes(everything=True)
        if self.ranks.device.type == "cuda":
            torch.cuda.synchronize()
        self.clock.stop()

    def _train_step(self, fraction: float) -> None:
        """One optimizer step at clock `fraction`."""
        config = self.config
        multiplier = learning_rate_multiplier(config, self.step, fraction)
        if change := self.phases.advance(self.step, fraction, multiplier):
            self.metrics.line(f"step {self.step + 1}, {change}")
        status = self._step_everything(multiplier, fraction)
        if self.average is not None:
            self.average.update(
                step=self.step + 1, clock_advance=fraction - self.clock_before, learning_rate_multiplier=multiplier
            )
        self.step, self.clock_before = self.step + 1, fraction
        self.rows[self.step] = {
            "clock": fraction,
            "learning_rate_multiplier": multiplier,
            "momentum": momentum(config.matrix, self.step - 1),
            "tokens": self.step * config.batch_tokens,
        }
        self.outcomes.add(self.step, status)
        self._report_outcomes()

    def _step_everything(self, multiplier: float, fraction: float) -> Tensor:
        """Forward, backward and the optimizer, without waiting for the device; returns the step's status on it."""
        num_micro_batches = self.loader.num_micro_batches
        total = torch.zeros((), device=self.ranks.device)
        for index in range(num_micro_batches):
            if index:
                self.engine.next_micro_batch()
            self.phases.seed_noise(self.step)
            total += self.engine.forward_backward(*self.loader.micro_batch(self.step, index))
        status = self.optimizer.reduce_gradients(total / num_micro_batches)
        self.optimizer.step_matrices(
            learning_rate_multiplier=multiplier,
            momentum=momentum(self.config.matrix, self.step),
            weight_decay=weight_decay(self.config.matrix, fraction),
        )
        self.engine.step_adamw()
        return status

    def _report_outcomes(self, *, everything: bool = False) -> None:
        """Write down the steps whose loss is known by now.

        Raises:
            NonFiniteGradient: of the first step whose loss or gradient was not finite.
        """
        config = self.config
        for outcome in self.outcomes.ready(everything=everything):
            if not outcome.is_finite:
                first = int(self.loader.sample_positions(outcome.step - 1)[0])
                raise NonFiniteGradient(
                    f"step {outcome.step}: loss {outcome.loss_nats}, gradient norm {outcome.gradient_norm}; "
                    f"{config.num_samples_per_step} samples, the first at token {first} of the training data"
                )
            self.loss_nats = outcome.loss_nats
            elapsed_ms = 1000 * self.clock.elapsed_seconds
            self.metrics.row(
                step=outcome.step,
                train_loss=outcome.loss_nats,
                gradient_norm=outcome.gradient_norm,
                **self.rows.pop(outcome.step),
                train_time_ms=elapsed_ms,
            )
            if outcome.step <= 10 or outcome.step % config.log_every_steps == 0:
                self.metrics.line(
                    f"step:{outcome.step}/{config.max_steps} train_loss:{outcome.loss_nats:.4f} "
                    f"train_time:{elapsed_ms:.0f}ms step_avg:{elapsed_ms / outcome.step:.2f}ms"
                )

    def warm_up(self, num_steps: int = 2) -> None:
        """Run real steps in every phase before the clock starts, so that every graph is compiled; leaves no trace."""
        start = time.perf_counter()
        if self.config.compile and self.ranks.device.type == "cuda":
            self.engine.compile()
        optimizer, phases = self.optimizer, self.phases.reachable()
        counted = optimizer.num_steps, optimizer.num_orthogonalized
        with preserved([*self.model.parameters(), *optimizer.state_tensors()]):
            for phase in phases:
                self.phases.rehearse(phase)
                for _ in range(num_steps):
                    self._step_everything(1.0, self.clock_before)
        self.phases.end_rehearsal()
        self.engine.weights_were_replaced()
        optimizer.num_steps, optimizer.muon.num_orthogonalized = counted
        optimizer.forget_outcomes()
        if self.ranks.device.type == "cuda":
            torch.cuda.synchronize()
        self.metrics.line(
            f"warm-up of {len(phases)} phases (compilation, not counted): {time.perf_counter() - start:.1f} s"
        )

    def _validate(self, max_targets: int | None) -> Tally:
        """Score the averaged weights where there are any, and write it down."""
        merged = self._score(max_targets, averaged=True)
        elapsed_ms = 1000 * self.clock.elapsed_seconds
        self.metrics.row(step=self.step, val_loss=merged.nats_per_token, val_bpb=merged.bpb, train_time_ms=elapsed_ms)
        self.metrics.line(
            f"step:{self.step}/{self.config.max_steps} val_loss:{merged.nats_per_token:.4f} val_bpb:{merged.bpb:.4f} "
            f"train_time:{elapsed_ms:.0f}ms step_avg:{elapsed_ms / max(self.step, 1):.2f}ms"
        )
        return merged

    def _score(self, max_targets: int | None, *, averaged: bool) -> Tally:
        """Plain scoring of the averaged or the live weights; every rank scores its share."""
        context = self.config.sequence_tokens
        self.model.eval()
        self.model.set_extra_passes(self.model.config.recurrence.num_extra_passes)  # as the packed model runs
        with self._averaged_weights() if averaged else nullcontext():
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
        self.model.set_extra_passes(self.phases.current.num_extra_passes)
        sums = torch.tensor(
            [tally.nats, tally.num_bytes, tally.num_tokens], dtype=torch.float64, device=self.ranks.device
        )
        self.ranks.sum(sums)
        nats, num_bytes, num_tokens = sums.tolist()
        num_targets = self.data.val.num_tokens - 1
        expected = num_targets if max_targets is None else min(num_targets, max_targets)
        if num_tokens != expected:
            raise CoverageError(f"validation scored {num_tokens:.0f} targets of {expected}")
        return Tally(nats, int(num_bytes), int(num_tokens))

    def _averaged_weights(self) -> AbstractContextManager[None]:
        return self.average.applied() if self.average is not None else nullcontext()

    def _save_checkpoint(self) -> Path:
        random = self.ranks.gather_bytes(random_state(self.ranks.device.type))
        optimizer = self.optimizer.gather_state()
        path = self.run_dir / "checkpoints" / f"step_{self.step:06d}"
        if self.ranks.is_first:
            state = {
                "step": self.step,
                "elapsed_seconds": self.clock.elapsed_seconds,
                "clock": self.clock_before,
                "optimizer_steps": self.optimizer.num_steps,
                "average": self.average.counters() if self.average is not None else None,
                "phase": self.phases.counters(),
            }
            weights = {name: p.detach() for name, p in self.model.named_parameters()}
            averages = self.average.tensors if self.average is not None else None
            saved = checkpoints.Checkpoint(weights, averages, optimizer, random, state)
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
        self.engine.weights_were_replaced()
        self.optimizer.load_state(saved.optimizer, saved.state["optimizer_steps"])
        self.phases.restore(saved.state["phase"])
        if self.ranks.rank < len(saved.random):
            restore_random_state(saved.random[self.ranks.rank], self.ranks.device.type)
        self.step, self.clock_before = saved.state["step"], saved.state["clock"]
        return float(saved.state["elapsed_seconds"])

    def _announce(self) -> None:
        config, loader = self.config, self.loader
        num_parameters = sum(p.numel() for p in self.model.parameters())
        self.metrics.line(
            f"training {num_parameters:,} parameters on {self.ranks.size} x {self.ranks.device.type} in "
            f"{str(self.model.activation_dtype).removeprefix('torch.')}: {config.batch_tokens:,} tokens a step "
            f"({loader.num_micro_batches} x {loader.micro_batch_sequences} samples of {config.sample_tokens} "
            f"on each process), {loader.num_samples:,} samples in the training data"
        )
        if self.step:
            self.metrics.line(f"resumed after step {self.step}")

    def _on_sigterm(self, *_: object) -> None:
        if not self.terminated:
            self.metrics.line(f"SIGTERM: saving a checkpoint and stopping after step {self.step + 1}")
        self.terminated = True
