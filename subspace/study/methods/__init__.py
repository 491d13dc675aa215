"""What is compared: every method by name, with its options."""

from subspace.study.methods.registry import BASIC, METHODS, Method, method

__all__ = ["BASIC", "METHODS", "Method", "method"]
