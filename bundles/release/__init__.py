"""The operator's side of releases: keys, the signed repository, who is given what, and how it is served."""
