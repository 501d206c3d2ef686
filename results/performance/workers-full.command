{"command": "python scripts/benchmark.py env --task cartpole-balance --workers 0,1,2,4 --quality full --steps 20 --turns 5 --json", "load": "1"}
