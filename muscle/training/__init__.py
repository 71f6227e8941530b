"""Training of adapters: data order, student, engines, loop, checkpoints. Knows nothing of Ray."""
