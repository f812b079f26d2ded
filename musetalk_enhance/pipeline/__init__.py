"""From a host's frames to restored ones: prepare, network, compose."""
