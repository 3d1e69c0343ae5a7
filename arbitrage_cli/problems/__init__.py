"""Problems: their tasks, the files they come from, and the grading of their solutions."""
