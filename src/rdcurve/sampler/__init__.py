"""The sampler: schedules, targets, HMC, AIS and BDMC. It knows nothing of models, data, plots or the workflow."""
