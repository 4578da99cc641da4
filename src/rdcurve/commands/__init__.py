"""One module per step of the pipeline: `run(args, params)` reads the files that the command line names, writes others."""
