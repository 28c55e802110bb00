"""Training: state, optimizer and step are pure; loop.py is the only impure part."""
