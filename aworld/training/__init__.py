"""Training: from recorded episodes to a better policy.

`AgentTrainer` is the front door. What trains is an engine, found by name (`registry`); what it learns from are samples,
derived from stored trajectories (`samples`, `credit`, `filters`). Nothing here imports a tensor library before an
engine that needs one is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aworld.core.lazy import exports

if TYPE_CHECKING:
    from aworld.training.evaluation import Evaluation as Evaluation
    from aworld.training.registry import TrainEngine as TrainEngine
    from aworld.training.registry import TrainingJob as TrainingJob
    from aworld.training.registry import known_engines as known_engines
    from aworld.training.registry import register_processor as register_processor
    from aworld.training.result import StepReport as StepReport
    from aworld.training.result import TrainingResult as TrainingResult
    from aworld.training.trainer import AgentTrainer as AgentTrainer
    from aworld.training.training_config import TrainingConfig as TrainingConfig

__getattr__, __dir__ = exports(__name__)
