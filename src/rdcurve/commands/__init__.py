"""One module per step of the pipeline: `run(args, params)` reads files that the command line names, writes others."""
