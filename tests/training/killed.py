"""Trains, and dies by `kill -9`, or another signal, when a given number of events has passed (0: lives). A program of
its own."""

from __future__ import annotations

import os
import signal
import sys

from aworld.training import AgentTrainer
from aworld.training.result import TrainingEvent
from tests.training.small import QUICK, letters, small_agent


def main(run_path: str, events: int, end: str = "SIGKILL") -> None:
    seen = 0

    def count(_: TrainingEvent) -> None:
        nonlocal seen
        seen += 1
        if seen == events:
            os.kill(os.getpid(), signal.Signals[end])

    settings = {**QUICK, "steps": 5, "checkpoint_every": 2, "evaluate_every": 2, "minibatches": 2, "epochs": 2}
    trainer = AgentTrainer(small_agent(), settings, None, letters(), run_path=run_path, on_event=count)
    trainer.train()
    sys.stdout.write(f"{seen}\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
