"""Checks objects without a cluster: what the API server, KServe's webhooks and Knative would refuse, and what they accept and ignore."""
