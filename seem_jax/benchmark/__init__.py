"""What a configuration costs, and how fast this machine runs it: python -m seem_jax.benchmark."""
