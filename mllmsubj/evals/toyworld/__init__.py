"""The toyworld benchmark: identity, prompt following and pose copying, read off pictures by a probe."""
