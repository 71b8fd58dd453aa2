"""The backends: each plans how packets to a peer travel. netagent finds them by entry point."""
