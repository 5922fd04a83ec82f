"""Settings that users write."""

from aworld.config.conf import AgentConfig, EngineName, ModelConfig, ModelSettings, RunConfig, TaskConfig, TaskRunMode

__all__ = ["AgentConfig", "EngineName", "ModelConfig", "ModelSettings", "RunConfig", "TaskConfig", "TaskRunMode"]
