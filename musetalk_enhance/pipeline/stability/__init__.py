"""What keeps a restored face still, true and in its colors from one frame to the next."""
