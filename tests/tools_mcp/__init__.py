"""MCP servers as tools, and agents as MCP servers."""
