"""The report of a run of verify: what it holds, and its forms for people and for machines."""
