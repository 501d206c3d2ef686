"""Behaviours: what to do, given a latent world."""
