"""Saliencies: scores of the entries of weights, one file each."""
