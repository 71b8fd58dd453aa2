"""The agent API: JSON over HTTP on a unix socket, health and metrics."""
