"""How fast is it here? One file for each kind of question; ``scripts/benchmark.py`` asks them."""
