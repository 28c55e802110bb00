"""Prompts of toyworld, with the attributes that they request."""
