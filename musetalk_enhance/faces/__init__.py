"""Where a face is, how it is brought to a network's template and back, and what covers it."""
