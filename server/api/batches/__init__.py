"""/v1/files and /v1/batches: requests in a file, answered when there is time, all of it kept in `cache_dir`."""
