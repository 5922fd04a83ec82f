"""Environments: problems, the tools and state of an episode, its reward and its limits; and rollouts through them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aworld.core.lazy import exports

if TYPE_CHECKING:
    from aworld.core.exceptions import EnvironmentFailed as EnvironmentFailed
    from aworld.core.run_environment import Reward as Reward
    from aworld.environments.environment import Environment as Environment
    from aworld.environments.environment import factory as factory
    from aworld.environments.episode import EpisodeEnv as EpisodeEnv
    from aworld.environments.problem import Problem as Problem
    from aworld.environments.problem import split_by_hash as split_by_hash
    from aworld.environments.report import Report as Report
    from aworld.environments.report import RolloutProgress as RolloutProgress
    from aworld.environments.rollout import Rollout as Rollout
    from aworld.environments.rollout import by_group as by_group
    from aworld.environments.rollout import rollouts as rollouts
    from aworld.environments.rubric import Part as Part
    from aworld.environments.rubric import Rubric as Rubric
    from aworld.environments.rubric import ScoredEpisode as ScoredEpisode
    from aworld.environments.session import Session as Session

__getattr__, __dir__ = exports(__name__)
