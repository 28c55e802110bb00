"""Examples and single pictures of toyworld, as data sources."""
