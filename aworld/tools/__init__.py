"""Ready tools, and the tools of others. What a tool is, and how to write one, stands in `aworld.core.tool`."""
