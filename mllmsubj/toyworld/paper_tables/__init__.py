"""The paper's tables in miniature: which runs they need, and what came out beside what the paper says."""
