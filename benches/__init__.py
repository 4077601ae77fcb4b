"""Benchmarks: one file a flow, and `peers`, which runs pyctrd beside other tools."""
