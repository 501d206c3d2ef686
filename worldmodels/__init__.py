"""Worlds: learned ones, real ones, and what was seen in them."""
