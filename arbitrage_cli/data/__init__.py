"""Problems and data sets."""
