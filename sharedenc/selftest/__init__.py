"""Proof on the target device: the preflight of a sweep, the probe of a plan, and the self-test."""
