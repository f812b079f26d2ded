"""What keeps a restored face still, true and in its colours from one frame to the next."""
