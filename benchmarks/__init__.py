"""What Trierarch costs and gains on this machine, beside its rivals: one command a benchmark, one table, one JSON file."""
