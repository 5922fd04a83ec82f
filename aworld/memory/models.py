"""Items of memory, by kind. Each is a `MemoryItem`; what differs is the kind and to whom it matters."""

from __future__ import annotations

from functools import partial

from aworld.core.memory import MemoryItem as MemoryItem
from aworld.core.memory import MessageMetadata as MessageMetadata

MemoryHumanMessage = partial(MemoryItem, kind="human", scope="session")
"""What a person said: `MemoryHumanMessage(content="...", metadata=MessageMetadata(user_id="anna"))`."""
MemoryAIMessage = partial(MemoryItem, kind="ai", scope="session")
"""What an agent said."""
MemorySystemMessage = partial(MemoryItem, kind="system", scope="session")
"""What an agent was instructed to do."""
MemoryToolMessage = partial(MemoryItem, kind="tool", scope="session")
"""What a tool answered."""
Fact = partial(MemoryItem, kind="fact", scope="user")
"""Something that holds; a newer one `supersedes=(id,)` an older one."""
UserProfile = partial(MemoryItem, kind="profile", scope="user")
"""What a user is like, and wants."""
AgentExperience = partial(MemoryItem, kind="experience", scope="agent")
"""What worked for an agent, and what did not."""
