"""Flow matching: schedules, stages, guidance and the sampling loop. Never imports a network."""
