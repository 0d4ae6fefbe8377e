"""Wire formats to core types and back, nothing else."""
