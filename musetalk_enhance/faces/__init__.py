"""What is known about a face crop: its landmarks, how far mouth and eyes are open."""
