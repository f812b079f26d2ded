"""A host's frames: checked, taken apart, resized and put together again."""
