"""The paper's tables in miniature: the runs that they need, and their results beside the paper's."""
