"""The head of a cluster, seen from outside of Ray: who answers there, and whether it is still there."""
