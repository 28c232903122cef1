"""What other people's servers cost on the ring: ``python -m benchmarks.ecosystem``."""
