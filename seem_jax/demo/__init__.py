"""The web app: `python -m seem_jax.demo`. `studio` and `pictures` know nothing of the browser, `app` does."""
