"""The sampler: schedules, targets, HMC, AIS and BDMC. It imports nothing of models, training, data, plots or workflow."""
