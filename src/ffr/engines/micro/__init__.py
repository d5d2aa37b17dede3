"""The micro student: its architecture, its cold start, its recipe."""
