"""Flow matching: schedules, stages, guidance and the sampling loop, independent of any network."""
