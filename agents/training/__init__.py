"""When to learn, and from which data."""
