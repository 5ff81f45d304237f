"""From a job to tokens."""
