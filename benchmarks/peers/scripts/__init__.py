"""The work as users of each peer write it: a script imports torch, numpy and its own peer, nothing else."""
