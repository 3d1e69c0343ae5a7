"""Programs that a model wrote, graded by running a problem's tests: the records, the runner, and the processes it starts."""
