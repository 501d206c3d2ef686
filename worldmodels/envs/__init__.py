"""Real worlds: DM Control, Gymnasium and small built-in tasks, all from pixels."""

from worldmodels.envs.base import Env, EnvConfig, Step
from worldmodels.envs.tasks import list_tasks, make_env, resolve_task, suite_of
from worldmodels.envs.workers import EnvPool

__all__ = ["Env", "EnvConfig", "EnvPool", "Step", "list_tasks", "make_env", "resolve_task", "suite_of"]
