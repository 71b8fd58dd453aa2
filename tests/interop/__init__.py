"""Our speaker beside BIRD, FRR and GoBGP, in network namespaces. One topic a file."""
