"""The commands of `trierarch`, one noun a file."""
