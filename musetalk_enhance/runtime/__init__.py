"""The machine: devices, memory, files."""
