"""A BGP speaker as a library: sans-IO, standard library only. Its content comes with the bgp backend."""
