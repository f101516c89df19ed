"""One engine a process: what runs in a subject's own environment. Nothing here imports anything of `benchmarks` outside."""
