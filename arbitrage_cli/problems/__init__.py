"""Problems: tasks, source files and grading."""
