"""Kubernetes objects, as plain structures: each module builds one kind or a few that belong together."""
