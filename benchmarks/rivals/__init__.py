"""How the rivals come to this machine: each in an environment of its own, all from the one demo checkpoint."""
