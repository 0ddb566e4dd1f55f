"""Nothing but what `--user-dir` looks for; the tasks are in `fairseq_fixedpoint.plugin.tasks`."""
