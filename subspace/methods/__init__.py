"""Choosing and moving U."""
