"""Pure planning: allocation, lease session, watch, desired state, diff. No await, no clock, no sockets."""
