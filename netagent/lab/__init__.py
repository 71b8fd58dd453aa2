"""The lab: whole clusters in network namespaces. Apart from the agent; it only starts it."""
