"""Configuration: the schema with all keys and defaults, loading of config files, and overrides."""
