"""Pipelines that the enhancer hooks into, one per file."""
