{"command": "python scripts/benchmark.py run --agent dreamer --preset cpu --task cartpole-balance --env-steps 3000 --training.threads 2 --json", "load": "0.50"}
