{"command": "python scripts/benchmark.py replay --agent dreamer --preset cpu --task walker-walk --sizes 1000,10000,50000 --turns 5 --json", "load": "11.88"}
