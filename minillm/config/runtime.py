"""Configuration of where and with what a run is computed."""

from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from minillm.config.base import LocalPath, Strict


class Runtime(Strict):
    """Place and resources of a run; nothing here changes a result beyond floating-point rounding."""

    store: LocalPath = ".minillm"
    """Folder of artifacts, checkpoints and, unless MLFLOW_TRACKING_URI is set, tracked runs."""
    processes: PositiveInt = 1
    """Processes of a worker group, one per GPU: on this machine, or the total over the machines of `hostfile`."""
    hostfile: LocalPath | None = None
    """DeepSpeed's hostfile, with lines `HOST slots=PROCESSES`, for a worker group on several machines. Each must be
    reachable by ssh without a password and have this checkout, its environment and the store under the same paths."""
    threads: PositiveInt | None = None
    """CPU threads per process; without it, the cores that are free when a run begins, divided among its processes."""
    parallel_stages: PositiveInt | None = None
    """Stages that may run at once; without it, 2 where two cores are free, there is no GPU and `processes` is 1,
    otherwise 1. Each holds its models in memory."""
    micro_batch_size: PositiveInt = 8
    """Most sequences per process in one forward and backward pass; lower it when memory runs out."""
    micro_batch_tokens: PositiveInt | None = None
    """Most tokens, with padding, per process in one forward and backward pass, as a further limit; a longer sequence
    goes alone."""
    generation_batch_size: PositiveInt = 64
    """Responses generated at once per process; lower it when memory runs out."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage: 1 shards optimizer state over processes, 2 also gradients, 3 also weights.
    In bfloat16, 0 is treated as 1 (see `zero_stage_in`)."""
    offload_optimizer: bool = False
    """Keep optimizer state on the CPU and step there (ZeRO-Offload, arXiv 2101.06840); needs zero_stage 1, 2 or 3."""
    gather_student: bool = True
    """Gather all weights of a student under zero_stage 3 to generate with them. Without it, each layer is gathered at
    every token: much slower, for a student that no device can hold."""
    teacher_zero_stage: Literal[0, 3] = 0
    """3 shards the weights of a teacher that is only run over the processes (ZeRO-3), where it is too large for one
    device; 0 keeps all of them in every process. Rollouts and losses are the same."""
    teacher_offload: Literal["none", "cpu"] = "none"
    """Memory that holds the shards of the teacher: the device's, or the CPU's (ZeRO-Inference, arXiv 2207.00032), from
    which every pass reads them; needs teacher_zero_stage 3."""
    checkpoint_every: PositiveInt = 100
    """Optimizer steps between checkpoints: a killed stage loses at most this many."""
    retries: int = Field(default=2, ge=0)
    """Number of times a failed stage is restarted from its last checkpoint."""
    timeout_hours: PositiveFloat = 168.0
    """Hours after which a running stage is stopped and counts as failed."""
    silent_minutes: PositiveFloat = 60.0
    """Minutes without output after which a worker counts as hung and is killed and restarted; a round of rollouts and
    a checkpoint must each take less."""

    def rows_at_once(self, tokens: float) -> int:
        """Return how many sequences of so many tokens one pass takes."""
        fitting = self.micro_batch_size if self.micro_batch_tokens is None else int(self.micro_batch_tokens / tokens)
        return max(1, min(self.micro_batch_size, fitting))

    def tokens_at_once(self, longest: int) -> int:
        """Return the most tokens of one pass over sequences of at most so many."""
        rows = self.micro_batch_size * longest
        return rows if self.micro_batch_tokens is None else min(rows, max(self.micro_batch_tokens, longest))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer moves what ZeRO shards: set zero_stage to 1, 2 or 3")
        if not self.gather_student and self.zero_stage < 3:
            raise ValueError("gather_student: false leaves weights sharded, which they are not; set zero_stage: 3")
        if self.teacher_offload != "none" and self.teacher_zero_stage == 0:
            raise ValueError(
                f"teacher_offload: {self.teacher_offload} moves what ZeRO shards: set teacher_zero_stage: 3"
            )
        return self

    def zero_stage_in(self, precision: str) -> int:
        """Return the ZeRO stage of a training: at least 1 in bfloat16, where DeepSpeed without ZeRO makes other steps.

        It takes an Adam step with zero gradients when its optimizer is made (0.19.8, `FP16_UnfusedOptimizer`).
        """
        return max(self.zero_stage, 1) if precision == "bfloat16" else self.zero_stage
