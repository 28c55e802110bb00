"""Prompts of toyworld and their meaning."""
