{"command": "python scripts/benchmark.py env --task cartpole-balance,walker-walk --workers 0,1,2,4 --quality lean --steps 100 --turns 10 --json", "load": "1"}
