"""Training: state, optimizer and step are pure functions; the loop and its hooks have side effects."""
