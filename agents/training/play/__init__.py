"""Driving inside a dream, or watching the agent there, in a browser on this machine."""
