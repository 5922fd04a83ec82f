"""Stores of logs, what is derived from them, and their exports."""

from aworld.trajectory.memory import MemoryStore as MemoryStore
from aworld.trajectory.memory import WeakStore as WeakStore
from aworld.trajectory.query import Query as Query
from aworld.trajectory.query import Where as Where
from aworld.trajectory.store import TrajectoryStore as TrajectoryStore
from aworld.trajectory.store import open_store as open_store
from aworld.trajectory.summary import Summary as Summary
