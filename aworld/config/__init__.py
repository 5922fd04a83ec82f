"""Settings that users write."""

from aworld.config.conf import AgentConfig, EngineName, ModelConfig, RunConfig, TaskConfig, TaskRunMode

__all__ = ["AgentConfig", "EngineName", "ModelConfig", "RunConfig", "TaskConfig", "TaskRunMode"]
