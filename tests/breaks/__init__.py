"""Deliberate breaks of the product, each of which the quick tests must notice, and what runs them."""
