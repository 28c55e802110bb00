"""Examples of toyworld as data sources."""
