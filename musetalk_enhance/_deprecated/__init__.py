"""Import paths of the previous release. Each warns, and is removed in the next release."""
