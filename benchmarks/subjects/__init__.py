"""What is measured, ours and theirs alike: engines, each in a process of its own."""
