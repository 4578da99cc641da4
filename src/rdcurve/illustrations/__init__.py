"""Figures 1 and 2 of the paper, which it only sketches: small problems where everything can be computed."""
