"""Adapter to ms-swift: the engine `swift`, its settings and dataset, and the plugin that runs inside ms-swift."""
