"""The same work done by us and by the peers, side by side."""
