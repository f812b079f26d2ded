"""Pipelines we hook into, one per file."""
