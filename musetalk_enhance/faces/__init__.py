"""Face detection, landmarks, tracking, alignment, masks and pasting."""
