"""What belongs to the machine and to no model: files, registries."""
