"""What each model of the repository does."""
