"""Carrying out all runs of a study, wherever they are trained."""
