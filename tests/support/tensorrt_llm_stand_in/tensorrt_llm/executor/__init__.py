"""Requests and their errors."""
