"""Load on real servers: the parts of benchmarks.serve."""
